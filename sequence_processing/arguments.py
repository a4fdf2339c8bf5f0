"""What a call was given, checked: `ValueError` with a sentence, or a value to go on with."""

import logging
import secrets
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch.distributed as dist

from sequence_processing.config import check_whole
from sequence_processing.prompts import Prompt

log = logging.getLogger(__name__)


def as_list(prompts: Iterable[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        raise ValueError("prompts must be a list of prompts, not one string; write [prompt].")
    if not isinstance(prompts, Iterable):
        raise ValueError(f"prompts must be a list of prompts, not {prompts!r:.80}.")
    return list(prompts)


def checked_pairs(pairs: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    for i, pair in enumerate(pairs):
        if not (isinstance(pair, list | tuple) and len(pair) == 2):
            raise ValueError(f"Pair {i} must be (prompt, response), not {pair!r:.80}.")
        yield pair[0], pair[1]


def prompt_keys_of(count: int, given: Sequence[int] | None) -> list[int]:
    """Given keys, or the index, offset by the rank so that ranks with equal seeds draw differently."""
    if given is None:
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        return [(rank << 32) + i for i in range(count)]
    if not isinstance(given, Iterable):
        raise ValueError(f"prompt_keys must be a list of whole numbers, one a prompt, not {given!r:.80}.")
    keys = [check_whole(f"prompt_keys[{i}]", key) for i, key in enumerate(given)]
    if len(keys) != count:
        raise ValueError(f"prompt_keys has {len(keys)} keys for {count} prompts; give one integer a prompt.")
    return keys


def seed_of(given: int | None) -> int:
    """The given seed, or a fresh one that stands in the log."""
    if given is not None:
        return check_whole("seed", given)
    fresh = secrets.randbits(32)
    log.info("No seed was given; drawing with seed=%d.", fresh)
    return fresh
