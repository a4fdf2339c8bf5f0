"""The charts of a job: drawn from what is committed, well-formed, with the figures that the rows give."""

from __future__ import annotations

import re
import statistics
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from jobs.charts import chart
from jobs.charts.chart import Frame
from jobs.snapshot import SnapshotRow
from tests.web.pictures.conftest import Page, Studio, a_row

G = 4


def row(prompt: SnapshotRow, sample: int) -> dict[str, Any]:
    """Lengths from 1 to 40; sample 0 of each prompt, and all of the even prompts, are correct."""
    rng = np.random.default_rng([prompt.prompt_index, sample])
    count = int(rng.integers(1, 41))
    right = sample == 0 or prompt.prompt_index % 2 == 0
    return a_row(
        prompt,
        sample,
        ["x"] * (count - 1) + [f"<answer>{1 if right else 2}</answer>"],
        logprobs=-rng.gamma(0.5, 1.0, count).astype(np.float32),
        entropies=rng.gamma(0.5, 1.0, count).astype(np.float32),
        finish_reason="length" if count == 40 else "eos" if sample else "stop",
    )


PROMPTS = [{"prompt": f"p{i}", "answer": "1"} for i in range(20)]


def rows() -> list[dict[str, Any]]:
    prompts = [SnapshotRow(i, str(i), prompt=f"p{i}", answer="1") for i in range(20)]
    return [row(prompt, sample) for prompt in prompts for sample in range(G)]


def tables(page: Page) -> dict[str, list[list[str]]]:
    """The data table of each chart, by its name."""
    found: dict[str, list[list[str]]] = {}
    for name, body in re.findall(r'<figure id="([\w-]+)">.*?<tbody>(.*?)</tbody>', page.html, re.DOTALL):
        lines = re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
        found[name] = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line) for line in lines]
    return found


def number(text: str) -> float:
    return float(text.replace("−", "-").replace(",", "").rstrip("%"))


class TestFigures:
    @pytest.fixture
    def page(self, studio: Studio) -> Page:
        job = studio.finished(PROMPTS, row, G=G, max_new_tokens=40)
        return studio.page(f"/jobs/{job.id}/charts")

    def test_every_chart_is_there_and_well_formed(self, page: Page) -> None:
        assert list(tables(page)) == ["entropies", "logprobs", "lengths", "reasons", "sequence-logprobs", "correct"]
        for svg in re.findall(r"<svg.*?</svg>", page.html, re.DOTALL):
            root = ElementTree.fromstring(svg)
            assert root.get("role") == "img"
            assert root.get("aria-label")
            assert "nan" not in svg
            assert "inf" not in svg
        assert "Drawn from all 10 shards." in page.text
        assert not any(name in ("style", "onload") for _, a in page.elements for name in a)

    @pytest.mark.parametrize("name", ["entropies", "logprobs"])
    def test_by_position(self, page: Page, name: str) -> None:
        for place, mean, low, lower, upper, high, n in tables(page)[name]:
            held = [float(one[name][int(place)]) for one in rows() if len(one[name]) > int(place)]
            assert number(n) == len(held) >= 10
            assert number(mean) == pytest.approx(statistics.fmean(held), abs=5.1e-4)
            for share, value in ((0.1, low), (0.25, lower), (0.75, upper), (0.9, high)):
                below, above = (np.quantile(held, share, method=m) for m in ("lower", "higher"))
                slack = 1 / 32 * max(abs(below), abs(above)) + 0.001 + 5e-4
                assert below - slack <= number(value) <= above + slack
        shorter = sum(len(one[name]) > len(tables(page)[name]) for one in rows())
        assert shorter < 10, "the rest is reached by too few"

    def test_lengths_reasons_and_log_probabilities(self, page: Page) -> None:
        found = tables(page)
        lengths = [len(one["response_ids"]) for one in rows()]
        for place, n, _ in found["lengths"]:
            first, last = (int(end) for end in (*place.split("–"), place)[:2])
            assert int(n) == sum(first <= length <= last for length in lengths), place
        assert sum(int(n) for _, n, _ in found["lengths"]) == len(lengths)
        reasons = [one["finish_reason"] for one in rows()]
        assert {name: int(n) for name, n, _ in found["reasons"]} == {name: reasons.count(name) for name in reasons}
        assert sum(int(n) for _, n, _ in found["sequence-logprobs"]) == pytest.approx(len(lengths), abs=3)
        assert f"{lengths.count(40)} of 80 were cut at max_new_tokens = 40." in page.text
        mean = statistics.fmean(float(one["logprobs"].sum(dtype=np.float64)) for one in rows())
        assert f"mean {chart.short(mean)}" in page.text

    def test_accuracy(self, page: Page) -> None:
        assert [n for _, n, _ in tables(page)["correct"]] == ["0", "10", "0", "0", "10"]
        error = statistics.stdev([1.0, 0.25] * 10) / 20**0.5
        for words in (
            f"62.5 % ± {100 * error:.1f} %",
            "62.5 % of 80 responses are correct; 100.0 % of 20 prompts have a correct one.",
            "exactly one <answer> block, equal to the gold answer",
        ):
            assert words in page.text

    def test_a_bar_is_as_high_as_its_count(self, page: Page) -> None:
        svg = re.findall(r"<svg.*?</svg>", page.html, re.DOTALL)[2]
        heights = [float(h) for h in re.findall(r'class="column"[^>]*height="([\d.]+)"', svg)]
        counts = [int(n) for _, n, _ in tables(page)["lengths"]]
        assert len(heights) == len(counts)
        scale = max(heights) / max(counts)
        assert heights == pytest.approx([scale * n for n in counts], abs=0.11)

    def test_what_is_counted_has_no_fractions_on_its_axes(self, studio: Studio) -> None:
        job = studio.finished(["p"], lambda p, s: a_row(p, s, ["x"] * 2), G=2)
        page = studio.page(f"/jobs/{job.id}/charts")
        svgs = dict(re.findall(r'<figure id="([\w-]+)">.*?(<svg.*?</svg>)', page.html, re.DOTALL))
        for name in ("entropies", "logprobs", "lengths", "reasons"):
            named = re.findall(r'class="tick"[^>]*text-anchor="middle">([^<]*)<', svgs[name])
            assert named == {"lengths": ["0", "1", "2"], "reasons": ["stop"]}.get(name, ["0", "1"])
        assert re.findall(r'class="tick"[^>]*text-anchor="end">([^<]*)<', svgs["lengths"]) == ["0", "1", "2"]
        left, width = re.findall(r'class="column" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', svgs["lengths"])[-1]
        [mean] = re.findall(r'class="rule" d="M([\d.]+) ', svgs["lengths"])
        assert float(left) + float(width) / 2 == pytest.approx(float(mean), abs=0.11), "over its number"

    def test_a_single_position_is_seen(self, studio: Studio) -> None:
        job = studio.finished(["p"], lambda p, s: a_row(p, s, ["x"]), G=2)
        page = studio.page(f"/jobs/{job.id}/charts")
        for path in re.findall(r'class="(?:line|band outer)" d="M([^"]*)"', page.html):
            xs = [float(point.split()[0]) for point in path.rstrip("Z").split("L")] if "L" in path else []
            assert not xs or max(xs) - min(xs) == chart.RIGHT - chart.LEFT
        assert re.search(r'class="line" d="M[^"]*L', page.html)


class TestStates:
    def test_grows_while_the_job_runs(self, studio: Studio) -> None:
        job = studio.submit(PROMPTS, G=G)
        page = studio.page(f"/jobs/{job.id}/charts")
        assert "Nothing to draw yet: the charts begin with the first shard that is done (0 of 10)." in page.text
        for done in (1, 2):
            studio.run_one(row)
            page = studio.page(f"/jobs/{job.id}/charts")
            assert f"Drawn from the {done} of 10 shards that are done." in page.text
            [live] = [a for _, a in page.elements if a.get("id") == "live"]
            assert live["hx-get"] == f"/jobs/{job.id}/charts?of=model"
        polled = studio.web.get(f"/jobs/{job.id}/charts?of=model", headers={"HX-Request": "true"}).text
        assert polled.strip().startswith('<section id="live"')
        assert polled.strip().endswith("</section>")
        assert polled in page.html

    def test_nothing_but_errors(self, studio: Studio) -> None:
        job = studio.finished(["p"], lambda prompt, sample: None)
        assert "No sequence was finished." in studio.page(f"/jobs/{job.id}/charts").text

    def test_the_sampling_distribution(self, studio: Studio) -> None:
        job = studio.finished(PROMPTS, row, G=G)
        page = studio.page(f"/jobs/{job.id}/charts?of=sampling")
        assert list(tables(page))[:2] == ["sampling_entropies", "sampling_logprobs"]
        assert {cells[1] for cells in tables(page)["sampling_entropies"]} == {"0.125"}
        assert studio.web.get(f"/jobs/{job.id}/charts?of=other").status_code == 422
        assert studio.web.get("/jobs/none/charts").status_code == 404

    def test_without_measurements_and_answers(self, studio: Studio) -> None:
        none = dict.fromkeys(("logprobs", "entropies", "sampling_logprobs", "sampling_entropies"))
        job = studio.finished(["p"], lambda p, s: a_row(p, s, ["x", "y"]) | none, measurements=[])
        page = studio.page(f"/jobs/{job.id}/charts")
        assert list(tables(page)) == ["lengths", "reasons"]

    def test_odd_rows(self, studio: Studio) -> None:
        def odd(prompt: SnapshotRow, sample: int) -> dict[str, Any]:
            values = np.array([[-np.inf, -np.inf], [0.0, 0.0], [0.0, -np.inf]][sample], np.float32)
            return a_row(prompt, sample, ["a", "b"], logprobs=values, finish_reason="<i>\u202e")

        page = studio.page(f"/jobs/{studio.finished(['p'], odd, G=3).id}/charts")
        assert "3 tokens have no finite value (−∞)" in page.text
        assert "i" not in {tag for tag, _ in page.elements}
        assert "\u202e" not in page.html
        assert [name for name, _, _ in tables(page)["reasons"]] == ["&lt;i&gt;\ufffd"]
        empty = studio.finished(["p"], lambda p, s: a_row(p, s, []))
        assert list(tables(studio.page(f"/jobs/{empty.id}/charts"))) == ["lengths", "reasons", "sequence-logprobs"]


class TestPrimitives:
    @given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 8))
    def test_ticks_are_round_few_and_within(self, low: float, width: float, most: int) -> None:
        found = [at for at, _ in chart.ticks(low, low + width, most)]
        size = chart.step(low, low + width, most)
        assert len(found) <= most + 1
        assert all(low - 1e-6 * size <= at <= low + width + 1e-6 * size for at in found)
        assert f"{size:e}"[0] in "125"

    @pytest.mark.parametrize(
        ("value", "words"),
        [(0, "0"), (0.25, "0.25"), (-12, "−12"), (8000, "8,000"), (12_500, "12.5k"), (1.5e6, "1.5M"), (-0.5, "−0.5")],
    )
    def test_short(self, value: float, words: str) -> None:
        assert chart.short(value) == words

    def test_words_are_escaped(self) -> None:
        frame = Frame((0, 1), (0, 1), 0, 100)
        evil = '"><script>'
        parts = [
            chart.axes(frame, x=[(0, evil)], y=[(0, evil)], x_label=evil, y_label=evil),
            chart.readout(frame, 0, 1, evil),
            chart.rule(frame, 0.5, evil),
            chart.text(frame, 0.5, 0.5, evil),
            chart.legend([("line", evil), ("band", evil)]),
        ]
        root = ElementTree.fromstring(chart.picture(100, evil, parts))
        assert root.get("aria-label") == evil
        assert len([element for element in root.iter() if element.text == evil]) == 9
        assert isinstance(parts[0], Markup)
