"""What is measured, each function in a process of its own, so that the peak of memory is its own as well.

Each loads its model, warms up on a cut-down workload, and returns a plain dict. All raise `Wrong` if what came out is
not what was asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tokenizers import Tokenizer
from transformers.utils import logging as transformers_logging

from benchmarks import limits, machine, models, usual
from benchmarks.sequences import check_lengths, check_results, given
from benchmarks.workload import LONGEST, Workload, w1
from benchmarks.wrong import Wrong
from rlp_datasets import DATASET_REGISTRY
from sequence_processing import BatchedSequences, GenerationConfig, SequenceProcessor, distribution, load_model
from sequence_processing.diagnostics import NAMES

GEN_ROWS = 128  # all of W1 at once
HEAD_TOKENS = 4096
# The head does not know how deep the body is; under 24 layers' activations the naive logits would not fit 24 GB.
_HEAD_LAYERS = 4
_WARM_PROMPTS, _WARM_TOKENS = 4, 12
_GSM8K_ROWS = {"train": 7473, "test": 1319}
_PACKAGED = "tiny-arithmetic"
# Ways to generate, as what they change of the configuration.
WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "nucleus": {"temperature": 0.8, "top_p": 0.95},
    "deterministic": {"deterministic": True},
    "unmeasured": {},
    "diagnosed": {"diagnostics": NAMES, "top_k_alternatives": 5},
    "diagnosed nucleus": {"temperature": 0.8, "top_p": 0.95, "diagnostics": NAMES, "top_k_alternatives": 5},
}


@dataclass(frozen=True)
class Case:
    """A model and its workload. `name` is what `load_model` takes."""

    name: str
    workload: Workload
    published_data: bool  # the whole GSM8K, not a stand-in
    stop_string: str = "</answer>"


def prepare(model: str, cache: Path, quick: bool) -> Case:
    """The case of `model`: a shape of `models.SHAPES`, made if it is not in `cache` yet, or tiny-arithmetic.

    Raises what reading GSM8K raises (`rlp_datasets`), one sentence.
    """
    gsm8k = {split: DATASET_REGISTRY["gsm8k_r1_template"](split=split) for split in _GSM8K_ROWS}
    published = all(len(gsm8k[split]) == rows for split, rows in _GSM8K_ROWS.items())
    questions = [example.question for example in gsm8k["test"]]
    if model == _PACKAGED:
        tokenizer = load(model)[1]
        # It was trained to write "</answer>"; a string that it cannot write keeps the watch and the forced lengths.
        case = Case(model, w1(questions, lambda text: tokenizer(text)["input_ids"]), published, "§</answer>")
    else:
        texts = [f"{e.question}\n{e.meta['solution']}" for split in gsm8k.values() for e in split]
        folder = models.folder(model, cache, texts)
        # By the file itself: transformers would cut text at other places, as it does for every model called Qwen2.
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        case = Case(str(folder), w1(questions, lambda text: tokenizer.encode(text).ids), published)
    return replace(case, workload=case.workload.cut(2, 4)) if quick else case


def ceilings(quick: bool) -> dict[str, Any]:
    """`limits.measure()` of this machine."""
    return limits.measure(seconds_each=0.0, gib=0.03, calls=1) if quick else limits.measure()


def shape(case: Case) -> dict[str, Any]:
    """The model's `limits.Shape`, and its dtype."""
    model, _ = load(case.name)
    return {"shape": limits.Shape.of(model.config, model.dtype.itemsize), "dtype": str(model.dtype)[6:]}


def usual_pattern(case: Case, runs: int) -> dict[str, Any]:
    """Both passes of the usual pattern on 32 rows, `tf_batch_size` 8. Medians of seconds."""
    model, _ = load(case.name)
    usual.run(model, warm(case.workload), seed=0)
    halves: list[tuple[float, float]] = []

    def run(number: int) -> None:
        rows, generating, measuring = usual.run(model, case.workload, seed=100 + number)
        check_lengths([len(row.response_ids) for row in rows], case.workload)
        halves.append((generating, measuring))

    machine.reset_peak()
    timing = machine.timed({"usual": run}, runs)["usual"]
    generate_s, teacher_forcing_s = (sorted(half)[len(halves) // 2] for half in zip(*halves, strict=True))
    return timing | {
        "generate_s": generate_s,
        "teacher_forcing_s": teacher_forcing_s,
        "peak_gib": machine.peak_gib(),
    }


def generate(case: Case, runs: int, ways: tuple[str, ...]) -> dict[str, Any]:
    """Generation with the four quantities through the public API, `ways` of `WAYS` in turns."""
    model, tokenizer = load(case.name)
    variants = {way: generation(way, model, tokenizer, case) for way in ways}
    for run in variants.values():
        run(warm(case.workload), 0)
    machine.reset_peak()
    timings = machine.timed({way: lambda n, f=f: f(case.workload, 100 + n) for way, f in variants.items()}, runs)
    return {"ways": timings, "peak_gib": machine.peak_gib()}


def teacher_forcing(case: Case, runs: int) -> dict[str, Any]:
    """The four quantities of given responses (random tokens) through the public API, without gradient."""
    model, tokenizer = load(case.name)
    processor = SequenceProcessor(model, tokenizer, GenerationConfig())
    sequences = given(case.workload, model.config.vocab_size)
    processor.teacher_force_logprobs(given(warm(case.workload), model.config.vocab_size))

    def run(_number: int) -> None:
        check_results(processor.teacher_force_logprobs(sequences), case.workload)

    machine.reset_peak()
    return machine.timed({"teacher forcing": run}, runs)["teacher forcing"] | {"peak_gib": machine.peak_gib()}


def head_memory(case: Case, way: str, trained: bool, tokens: int = HEAD_TOKENS) -> dict[str, Any]:
    """Peak GiB of forward and backward over `tokens` response tokens; `way` is "body" (no head), "ours" or "naive".

    `trained`: all weights train, the head's among them; else LoRA on the attention, and the head is frozen. The
    gradient of a trained head's weight (vocabulary x hidden) is part of both "ours" and "naive".
    """
    model, tokenizer = _shallow(case.name)
    if not trained:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
    rows = 16
    workload = Workload([[1]] * rows, [[tokens // rows]] * rows)
    sequences = given(workload, model.config.vocab_size)
    for parameter in model.parameters():
        parameter.sum()  # weights that are mapped from their file count only once they are read
    machine.reset_peak()
    before = machine.peak_gib()
    _HEADS[way](model, tokenizer, sequences)
    peak = machine.peak_gib()
    if not all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None):
        raise Wrong(f"The gradient of the {way} head is not finite.")
    return {"peak_gib": peak, "before_gib": before}


def _body(model: Any, _tokenizer: Any, sequences: BatchedSequences) -> None:
    hidden = model.get_decoder()(input_ids=sequences.sequences[:, 0], use_cache=False).last_hidden_state
    hidden.float().mean().backward()


def _ours(model: Any, tokenizer: Any, sequences: BatchedSequences) -> None:
    rows = len(sequences.sequences)
    processor = SequenceProcessor(model, tokenizer, GenerationConfig(tf_batch_size=rows))
    results = processor.teacher_force_logprobs(sequences, with_grad=True)
    logprobs = torch.cat([lp for group in results.logprobs for lp in group])
    entropies = torch.cat([torch.as_tensor(e) for group in results.entropies for e in group])
    _loss(logprobs, entropies).backward()


def _naive(model: Any, _tokenizer: Any, sequences: BatchedSequences) -> None:
    ids = sequences.sequences[:, 0]
    logits = model(input_ids=ids, use_cache=False).logits
    _loss(*usual.logprobs_and_entropies(logits[:, :-1], ids[:, 1:])).backward()


def _loss(logprobs: torch.Tensor, entropies: torch.Tensor) -> torch.Tensor:
    """Both quantities, as a policy gradient with an entropy bonus uses them."""
    return -logprobs.mean() - 0.01 * entropies.mean()


_HEADS: dict[str, Callable[[Any, Any, BatchedSequences], None]] = {"body": _body, "ours": _ours, "naive": _naive}


def _shallow(name: str) -> tuple[Any, Any]:
    """The model with its first few layers only, and its tokenizer."""
    model, tokenizer = load(name)
    model.model.layers = model.model.layers[:_HEAD_LAYERS]
    model.config.num_hidden_layers = len(model.model.layers)
    return model, tokenizer


def generation(way: str, model: Any, tokenizer: Any, case: Case) -> Callable[[Workload, int], None]:
    """One call of the public API with text stops and draws by name, checked; as a function of workload and seed."""
    config = GenerationConfig(
        max_new_tokens=LONGEST,
        gen_batch_size=GEN_ROWS,
        stop_strings=(case.stop_string,),
        ignore_eos=True,
        **WAYS[way],
    )
    processor = SequenceProcessor(model, tokenizer, config)

    def run(workload: Workload, seed: int) -> None:
        with without_measurements() if way == "unmeasured" else nullcontext():
            sequences, results = processor.generate_with_logprobs(
                workload.prompts, workload.G, seed=seed, max_new_tokens=workload.flat_lengths
            )
        check_lengths([n for group in sequences.gen_lens for n in group], workload)
        check_results(results, workload)

    return run


def without_measurements() -> AbstractContextManager[Any]:
    """Inside, the engine's sampler draws the same tokens and leaves out what only the measurements need."""
    return patch.object(distribution, "sample", partial(distribution.sample, measured=False))


def load(name: str) -> tuple[Any, Any]:
    """Model and tokenizer on the CPU."""
    transformers_logging.disable_progress_bar()
    return load_model(name, device="cpu")


def warm(workload: Workload) -> Workload:
    """A part of it, to be run before what counts."""
    return workload.cut(_WARM_PROMPTS, _WARM_TOKENS)
