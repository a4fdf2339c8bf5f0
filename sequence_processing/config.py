"""How to sample and in what batches. Knows no model.

Both batch sizes count rows: one prompt, one sample; "auto" takes as many as the device has memory for (`memory.py`).
They change speed and memory, never which tokens are drawn.
"""

import math
import operator
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Literal, SupportsIndex, TypeAlias, cast, get_args

from sequence_processing.diagnostics import NAMES

BatchSize: TypeAlias = int | Literal["auto"]
HeadDtype: TypeAlias = Literal["auto", "float32", "float64"]


@dataclass
class GenerationConfig:
    """Sampling and batching parameters; `ValueError` with one sentence if a value is out of range.

    `deterministic`: a row's arithmetic depends on that row alone, and its tokens are the same bit for bit whatever the
    batch sizes, order and neighbours. Where no batch can promise that, rows go one at a time, which is slow.
    """

    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0  # nucleus mass, in (0, 1]
    max_new_tokens: int = 200  # 0 gives empty responses
    do_sample: bool = True  # False is greedy
    gen_batch_size: BatchSize = 32
    tf_batch_size: BatchSize = 64
    stop_strings: Sequence[str] = ("</answer>",)
    ignore_eos: bool = False  # decode on through EOS, to max_new_tokens or a stop string
    deterministic: bool = False
    head_dtype: HeadDtype = "auto"  # float32: the head's product is never rounded through a narrower type; slower
    diagnostics: Sequence[str] = ()  # of each token, beside the four quantities: names of `diagnostics.NAMES`
    top_k_alternatives: int = 0  # of each token, the most probable ones: `top_ids` and `top_logprobs`

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Raise `ValueError` naming the first field that is out of range. Fields may be set after construction."""
        if not (_is_number(self.temperature) and math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature must be a finite number, 0 or more, not {self.temperature!r}.")
        if not (_is_number(self.top_p) and 0 < self.top_p <= 1):
            raise ValueError(f"top_p must lie in (0, 1], not {self.top_p!r}; 1 keeps every token.")
        check_count("max_new_tokens", self.max_new_tokens, least=0)
        check_batch_size("gen_batch_size", self.gen_batch_size)
        check_batch_size("tf_batch_size", self.tf_batch_size)
        strings: object = self.stop_strings
        listed = isinstance(strings, Collection) and not isinstance(strings, str)
        if not (listed and all(isinstance(s, str) and s for s in self.stop_strings)):
            raise ValueError(f"stop_strings must be a list of non-empty strings, not {strings!r}; () for none.")
        if self.head_dtype not in get_args(HeadDtype):
            raise ValueError(f"head_dtype must be 'auto', 'float32' or 'float64', not {self.head_dtype!r:.80}.")
        check_diagnostics(self.diagnostics)
        check_count("top_k_alternatives", self.top_k_alternatives, least=0)


def check_diagnostics(names: object) -> tuple[str, ...]:
    """`names` as diagnostics, each once; `ValueError` naming the first that is none."""
    listed = isinstance(names, Iterable) and not isinstance(names, str)
    given = tuple(cast(Iterable[str], names)) if listed else ()
    wrong = [name for name in given if name not in NAMES] if listed else [names]
    if wrong:
        raise ValueError(f"diagnostics must be a list of {', '.join(NAMES)}; not {wrong[0]!r:.80}.")
    return tuple(dict.fromkeys(given))


def check_batch_size(name: str, value: object) -> BatchSize:
    """`value` as "auto" or an int of at least 1; `ValueError` naming it otherwise."""
    if isinstance(value, str) and value == "auto":
        return "auto"
    number = whole(value)
    if number is None or number < 1:
        raise ValueError(f"{name} must be a whole number, 1 or more, or 'auto', not {value!r:.80}.")
    return number


def check_count(name: str, value: object, least: int = 1) -> int:
    """`value` as an int of at least `least`; `ValueError` naming it otherwise."""
    number = whole(value)
    if number is None or number < least:
        raise ValueError(f"{name} must be a whole number, {least} or more, not {value!r:.80}.")
    return number


def check_limits(max_new_tokens: object, prompts: int, G: int) -> list[int]:
    """The most new tokens of each of prompts x G rows, given once, by prompt or by row; `ValueError` otherwise."""
    number = whole(max_new_tokens)
    if number is None and not isinstance(max_new_tokens, Iterable):
        raise ValueError(f"max_new_tokens must be a whole number, or a list of them, not {max_new_tokens!r:.80}.")
    limits = [number] * prompts if number is not None else list(cast(Iterable[int], max_new_tokens))
    if len(limits) == prompts:
        limits = [limit for limit in limits for _ in range(G)]
    if len(limits) != prompts * G:
        raise ValueError(
            f"max_new_tokens has {len(limits)} values for {prompts} prompts with {G} responses each; give one "
            "number, one a prompt, or one a response."
        )
    return [check_count("max_new_tokens", limit, least=0) for limit in limits]


def check_whole(name: str, value: object) -> int:
    """`value` as an int of any sign; `ValueError` naming it otherwise."""
    number = whole(value)
    if number is None:
        raise ValueError(f"{name} must be a whole number, not {value!r:.80}.")
    return number


def whole(value: object) -> int | None:
    """`value` as an int if it is an integer of Python, NumPy or torch; None for anything else, as True and 1.0."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(cast(SupportsIndex, value))
    except TypeError:
        return None


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
