"""The same comparison on a CUDA GPU, with the shape of Qwen2.5-1.5B, random weights in bfloat16, and larger batches.

    python -m benchmarks.gpu

Needs torch, transformers and peft beside this repository: no data and no network. Prompts are random tokens of the
lengths of W1's, responses have forced lengths from the same distribution. The roofline: a decode step must read all
weights and the live part of the cache once, at the bandwidth that a large copy reaches here. A table, and one JSON
object as the last line of stdout. Exit code 2 without CUDA, 1 if an output is wrong.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Qwen2ForCausalLM

from benchmarks import limits, machine, models, usual
from benchmarks.sequences import check_lengths, check_results, check_row, given
from benchmarks.workload import LONGEST, G, Workload, response_lengths
from benchmarks.wrong import Wrong
from sequence_processing import GenerationConfig, SequenceProcessor

BATCHES = (64, 128, 256, 512, 1024)  # rows, G of them a prompt
# W1's prompts in tokens; the template that they share comes first.
_PROMPT_TOKENS = (172, 143, 159, 140, 225, 160, 166, 183, 217, 165, 170, 168, 175, 177, 175, 225)
_SHARED_TOKENS = 102
_WARM_TOKENS = 12
_GIB = 2**30


@dataclass(frozen=True)
class Bench:
    """What all batches share. `bandwidth` in bytes a second."""

    model: Any
    tokenizer: Any
    shape: limits.Shape
    bandwidth: float
    runs: int
    with_usual: bool

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)


def workload(rows: int, vocab_size: int) -> Workload:
    """Random prompts of W1's lengths with one prefix in common, G responses each; `rows` in all."""
    rng = random.Random(rows)
    shared = [rng.randrange(vocab_size) for _ in range(_SHARED_TOKENS)]
    lengths = response_lengths(rows // G)
    prompts = []
    for i in range(len(lengths)):
        own = _PROMPT_TOKENS[i % len(_PROMPT_TOKENS)] - _SHARED_TOKENS
        prompts.append(shared + [rng.randrange(vocab_size) for _ in range(own)])
    return Workload(prompts, lengths)


def build(device: str, shape: str, runs: int, with_usual: bool) -> Bench:
    """The model on its device, and the device's bandwidth."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = Qwen2ForCausalLM(models.config(shape)).eval()
    torch.set_default_dtype(torch.float32)
    bandwidth = copy_bandwidth(torch.device(device))
    shaped = limits.Shape.of(model.config, model.dtype.itemsize)
    return Bench(model, models.byte_tokenizer(), shaped, bandwidth, runs, with_usual)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of a copy much larger than any cache."""
    size = 4 * _GIB if device.type == "cuda" else _GIB // 4
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        _wait(device)

    return 2 * size / limits.median_seconds(copy, least=0.5)


def measure(bench: Bench, rows: int) -> dict[str, Any]:
    """One line of the table."""
    work = workload(rows, bench.model.config.vocab_size)
    warm = work.cut(len(work.prompts), _WARM_TOKENS)
    line: dict[str, Any] = {"rows": rows, "tokens": work.tokens, "digest": work.digest}
    generate(bench, warm, seed=0)
    _reset_peak(bench.device)
    timings = [generate(bench, work, seed=100 + run) for run in range(bench.runs)]
    total, decode = (statistics.median(column) for column in zip(*timings, strict=True))
    steps = list(limits.decode_steps(work))
    must_read = sum(limits.step_bytes(step, bench.shape) for step in steps)
    line |= {
        "seconds": total,
        "tok_s": work.tokens / total,
        "peak_gib": _peak_gib(bench.device),
        "step_ms": 1e3 * decode / len(steps),
        "roofline_step_ms": 1e3 * must_read / bench.bandwidth / len(steps),
        "roofline_share": must_read / bench.bandwidth / decode,
    }
    line["teacher_forcing_s"] = statistics.median(teacher_forcing(bench, work, warm))
    if bench.with_usual:
        line |= {"usual": usual_pattern(bench, work, usual.GEN_ROWS), "usual_at_once": usual_pattern(bench, work, rows)}
        line["speed_up"] = _ratio(line["usual"], "seconds", total)
        line["teacher_forcing_speed_up"] = _ratio(line["usual"], "teacher_forcing_s", line["teacher_forcing_s"])
    return line


def generate(bench: Bench, work: Workload, seed: int) -> tuple[float, float]:
    """Seconds of generating with the four quantities, all rows at once: in all, and after the first token."""
    config = GenerationConfig(max_new_tokens=LONGEST, gen_batch_size=len(work.flat_lengths), ignore_eos=True)
    processor = SequenceProcessor(bench.model, bench.tokenizer, config)
    steps: list[float] = []
    begin = time.perf_counter()
    found = list(
        processor.rollouts(
            work.prompts,
            work.G,
            seed=seed,
            max_new_tokens=work.flat_lengths,
            on_step=lambda _tokens, _rows: steps.append(time.perf_counter()),
        )
    )
    end = time.perf_counter()
    found.sort(key=lambda r: (r.prompt_index, r.sample_index))
    check_lengths([len(r.response_ids) for r in found], work)
    for r in found:
        check_row((r.logprobs, r.entropies, r.sampling_logprobs, r.sampling_entropies), len(r.response_ids))
    return end - begin, end - steps[0]


def teacher_forcing(bench: Bench, work: Workload, warm: Workload) -> list[float]:
    """Seconds of measuring given responses without gradient, each run."""
    processor = SequenceProcessor(bench.model, bench.tokenizer)
    vocab_size = bench.model.config.vocab_size
    processor.teacher_force_logprobs(given(warm, vocab_size, bench.device))
    sequences, seconds = given(work, vocab_size, bench.device), []
    for _ in range(bench.runs):
        begin = time.perf_counter()
        results = processor.teacher_force_logprobs(sequences)
        _wait(bench.device)
        seconds.append(time.perf_counter() - begin)
        check_results(results, work)
    return seconds


def usual_pattern(bench: Bench, work: Workload, gen_rows: int) -> dict[str, float] | None:
    """Seconds and peak of the usual pattern, once, after warming up; None if it runs out of memory."""
    try:
        usual.run(bench.model, work.cut(max(1, gen_rows // work.G), _WARM_TOKENS), 0, gen_rows)
        _reset_peak(bench.device)
        rows, generating, measuring = usual.run(bench.model, work, 100, gen_rows)
    except torch.OutOfMemoryError:
        return None
    check_lengths([len(row.response_ids) for row in rows], work)
    return {
        "seconds": generating + measuring,
        "tok_s": work.tokens / (generating + measuring),
        "generate_s": generating,
        "teacher_forcing_s": measuring,
        "peak_gib": _peak_gib(bench.device),
    }


COLUMNS = {
    "rows": lambda line: f"{line['rows']}",
    "tok/s": lambda line: f"{line['tok_s']:,.0f}",
    "usual, 32 rows": lambda line: _speed(line, "usual"),
    "usual, all rows": lambda line: _speed(line, "usual_at_once"),
    "÷ usual": lambda line: _times(line, "speed_up"),
    "step ms": lambda line: f"{line['step_ms']:.2f}",
    "roofline ms": lambda line: f"{line['roofline_step_ms']:.2f}",
    "share": lambda line: f"{line['roofline_share']:.0%}",
    "teacher forcing ÷ usual": lambda line: _times(line, "teacher_forcing_speed_up"),
    "peak GiB": lambda line: f"{line['peak_gib']:.1f}",
}


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown, as the README has it."""
    rows = [list(COLUMNS), ["---:"] * len(COLUMNS)]
    rows += [[cell(line) for cell in COLUMNS.values()] for line in lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("This benchmark needs a CUDA GPU, and torch sees none here; --device cpu --shape tiny tries it out.")
        return 2
    bench = build(options.device, options.shape, options.runs, not options.no_usual)
    about = _described(bench.device)
    print(f"{about['device']}, {bench.bandwidth / 1e9:,.0f} GB/s, torch {about['torch']}, {options.shape}", flush=True)
    lines = []
    try:
        for rows in options.batches:
            lines.append(measure(bench, rows))
            print(f"... {rows} rows", file=sys.stderr, flush=True)
    except Wrong as error:
        print(error, file=sys.stderr)
        return 1
    print(table(lines))
    report = {"machine": about, "shape": options.shape, "bandwidth": bench.bandwidth, "runs": bench.runs}
    print(json.dumps(report | {"batches": lines}))
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu only to try it out")
    parser.add_argument("--shape", choices=models.SHAPES, default="1.5b")
    parser.add_argument("--batches", type=_rows, nargs="+", default=BATCHES, help=f"rows, multiples of {G}")
    parser.add_argument("--runs", type=int, default=3, help="of which the median counts")
    parser.add_argument("--no-usual", action="store_true", help="leave out the usual pattern, which takes minutes")
    return parser.parse_args(arguments)


def _rows(text: str) -> int:
    rows = int(text)
    if rows < G or rows % G:
        raise argparse.ArgumentTypeError(f"{text} rows are no multiple of {G}, the responses of a prompt.")
    return rows


def _described(device: torch.device) -> dict[str, Any]:
    if device.type == "cpu":
        return machine.described() | {"device": platform.machine()}
    return machine.described() | {"device": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        machine.reset_peak()


def _peak_gib(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / _GIB if device.type == "cuda" else machine.peak_gib()


def _ratio(theirs: dict[str, float] | None, name: str, ours: float) -> float | None:
    return None if theirs is None else theirs[name] / ours


def _speed(line: dict[str, Any], name: str) -> str:
    if name not in line:
        return ""
    return "out of memory" if line[name] is None else f"{line[name]['tok_s']:,.0f}"


def _times(line: dict[str, Any], name: str) -> str:
    return f"{line[name]:.1f}×" if line.get(name) is not None else ""


if __name__ == "__main__":
    sys.exit(main())
