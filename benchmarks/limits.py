"""What the machine itself can do, and the time below which no program can take it.

A floor counts the model's own products at the best rate that any of them reached, and the memory that a decode step
must read at the best bandwidth: a step takes the larger of the two. No padding, no sampling, no Python.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch.nn.functional import linear

from benchmarks.workload import Workload

# Rows, inputs and outputs of the products of a model of `halfb`'s shape.
_PRODUCTS = [
    *((n, 896, 4864) for n in (1, 16, 32, 64, 128, 512, 2048)),
    *((n, 4864, 896) for n in (128, 2048)),
    (128, 896, 896),
    *((n, 896, 151936) for n in (1, 32, 128, 512)),
]
_GIB = 2**30

Median: TypeAlias = Callable[[Callable[[], Any]], float]  # seconds of a call


@dataclass(frozen=True)
class Shape:
    """What of a dense decoder-only model decides its cost."""

    body: int  # parameters of the layers' products
    head: int  # parameters of the product with the vocabulary
    kv_numbers: int  # numbers in the cache for each token
    attention: int  # operations for each (query, token in the cache)
    itemsize: int  # bytes of a number

    @classmethod
    def of(cls, config: Any, itemsize: int) -> Shape:
        """From a Llama-like transformers config (three MLP products)."""
        hidden, layers = config.hidden_size, config.num_hidden_layers
        width = hidden // config.num_attention_heads
        kv = config.num_key_value_heads * width
        layer = hidden * (hidden + 2 * kv) + hidden * hidden + 3 * hidden * config.intermediate_size
        return cls(
            body=layers * layer,
            head=config.vocab_size * hidden,
            kv_numbers=2 * layers * kv,
            attention=4 * layers * config.num_attention_heads * width,
            itemsize=itemsize,
        )


@dataclass(frozen=True)
class Step:
    """One decode step over all rows that are still live."""

    rows: int
    attended: int  # (query, token in the cache) pairs
    cached: int  # tokens whose keys and values are read, those of a prompt once for all its rows


def decode_steps(workload: Workload) -> Iterator[Step]:
    """The steps after the prefill, which gives each row its first token, with no row waiting for another."""
    for t in range(1, max(workload.flat_lengths)):
        live = [(len(p), sum(n > t for n in g)) for p, g in zip(workload.prompts, workload.lengths, strict=True)]
        yield Step(
            rows=sum(rows for _, rows in live),
            attended=sum(rows * (prompt + t) for prompt, rows in live),
            cached=sum(prompt + rows * t for prompt, rows in live if rows),
        )


def step_bytes(step: Step, shape: Shape) -> int:
    """Memory that a decode step must read: all weights, and the cache."""
    return (shape.body + shape.head + step.cached * shape.kv_numbers) * shape.itemsize


def step_flops(step: Step, shape: Shape) -> int:
    return 2 * step.rows * (shape.body + shape.head) + step.attended * shape.attention


def generation_floor(workload: Workload, shape: Shape, flops: float, bandwidth: float) -> float:
    """Seconds for prefilling each prompt once and decoding all rows together."""
    prefill = sum(
        2 * shape.body * len(p) + shape.attention * len(p) ** 2 / 2 + 2 * shape.head for p in workload.prompts
    )
    steps = decode_steps(workload)
    decode = sum(max(step_flops(s, shape) / flops, step_bytes(s, shape) / bandwidth) for s in steps)
    return prefill / flops + decode


def teacher_forcing_floor(workload: Workload, shape: Shape, flops: float) -> float:
    """Seconds for the products of measuring given responses, each prompt computed once."""
    operations = 0.0
    for prompt, group in zip(workload.prompts, workload.lengths, strict=True):
        p = len(prompt)
        operations += 2 * shape.body * p + shape.attention * p * p / 2
        operations += sum(2 * (shape.body + shape.head) * n + shape.attention * n * (p + n / 2) for n in group)
    return operations / flops


def measure(seconds_each: float = 0.4, gib: float = 1.0, calls: int = 9) -> dict[str, Any]:
    """Best rates of this CPU: operations a second by dtype, GB/s, and all that was tried.

    `gib`: memory that is streamed at a time; enough to be larger than every cache. Each rate is the median of at least
    `calls` calls and `seconds_each`.
    """
    median = partial(median_seconds, least=seconds_each, calls=calls)
    products = {str(dtype)[6:]: _products(dtype, median) for dtype in (torch.bfloat16, torch.float32)}
    streams = {**_streams(int(gib * _GIB), median), **_sweep(int(gib * _GIB), median)}
    return {
        "flops": {dtype: max(rates.values()) for dtype, rates in products.items()},
        "bandwidth": max(streams.values()),
        "products_flops": products,
        "streams_bytes_s": streams,
    }


def median_seconds(call: Callable[[], Any], least: float, calls: int = 9) -> float:
    """Median seconds of single calls, over at least `calls` of them and `least` seconds, after one for warming up."""
    call()
    taken: list[float] = []
    end = time.perf_counter() + least
    while len(taken) < calls or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return sorted(taken)[len(taken) // 2]


def _products(dtype: torch.dtype, median: Median) -> dict[str, float]:
    rates = {}
    for n, k, m in _PRODUCTS:
        x, weight = torch.randn(n, k, dtype=dtype), torch.randn(m, k, dtype=dtype)
        rates[f"[{n},{k}]x[{k},{m}]"] = 2 * n * k * m / median(lambda x=x, w=weight: linear(x, w))
    return rates


def _streams(size: int, median: Median) -> dict[str, float]:
    source, target = torch.ones(size // 4), torch.empty(size // 4)
    return {
        "copy": 2 * size / median(lambda: target.copy_(source)),
        "read": size / median(source.sum),
    }


def _sweep(size: int, median: Median) -> dict[str, float]:
    """Bytes a second of streaming distinct weights through products, as a decode step does: plain, and packed."""
    weights = [torch.randn(4864, 896).to(torch.bfloat16) for _ in range(max(1, size // (4864 * 896 * 2)))]
    ways: dict[str, tuple[list[torch.Tensor], Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]]
    ways = {"plain": (weights, linear)}
    if torch.backends.mkldnn.is_available():
        packed = [torch.ops.mkldnn._reorder_linear_weight(w, 128) for w in weights]
        ways["packed"] = (packed, lambda x, w: torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], ""))
    rates = {}
    for rows in (1, 8, 32, 64, 128):
        x = torch.randn(rows, 896).to(torch.bfloat16)
        for name, (ws, product) in ways.items():
            seconds = median(lambda x=x, ws=ws, f=product: [f(x, w) for w in ws])
            rates[f"{name} products, {rows} rows"] = len(weights) * weights[0].nbytes / seconds
    return rates
