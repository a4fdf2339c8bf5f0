"""Pages and HTTP API over `jobs`. Nothing is served yet; the package holds the place that the contracts guard."""
