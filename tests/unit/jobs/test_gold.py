"""The rule for a correct response, held against itself written plainly."""

from __future__ import annotations

import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.gold import is_correct

PARTS = ["<answer>", "</answer>", "3", "x", " ", "\n", "<answer", "é"]
PIECES = st.lists(st.sampled_from(PARTS), max_size=9).map("".join)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("18", "18"),
        (" 18\n", "18"),
        ("18.0", "18"),
        ("1,000", "1000.00"),
        ("+.5", "0.50"),
        ("-0", "0"),
        ("New \n York", "new york"),
        ("STRASSE", "straße"),
    ],
)
def test_the_same_answer_written_otherwise(answer: str, gold: str) -> None:
    assert is_correct(f"so <answer>{answer}</answer>", gold)


@pytest.mark.parametrize(
    ("response", "gold"),
    [
        ("18", "18"),
        ("", "18"),
        ("<answer>18", "18"),
        ("</answer>18<answer>", "18"),
        ("<answer>18</answer><answer>18</answer>", "18"),
        ("<answer><answer>18</answer>", "18"),
        ("<answer>18</answer></answer>", "18"),
        ("<answer>18 apples</answer>", "18"),
        ("<answer>1,00</answer>", "100"),
        ("<answer>1e2</answer>", "100"),
        ("<answer>nan</answer>", "0"),
        ("<answer>180</answer>", "18"),
        ("<answer></answer>", "18"),
    ],
)
def test_anything_else_is_wrong(response: str, gold: str) -> None:
    assert not is_correct(response, gold)


def test_what_is_no_number_is_compared_as_text() -> None:
    assert is_correct("<answer>NaN</answer>", "nan")
    assert is_correct("<answer></answer>", " ")
    assert not is_correct("<answer>infinity</answer>", "inf")


def plainly(response: str, gold: str) -> bool:
    blocks = re.findall(r"<answer>(.*?)</answer>", response, re.DOTALL)
    if len(blocks) != 1 or response.count("<answer>") != 1 or response.count("</answer>") != 1:
        return False

    def normal(text: str) -> str | Decimal:
        text = " ".join(text.split()).casefold()
        return Decimal(text) if re.fullmatch(r"\d+", text, re.ASCII) else text

    return normal(blocks[0]) == normal(gold)


@given(PIECES, st.sampled_from(["3", "x", "33", "03", ""]))
def test_any_text_is_judged_by_the_rule(response: str, gold: str) -> None:
    assert is_correct(response, gold) == plainly(response, gold)
