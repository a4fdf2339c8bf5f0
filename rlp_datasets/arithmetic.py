"""`arithmetic_r1_template`: generated word problems with one or two additions and subtractions of numbers to 99.

Invariants
- A problem is a pure function of (stream, index): the same on every machine and Python, in any order of access.
- Train and test are disjoint: a hash of the numbers and operations, whatever their order, assigns a problem to one
  of them, so that no test problem stands in train, not even with its summands exchanged.
- No operation goes below zero. Every problem of test has another (numbers, operations).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import overload

from .example import Example
from .registry import check_split, register_dataset
from .template import r1_prompt

LARGEST = 99
SIZES = {"train": 100_000, "test": 2_000}
_TEST_SHARE = 10  # one in so many (numbers, operations) belongs to test


@dataclass(frozen=True)
class _Story:
    """Sentences around the numbers; `start`, then one of `plus` or `minus` for each operation, then `ask`."""

    start: str
    plus: tuple[str, ...]
    minus: tuple[str, ...]
    ask: str


_STORIES = (
    _Story(
        "{who} has {n} {what}",
        ("buys {n} more", "finds {n} more", "gets {n} more"),
        ("gives away {n}", "loses {n}", "sells {n}"),
        "How many {what} does {who} have now?",
    ),
    _Story(
        "A shop has {n} {what}",
        ("orders {n} more", "gets {n} more"),
        ("sells {n}", "sends back {n}"),
        "How many {what} are left in the shop?",
    ),
    _Story(
        "A bus carries {n} people",
        ("takes on {n} more", "picks up {n}"),
        ("lets off {n}", "drops {n}"),
        "How many people are on the bus?",
    ),
)
_NAMES = ("Ann", "Ben", "Eva", "Leo", "Mia", "Sam", "Tom", "Zoe")
_THINGS = ("apples", "books", "cards", "coins", "eggs", "pens", "shells", "stamps")


@dataclass(frozen=True)
class Problem:
    """`numbers[0] operations[0] numbers[1] operations[1] …`, worked from left to right.

    verbs: what the story calls each operation, as in `buys`. question: the whole story.
    """

    numbers: tuple[int, ...]
    operations: str
    verbs: tuple[str, ...]
    question: str

    @property
    def answer(self) -> int:
        return _results(self.numbers, self.operations)[-1]

    def reasoning(self, slip: Callable[[int], int] = lambda digit: digit) -> tuple[str, int]:
        """The steps in words, and the answer they lead to.

        Each operation is named by its verb and worked digit by digit, ones first, a carry or borrow as `+1` or `-1`:
        `47. buys 38: 7+8=15, 4+3+1=8, so 85.` `slip` may write a larger ones digit than is right; what follows
        builds on it.
        """
        total = self.numbers[0]
        steps = [f"{total}."]
        for operation, verb, number in zip(self.operations, self.verbs, self.numbers[1:], strict=True):
            (rest, ones), (other_rest, other_ones) = divmod(total, 10), divmod(number, 10)
            if operation == "+":
                carry, digit = divmod(ones + other_ones, 10)
                digit = slip(digit)
                low, high = f"{ones}+{other_ones}={10 * carry + digit}", rest + other_rest + carry
            else:
                carry = int(ones < other_ones)
                digit = slip(10 * carry + ones - other_ones)
                low, high = f"{10 * carry + ones}-{other_ones}={digit}", rest - other_rest - carry
            tens = f"{rest}{operation}{other_rest}{f'{operation}1' * carry}={high}"
            total = 10 * high + digit
            steps.append(f"{verb} {number}: {low}, {tens}, so {total}.")
        return " ".join(steps), total


class _Dice:
    """Throws that are a pure function of a name. (`random` promises no stable `choice` across Python versions.)"""

    def __init__(self, name: str) -> None:
        self._number = _digest(name)

    def __call__(self, sides: int) -> int:
        self._number, face = divmod(self._number, sides)
        return face


def _digest(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=32).digest(), "big")


def _results(numbers: Sequence[int], operations: str) -> list[int]:
    results = [numbers[0]]
    for operation, number in zip(operations, numbers[1:], strict=True):
        results.append(results[-1] + number if operation == "+" else results[-1] - number)
    return results


def split_of(numbers: Sequence[int], operations: str) -> str:
    """The split, "train" or "test", that problems with these numbers and operations, in any order, belong to."""
    name = f"{sorted(numbers)} {''.join(sorted(operations))}"
    return "train" if _digest(name) % _TEST_SHARE else "test"


def _problem(stream: str, index: int, split: str) -> Problem:
    """The problem that stands at `index` of the endless stream named `stream`, restricted to `split`."""
    attempts = count()
    while True:
        dice = _Dice(f"{stream}/{index}/{next(attempts)}")
        length = 1 + dice(2)
        numbers = tuple(1 + dice(LARGEST) for _ in range(length + 1))
        operations = "".join("+-"[dice(2)] for _ in range(length))
        if min(_results(numbers, operations)) >= 0 and split_of(numbers, operations) == split:
            return _tell(numbers, operations, dice)


def _tell(numbers: tuple[int, ...], operations: str, dice: _Dice) -> Problem:
    story = _STORIES[dice(len(_STORIES))]
    words = {"who": _NAMES[dice(len(_NAMES))], "what": _THINGS[dice(len(_THINGS))]}
    phrases: list[str] = []
    for operation in operations:
        fresh = [phrase for phrase in (story.plus if operation == "+" else story.minus) if phrase not in phrases]
        phrases.append(fresh[dice(len(fresh))])
    parts = [story.start, *phrases]
    told = [part.format(n=number, **words) for part, number in zip(parts, numbers, strict=True)]
    question = f"{', '.join(told[:-1])} and {told[-1]}. {story.ask.format(**words)}"
    return Problem(numbers, operations, tuple(phrase.partition(" {n}")[0] for phrase in phrases), question)


def training_problems(seed: int) -> Iterator[Problem]:
    """Endless problems of the train side; never one of test's (numbers, operations)."""
    for index in count():
        yield _problem(f"training {seed}", index, "train")


class ArithmeticDataset(Sequence[Example]):
    """The problems of one split as examples, made when they are asked for."""

    def __init__(self, split: str) -> None:
        self.split = split

    def __len__(self) -> int:
        return SIZES[self.split]

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = range(len(self))[index]  # negative and out of range as for a list
        problem = _test_problems()[position] if self.split == "test" else _problem("dataset", position, "train")
        meta = {"numbers": list(problem.numbers), "operations": problem.operations}
        return Example(r1_prompt(problem.question), problem.question, str(problem.answer), meta)


@cache
def _test_problems() -> tuple[Problem, ...]:
    """The test problems, the first of each (numbers, operations)."""
    found: dict[tuple[tuple[int, ...], str], Problem] = {}
    for index in count():
        problem = _problem("dataset", index, "test")
        found.setdefault((tuple(sorted(problem.numbers)), "".join(sorted(problem.operations))), problem)
        if len(found) == SIZES["test"]:
            break
    return tuple(found.values())


@register_dataset("arithmetic_r1_template")
def arithmetic_r1_template(split: str = "train") -> ArithmeticDataset:
    """Word problems of `split` ("train", "test"); `meta` holds `numbers` and `operations`.

    Raises UnknownSplitError for any other split.
    """
    check_split("arithmetic_r1_template", split, SIZES)
    return ArithmeticDataset(split)
