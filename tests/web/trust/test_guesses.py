"""Who has to wait after wrong tokens, and who never does. The clock is made up."""

from __future__ import annotations

import pytest

from tests.clock import Clock
from webui.guesses import ALL_REGAINED_IN, REGAINED_IN, TRIES, TRIES_IN_ALL, Guesses


def add(guesses: Guesses, address: str, count: int) -> None:
    for _ in range(count):
        guesses.add(address)


def test_a_few_tries_and_then_one_every_so_often(clock: Clock) -> None:
    guesses = Guesses(clock)
    for _ in range(TRIES):
        assert guesses.wait("192.0.2.1") == 0
        guesses.add("192.0.2.1")
    assert guesses.wait("192.0.2.1") == REGAINED_IN
    assert guesses.wait("192.0.2.2") == 0
    clock.now += REGAINED_IN
    assert guesses.wait("192.0.2.1") == 0
    guesses.add("192.0.2.1")
    assert guesses.wait("192.0.2.1") == REGAINED_IN
    clock.now += 1000 * REGAINED_IN
    add(guesses, "192.0.2.1", TRIES - 1)
    assert guesses.wait("192.0.2.1") == 0


def test_while_many_guess_each_has_one_try_and_a_newcomer_has_his(clock: Clock) -> None:
    guesses = Guesses(clock)
    for number in range(TRIES_IN_ALL):
        guesses.add(f"198.51.100.{number}")
    assert guesses.wait("198.51.100.1") == REGAINED_IN
    assert guesses.wait("192.0.2.1") == 0
    clock.now += TRIES_IN_ALL * ALL_REGAINED_IN
    guesses.add("198.51.100.1")
    assert guesses.wait("198.51.100.1") == 0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("", "testclient", False),
    ],
)
def test_who_counts_as_one(clock: Clock, one: str, other: str, same: bool) -> None:
    guesses = Guesses(clock)
    add(guesses, one, TRIES)
    assert (guesses.wait(other) > 0) is same


def test_memory_is_bounded_and_the_last_are_kept(clock: Clock) -> None:
    guesses = Guesses(clock)
    for number in range(20_000):
        guesses.add(f"10.0.{number // 256}.{number % 256}")
    assert len(guesses._by_address) == 10_000
    assert guesses.wait("10.0.78.31") > 0
