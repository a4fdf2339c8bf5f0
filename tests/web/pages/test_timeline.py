"""The drawing of attempts loses none of them, and its area is the tokens that were made."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.records import Span
from webui.pages.timeline import HEIGHT, WIDTH, timeline

NOW = 2000.0


@st.composite
def spans(draw: st.DrawFn) -> list[Span]:
    """Attempts of a few workers, one after the other on each, some still running."""
    made: list[Span] = []
    for worker in range(draw(st.integers(1, 15))):
        at = draw(st.floats(1000, 1100))
        for shard in range(draw(st.integers(1, 8))):
            at += draw(st.floats(0, 20))
            ended = at + draw(st.floats(0.01, 50))
            runs = shard == 7
            outcome = None if runs else draw(st.sampled_from(["done", "failed", "reaped", "handed back"]))
            tokens = draw(st.integers(0, 10_000))
            made.append(Span(f"w{worker}", len(made), 1, at, None if runs else ended, outcome, tokens))
            at = ended
    return draw(st.permutations(made))


def area(outline: str) -> float:
    """Of the steps of an outline, whose last two commands close it along the bottom."""
    steps = re.findall(r"V([\d.]+)H([\d.]+)", outline)
    edges = [0.0, *(float(right) for _, right in steps)]
    return sum((HEIGHT - float(top)) * (b - a) for (top, _), a, b in zip(steps, edges, edges[1:], strict=False))


@given(spans())
def test_nothing_is_lost(made: list[Span]) -> None:
    drawn = timeline(made, {}, NOW)
    assert drawn is not None
    workers = {span.worker_id for span in made}
    assert len(drawn.lanes) + drawn.hidden == len(workers)
    for worker, bars in drawn.lanes.items():
        own = [span for span in made if span.worker_id == worker]
        assert sum(bar.attempts for bar in bars) == len(own)
        assert sum(bar.tokens for bar in bars) == sum(span.tokens for span in own)
        assert all(0 <= bar.start <= bar.stop <= WIDTH + 1e-6 for bar in bars)
        assert {bar.outcome for bar in bars} == {span.outcome or "running" for span in own}


@given(spans())
def test_the_area_is_the_tokens(made: list[Span]) -> None:
    drawn = timeline(made, {}, NOW)
    assert drawn is not None
    ended = max(NOW if span.ended_at is None else span.ended_at for span in made)
    length = ended - min(span.claimed_at for span in made)
    tokens = area(drawn.outline) / HEIGHT * drawn.peak / WIDTH * length
    # The outline is written to a tenth of a unit.
    assert tokens == pytest.approx(sum(span.tokens for span in made), rel=0.01, abs=drawn.peak * length * 1e-3)


def test_running_attempts_have_the_tokens_that_their_shards_tell() -> None:
    running = Span("w", 3, 2, 1000.0, None, None, 0)
    drawn = timeline([running], {(3, 2): 500}, 1010.0)
    assert drawn is not None
    [[bar]] = drawn.lanes.values()
    assert bar.title == "shard 3, attempt 2: running, 500 tokens in 10 s"
    assert drawn.peak == pytest.approx(50)
    assert drawn.ticks == ["0 s", "2.5 s", "5.0 s", "7.5 s", "10 s"]


@pytest.mark.parametrize(("length", "end"), [(0.0, "1 ms"), (0.0042, "4 ms"), (0.25, "250 ms")])
def test_a_time_too_short_for_seconds_has_its_ends_named(length: float, end: str) -> None:
    drawn = timeline([Span("w", 0, 1, 1000.0, 1000.0 + length, "done", 8)], {}, NOW)
    assert drawn is not None
    assert drawn.ticks == ["0 s", end]


@given(st.floats(0, 1e6))
def test_no_two_ticks_are_alike(length: float) -> None:
    drawn = timeline([Span("w", 0, 1, 1000.0, 1000.0 + length, "done", 8)], {}, NOW)
    assert drawn is not None
    assert len(set(drawn.ticks)) == len(drawn.ticks) >= 2


def test_short_attempts_that_ended_alike_are_one_bar() -> None:
    made = [Span("w", n, 1, 1000.0 + n, 1000.9 + n, "done", 10) for n in range(1000)]
    drawn = timeline(made, {}, NOW)
    assert drawn is not None
    assert len(drawn.lanes["w"]) < 100
    assert sum(bar.attempts for bar in drawn.lanes["w"]) == 1000


def test_nothing_is_drawn_of_nothing() -> None:
    assert timeline([], {}, NOW) is None
