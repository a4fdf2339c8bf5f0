"""The whole state of a list is in its URL."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import URL, QueryParams

from jobs.errors import UsageError
from jobs.paging import cursor
from jobs.states import JobState
from webui.pages.query import Query

TEXT = st.text(max_size=20).map(str.strip).filter(lambda text: text.encode("utf-8", "ignore").decode() == text)
STATES = st.lists(st.sampled_from(JobState), unique=True).map(tuple)
IDS = st.text("0123456789abcdef", min_size=1, max_size=64)
PLACES = st.tuples(st.floats(0, 4e9).map(lambda moment: round(moment, 6)), IDS)


@given(st.builds(Query, STATES, *[TEXT] * 5), st.none() | PLACES)
def test_a_url_says_all_of_it(query: Query, place: tuple[float, str] | None) -> None:
    before = "" if place is None else cursor(place)
    again = Query.of(QueryParams(URL(query.url(before=before)).query))
    assert again == Query.of(QueryParams(URL(again.url(before=before)).query))
    assert again.url() == query.url(), "another page begins anew"
    assert again.filters == query.filters
    assert again.place == place


def test_states_are_toggled() -> None:
    both = Query().toggled(JobState.FAILED), Query(state=(JobState.FAILED,)).toggled(JobState.QUEUED)
    assert both == ("/jobs?state=failed", "/jobs?state=failed&state=queued")
    assert Query(state=(JobState.FAILED,), q="a").toggled(JobState.FAILED) == "/jobs?q=a"


def test_a_label_with_and_without_a_value() -> None:
    assert Query(label="run").filters["label"] == ("run", None)
    assert Query(label="run=").filters["label"] == ("run", "")
    assert Query(label="a=b=c").filters["label"] == ("a", "b=c")


@pytest.mark.parametrize(
    ("query", "said"), [("state=odd", "states are queued, running"), ("before=1e5-x", "no page begins")]
)
def test_what_makes_no_sense_is_said(query: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Query.of(QueryParams(query))
