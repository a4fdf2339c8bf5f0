"""Where the time of `generate` goes: W1 once, each call of a kernel timed, and the rest by what surrounds it.

    python -m benchmarks.profile                    # at Qwen2.5-0.5B's shape
    python -m benchmarks.profile --model tiny-arithmetic

Products are told apart by their shape: the head is the one with as many outputs as the vocabulary has. The timers cost
a microsecond a call, so a small model looks a little slower than it is.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import core, machine, measures
from sequence_processing.native.decoder import NativeDecoder
from sequence_processing.native.ops import Kernels
from sequence_processing.rollout import Engine

_KERNELS = ("rms_norm", "rotate", "gated_silu", "put_tokens", "attention", "sample_rows")


class Clock:
    """Seconds by name, and how often each was entered. A name inside another counts in both."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def timed(self, function: Callable[..., Any], name: Callable[..., str]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                called = name(*args, **kwargs)
                self.seconds[called] += time.perf_counter() - start
                self.calls[called] += 1

        return run


@contextmanager
def watched(clock: Clock, vocab_size: int) -> Iterator[None]:
    """Inside, every kernel, decode step and prefill is timed by `clock`."""

    def product(_kernels: Kernels, _x: Any, weight: Any, *_args: Any, **_kwargs: Any) -> str:
        return "head" if weight.shape[0] == vocab_size else "linear"

    wanted = [(Kernels, name, lambda *_args, kernel=name, **_kwargs: kernel) for name in _KERNELS]
    wanted += [(Kernels, "linear", product)]
    wanted += [(NativeDecoder, "step", lambda *_: "decode steps"), (NativeDecoder, "add", lambda *_: "prefill")]
    wanted += [(Engine, "draw", lambda *_: "draws")]
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in wanted]
    for owner, name, of in wanted:
        setattr(owner, name, clock.timed(getattr(owner, name), of))
    try:
        yield
    finally:
        for owner, name, function in kept:
            setattr(owner, name, function)


def profile(case: measures.Case) -> dict[str, Any]:
    """Seconds of one run over the case's workload, by what they went to."""
    model, tokenizer = measures.load(case.name)
    run = measures.generation("default", model, tokenizer, case)
    run(measures.warm(case.workload), 0)
    clock = Clock()
    with watched(clock, model.config.vocab_size):
        start = time.perf_counter()
        run(case.workload, 100)
        total = time.perf_counter() - start
    return {"total": total, "seconds": dict(clock.seconds), "calls": dict(clock.calls)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=["halfb", "tiny", "tiny-arithmetic"], default="halfb")
    parser.add_argument("--quick", action="store_true", help="a few tokens, to see that everything works")
    options = parser.parse_args(arguments)
    case = core.Session(options.model, quick=options.quick).case(options.model)
    found = profile(case)
    total, seconds, calls = found["total"], found["seconds"], found["calls"]
    inside = sum(seconds.get(name, 0.0) for name in (*_KERNELS, "linear", "head"))
    table = Table(title=f"{case.workload.tokens:,} tokens in {total:.2f} s", title_justify="left")
    for column in ("", "seconds", "share", "calls"):
        table.add_column(column, justify="left" if not column else "right")
    for name in sorted((*_KERNELS, "linear", "head"), key=lambda name: -seconds.get(name, 0.0)):
        table.add_row(
            name, f"{seconds.get(name, 0.0):.2f}", f"{seconds.get(name, 0.0) / total:.1%}", f"{calls.get(name, 0):,}"
        )
    table.add_row("Python and the rest", f"{total - inside:.2f}", f"{(total - inside) / total:.1%}", "")
    table.add_section()
    for name in ("decode steps", "prefill", "draws"):
        table.add_row(f"of all: {name}", f"{seconds[name]:.2f}", f"{seconds[name] / total:.1%}", f"{calls[name]:,}")
    Console(width=None if sys.stdout.isatty() else 100).print(table)
    print(json.dumps({"machine": machine.described(), "model": options.model, **found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
