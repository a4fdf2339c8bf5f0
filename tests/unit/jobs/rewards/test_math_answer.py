"""`math_answer` on answers whose verdict anybody can check, and `tag_format` on the template's own responses."""

from __future__ import annotations

from fractions import Fraction

import pytest

from jobs.rewards.math_answer import math_answer
from jobs.rewards.tag_format import tag_format
from rlp_datasets.template import r1_response


def verdict(given: str, gold: str | None) -> float | None:
    return math_answer({"response": f"thinking </think> <answer> {given} </answer>", "answer": gold})


@pytest.mark.parametrize(
    ("given", "gold"),
    [
        ("4", "4"),
        ("4.0", "4"),
        ("+4.", "4"),
        ("1,000", "1000"),
        ("1 000", "1000"),
        ("$18", "18"),
        ("18 dollars", "18"),
        ("5 km", "5"),
        ("0.5", "1/2"),
        (r"\frac{1}{2}", "0.5"),
        (r"$\frac{2}{4}$", "1/2"),
        (r"\boxed{1/2}", "0.5"),
        ("50%", "0.5"),
        ("50%", "50"),
        ("2+2", "4"),
        (r"10^{2}", "100"),
        (r"\sqrt{8}", r"2\sqrt{2}"),
        ("(x-1)(x+1)", "x^2-1"),
        ("x = 3", "3"),
        (r"\{2, 1\}", r"\{1, 2\}"),
        (" Paris\n", "paris"),
        ("(B)", "(b)"),
    ],
)
def test_the_same(given: str, gold: str) -> None:
    assert verdict(given, gold) == 1.0


@pytest.mark.parametrize(
    ("given", "gold"),
    [
        ("5", "4"),
        ("-4", "4"),
        ("0.333", "1/3"),
        (r"\frac{1}{3}", "0.5"),
        ("(2, 1)", "(1, 2)"),
        ("", "4"),
        ("I do not know", "4"),
        ("3 or 4", "4"),
        ("London", "Paris"),
        ("silent", "listen"),
        ("4", "four"),
        ("__import__('os')", "4"),
        ("18 dollars", "19"),
    ],
)
def test_not_the_same(given: str, gold: str) -> None:
    assert verdict(given, gold) == 0.0


def test_fractions_against_exact_arithmetic() -> None:
    """Every fraction of small numbers against every other; the reference is Python's own."""
    shown = [(f"{a}/{b}", rf"\frac{{{a}}}{{{b}}}", Fraction(a, b)) for a in range(1, 6) for b in range(1, 6)]
    for plain, _, gold in shown:
        for _, latex, given in shown:
            assert verdict(latex, plain) == float(given == gold), (latex, plain)


@pytest.mark.parametrize(
    "response",
    ["", "4", "<answer>4", "4</answer>", "</answer>4<answer>", "<answer>4</answer><answer>4</answer>"],
)
def test_exactly_one_block(response: str) -> None:
    assert math_answer({"response": response, "answer": "4"}) == 0.0


def test_what_cannot_be_judged() -> None:
    assert verdict("4", None) is None, "there is no gold answer"
    assert math_answer({"response": None, "answer": "4"}) == 0.0
    assert verdict("4", "???") is None, "the gold answer is no mathematics, and no word"


def test_the_form() -> None:
    good = r1_response("9+1=10", "4")
    assert tag_format({"response": good}) == 1.0
    assert tag_format({"response": "<think>" + good + "\n"}) == 1.0
    spoiled = [
        "",
        "<answer>4</answer>",
        good + " So it is 4.",
        good + good,
        good.replace("</think>", ""),
        good.replace("</think>", "</think> so"),
        "<think><think>" + good,
        good.replace("<answer>", "<answer><answer>"),
    ]
    assert [tag_format({"response": response}) for response in spoiled] == [0.0] * len(spoiled)
