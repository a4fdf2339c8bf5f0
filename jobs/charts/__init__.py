"""Jobs as charts: drawn as SVG from summaries and reports, for the page and for a report in one file."""
