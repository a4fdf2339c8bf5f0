"""Hostile characters are taken out, or marked one by one."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from jobs.text import clean, marked

ANY = st.text(st.characters(exclude_categories=[]) | st.sampled_from("\x00\x1b\r\n\t\x85\u202e\u2066\u2028\ud800"))


@given(ANY)
def test_a_mark_stands_for_each_character_that_is_taken_out(text: str) -> None:
    shown, kept = marked(text), clean(text)
    assert len(shown) == len(text)
    assert all(a == b or unicodedata.category(b) == "So" or b == "?" for a, b in zip(text, shown, strict=True))
    assert clean(shown) == shown
    assert len(text) - len(kept) == sum(a != b for a, b in zip(text, shown, strict=True) if b != "?")


def test_controls_have_pictures_of_their_own() -> None:
    assert marked("a\x1b[2J\x07\u202eb\n\tc") == "a␛[2J␇\ufffdb\n\tc"
