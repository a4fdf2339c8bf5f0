"""A report as one HTML file: what it draws against its figures, what it needs, and whose text it shows."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import jobs.charts
from jobs.charts import of_jobs
from jobs.charts.chart import Chart
from jobs.charts.page import html, write_html
from jobs.errors import ResultsError
from jobs.estimates import Interval
from jobs.report import Report, Spread, Study, study
from jobs.summary import Summary
from jobs.text import STEERING
from tests.unit.jobs import test_report
from tests.unit.jobs.test_frames import Finished
from tests.web.test_colours import contrast, luminance

finished = test_report.finished

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></svg><b>x",
    "</title><script>x",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "\x1b]0;owned\x07\x1b[31m",
    "abc\u202edef\u2066",
    "&amp;<!-- --><![CDATA[",
    "x" * 500,
)


class Reader(HTMLParser):
    """Elements, their attributes, and the texts between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


def several(made: Report) -> list[Report]:
    """Four checkpoints whose figures differ, one of which has no gold answers, and one no measurements."""
    assert made.accuracy and made.entropy and made.logprob and made.apart
    spread = Spread(0.5, 0.1, 0.2, 0.3, 0)
    return [
        replace(made, name="step 0"),
        replace(made, name="step 10", accuracy=Interval(0.5, 0.4, 0.61), pass_at_k={1: 0.5, 2: 0.7, 3: 0.75}),
        replace(made, name="step 20", accuracy=None, pass_at_k={}, entropy=spread),
        replace(made, name="step 30", entropy=None, logprob=None, mean_length=123.5, median_length=100),
    ]


def points(chart: Chart, series: int, axis: str) -> list[float]:
    """Where the marks of a series stand on an axis, read off its labelled ticks."""
    ticks = re.findall(r'<text class="tick" x="([-\d.]+)" y="([-\d.]+)" text-anchor="(\w+)">([^<]*)<', chart.svg)
    at = {
        "x": [(float(x), text) for x, _, anchor, text in ticks if anchor == "middle"],
        "y": [(float(y) - 4, text) for _, y, anchor, text in ticks if anchor == "end"],
    }[axis]
    places = [place for place, _ in at]
    values = [float(text.replace("−", "-").replace(",", "")) for _, text in at]
    slope, start = np.polyfit(places, values if axis == "y" else np.log2(values), 1)
    drawn = re.sub(r'<g class="legend">.*?</g>', "", chart.svg)
    marks = re.findall(rf'class="mark s{series}" transform="translate\(([\d.]+) ([\d.]+)\)"', drawn)
    return [slope * float(mark["xy".index(axis)]) + start for mark in marks]


class TestCharts:
    def test_marks_stand_where_the_figures_are(self, finished: Finished) -> None:
        reports = several(study(finished[0]).report)
        charts = {chart.name: chart for chart in of_jobs.draw(reports)}
        assert list(charts) == ["accuracy", "pass-at-k", "model-nats", "sampling-nats", "lengths"]
        accuracies = [100 * made.accuracy.mean for made in reports if made.accuracy]
        assert points(charts["accuracy"], 0, "y") == pytest.approx(accuracies, abs=0.2)
        means = [made.mean_length for made in reports]
        assert points(charts["lengths"], 0, "y") == pytest.approx(means, abs=0.5)
        medians = [made.median_length for made in reports]
        assert points(charts["lengths"], 1, "y") == pytest.approx(medians, abs=0.5)
        curve = reports[1].pass_at_k
        assert points(charts["pass-at-k"], 1, "y") == pytest.approx([100 * curve[k] for k in (1, 2, 3)], abs=0.3)
        assert points(charts["pass-at-k"], 1, "x") == pytest.approx(np.log2([1, 2, 3]), abs=0.02)

    def test_tables_have_the_same_figures(self, finished: Finished) -> None:
        reports = several(study(finished[0]).report)
        charts = {chart.name: chart for chart in of_jobs.draw(reports)}
        assert [row[0] for row in charts["accuracy"].rows] == ["1 step 0", "2 step 10", "3 step 20", "4 step 30"]
        assert charts["accuracy"].rows[1][1:] == ("50.0 %", "40.0 %", "61.0 %")
        assert charts["accuracy"].rows[2][1:] == ("", "", "")
        assert [row[0] for row in charts["pass-at-k"].rows] == ["1", "2", "3", "4"]
        assert [row[2] for row in charts["pass-at-k"].rows] == ["50.0 %", "70.0 %", "75.0 %", ""]
        assert charts["model-nats"].rows[2][1] == "0.5"
        assert charts["model-nats"].rows[3][1:] == ("", "")

    def test_many_responses_and_many_jobs(self, finished: Finished) -> None:
        made = study(finished[0]).report
        curve = {k: 1 - 0.99**k for k in range(1, 1025)}
        reports = [replace(made, name=None, pass_at_k=curve) for _ in range(40)]
        for chart in of_jobs.draw(reports):
            ElementTree.fromstring(chart.svg)
            assert "nan" not in chart.svg and "inf" not in chart.svg
        chart = of_jobs.pass_at_k(reports)
        assert chart is not None and 40 < len(chart.rows) < 80
        ks = [int(row[0]) for row in chart.rows]
        assert ks == sorted(set(ks)) and ks[:16] == list(range(1, 17)) and ks[-1] == 1024

    def test_who_judged_is_said(self, finished: Finished) -> None:
        made = study(finished[0]).report
        [plain, *_] = of_jobs.draw([made])
        assert "exactly one <answer> block" in plain.note
        [by, *_] = of_jobs.draw([replace(made, reward="math_answer")] * 2)
        assert "by the reward math_answer" in by.note
        [mixed, *_] = of_jobs.draw([made, replace(made, reward="math_answer")])
        assert "BY in the table" in mixed.note

    def test_a_reward_that_is_no_accuracy(self, finished: Finished) -> None:
        none = replace(study(finished[0]).report, accuracy=None, pass_at_k={}, reward="brief")
        reports = [replace(none, mean_reward=mean, mean_reward_error=0.25) for mean in (-1.0, 0.5, 2.0)]
        [chart, *_] = of_jobs.draw([*reports, replace(none, mean_reward=None, mean_reward_error=None)])
        assert chart.name == "reward" and "brief" in chart.note
        assert points(chart, 0, "y") == pytest.approx([-1, 0.5, 2], abs=0.02)
        assert [row[1] for row in chart.rows] == ["−1", "0.5", "2", ""]

    def test_one_response_a_prompt_has_no_curve(self, finished: Finished) -> None:
        made = replace(study(finished[0]).report, pass_at_k={1: 0.5})
        assert of_jobs.pass_at_k([made]) is None

    @pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
    def test_series_differ_without_hue(self, dark: bool) -> None:
        css = (Path(jobs.charts.__file__).parent / "static" / "chart.css").read_text()
        found = [dict(re.findall(r"--(s\d): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", css)]
        colours = list(found[dark].values())
        assert len(colours) == 6
        for one, other in combinations(range(4), 2):
            lighter, darker = sorted((luminance(colours[one]), luminance(colours[other])), reverse=True)
            assert (lighter + 0.05) / (darker + 0.05) > 1.2, (one, other)
        ground = "#14171b" if dark else "#ffffff"
        assert all(contrast(colour, ground) >= 3 for colour in colours)


class TestPage:
    def test_it_needs_nothing_else(self, finished: Finished) -> None:
        one = study(finished[0])
        for page in (html([one]), html([one, one, one])):
            reader = Reader(page)
            tags = {tag for tag, _ in reader.elements}
            assert not tags & {"script", "link", "img", "iframe", "object", "a", "form", "base"}
            for tag, attributes in reader.elements:
                assert not {"src", "href", "style", "action"} & set(attributes), tag
                assert not any(name.startswith("on") for name in attributes), tag
            assert "url(" not in page and "@import" not in page and "://" not in page
            for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
                assert ElementTree.fromstring(svg).get("aria-label")
                assert "nan" not in svg and "inf" not in svg

    def test_one_job_has_the_charts_of_the_page(self, finished: Finished) -> None:
        one = study(finished[0])
        names = re.findall(r'<figure id="([\w-]+)">', html([one]))
        assert names == [
            *("entropies", "sampling_entropies", "logprobs", "sampling_logprobs"),
            *("lengths", "reasons", "sequence-logprobs", "correct", "pass-at-k"),
        ]
        text = " ".join(Reader(html([one])).text.split())
        assert one.report.accuracy and one.report.entropy
        assert f"{100 * one.report.accuracy.mean:.1f} %" in text and f"{one.report.entropy.mean:.4f} nats/token" in text
        assert "Drift from float32 was not measured: no worker has told of it." in text
        assert "run=a" in text

    def test_a_job_that_a_reward_judged(self, finished: Finished) -> None:
        one = study(finished[0])
        judged = one._replace(report=replace(one.report, reward="math_answer", unjudged=7))
        page = html([judged])
        assert '<figure id="correct">' not in page, "it goes by another rule than the figure above it"
        text = " ".join(Reader(page).text.split())
        assert "accuracy by math_answer [95 % interval]" in text and "not judged by math_answer 7" in text
        lengths = replace(
            judged.report, reward="brief", accuracy=None, pass_at_k={}, mean_reward=0.5, mean_reward_error=0.125
        )
        assert "mean brief ± standard error 0.5000 ± 0.1250" in " ".join(
            Reader(html([one._replace(report=lengths)])).text.split()
        )

    def test_a_row_a_job_in_the_order_given(self, finished: Finished) -> None:
        one = study(finished[0])
        studies = [one._replace(report=made) for made in several(one.report)]
        page = html(studies)
        rows = re.findall(r'<td data-of="NAME">(.*?)</td>', page)
        assert rows == ["step 0", "step 10", "step 20", "step 30"]
        assert re.findall(r'<td data-of="NAME">(.*?)</td>', html(studies[::-1])) == rows[::-1]

    @pytest.mark.parametrize("text", HOSTILE)
    def test_hostile_text_stays_text(self, finished: Finished, text: str) -> None:
        def named(name: str) -> list[Study]:
            one = study(finished[0])
            report = replace(one.report, name=name, model=name, adapter=name, finish_reasons={name: 1})
            job = replace(one.job, name=name, labels={name: name}, spec=one.job.spec | {"dataset": name})
            return [Study(job, report, one.summary)]

        for times in (1, 3):
            bad, tame = html(named(text) * times), html(named("tame") * times)
            assert not {chr(code) for code in STEERING} & set(bad.replace("\n", "").replace("\t", ""))
            shape = [(tag, sorted(attributes)) for tag, attributes in Reader(bad).elements]
            assert shape == [(tag, sorted(attributes)) for tag, attributes in Reader(tame).elements]
            assert "49" not in re.findall(r"<title>(.*?)</title>", bad)[0]

    def test_nothing_to_draw(self, finished: Finished) -> None:
        one = study(finished[0])
        nothing = dict.fromkeys(("accuracy", "entropy", "logprob", "sampling_entropy", "sampling_logprob", "apart"))
        lengths = {"mean_length": None, "median_length": None}
        none = replace(one.report, sequences=0, tokens=0, pass_at_k={}, **nothing, **lengths)
        empty = Study(one.job, none, Summary())
        assert "There are no sequences to draw." in html([empty])
        assert "<figure" not in html([empty, empty])
        assert "<figure" in html([empty, one])

    def test_a_file_is_whole_or_not_there(self, finished: Finished, tmp_path: Path) -> None:
        one = study(finished[0])
        folder = tmp_path / "out"
        folder.mkdir()
        write_html(folder / "report.html", [one])
        assert (folder / "report.html").read_text(encoding="utf-8").endswith("</html>\n")
        with pytest.raises(ResultsError, match="elsewhere"):
            write_html(folder / "elsewhere" / "report.html", [one])
        assert [path.name for path in folder.iterdir()] == ["report.html"]
