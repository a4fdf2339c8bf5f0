"""SEED.md is the contract with existing users: its examples run as written, its definitions are ours.

Only the names that the text takes for granted (a model, a tokenizer, lists of prompts) are supplied.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import sequence_processing
from sequence_processing import SequenceProcessor, load_model
from tests.docs.conftest import ROOT, blocks

SEED = (ROOT / "tests" / "docs" / "SEED.md").read_text()
PYTHON = blocks(SEED, "python")
DEFINITIONS = [block for block in PYTHON if block.startswith("@dataclass")]
SIGNATURES = [block for block in PYTHON if block.startswith("def generate_with_logprobs(\n    self,")]
EXAMPLES = [block for block in PYTHON if block not in DEFINITIONS + SIGNATURES]


def test_the_text_is_split_as_expected() -> None:
    assert (len(DEFINITIONS), len(SIGNATURES), len(EXAMPLES)) == (3, 1, 10)


@pytest.mark.parametrize("block", DEFINITIONS, ids=lambda block: block.split()[2].rstrip(":"))
def test_containers_have_seeds_fields_first_in_order_with_their_defaults(block: str) -> None:
    definition = ast.parse(block).body[0]
    assert isinstance(definition, ast.ClassDef)
    ours = dataclasses.fields(getattr(sequence_processing, definition.name))
    theirs = [item for item in definition.body if isinstance(item, ast.AnnAssign)]
    assert len(theirs) >= 3
    for field, item in zip(ours, theirs, strict=False):
        assert isinstance(item.target, ast.Name)
        assert field.name == item.target.id
        if item.value is not None:
            assert field.default == ast.literal_eval(item.value)
    assert all(
        field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        for field in ours[len(theirs) :]
    ), "what we added has defaults, so that SEED's constructors still work"


def test_the_main_method_has_seeds_parameters_first_in_order_with_their_defaults() -> None:
    definition = ast.parse(SIGNATURES[0].rstrip().removesuffix(":") + ": ...").body[0]
    assert isinstance(definition, ast.FunctionDef)
    names = [argument.arg for argument in definition.args.args]
    defaults = [ast.literal_eval(default) for default in definition.args.defaults]
    ours = inspect.signature(SequenceProcessor.generate_with_logprobs).parameters
    assert list(ours)[: len(names)] == names
    assert [ours[name].default for name in names[1:]] == defaults


def test_examples_run_as_written(gsm8k_folder: Path) -> None:
    model, tokenizer = load_model("tiny-arithmetic")
    names: dict[str, Any] = {
        "model": model,
        "tokenizer": tokenizer,
        "prompts": ["Question 1", "Question 2"],
        "training_prompts": ["Question 1", "Question 2"],
        "G": 2,
    }
    for block in EXAMPLES:
        exec(compile(block, "SEED.md", "exec"), names)
        if "sequences, logprobs = processor" in block:
            _check(names["sequences"], names["logprobs"])
    config = SimpleNamespace(temperature=0.9, max_new_tokens=8)
    names["batched_generation"](model, tokenizer, ["Question 1"], 2, config)
    assert len(names["processor"].sample_prompts("gsm8k_r1_template", "train", 64, seed=42)) == 64


def _check(sequences: Any, logprobs: Any) -> None:
    B, G, length = sequences.sequences.shape
    assert sequences.attention_masks.shape == (B, G, length)
    assert len(sequences.prompt_lens) == len(sequences.gen_lens) == len(sequences.responses_text) == B
    for b in range(B):
        for g in range(G):
            n = sequences.gen_lens[b][g]
            assert int(sequences.attention_masks[b, g].sum()) == sequences.prompt_lens[b] + n
            assert logprobs.logprobs[b][g].shape == (n,)
            assert logprobs.entropies[b][g].shape == (n,)
            total = logprobs.sequence_logprobs[b][g]
            if isinstance(total, torch.Tensor):
                assert total.requires_grad
                continue
            assert isinstance(logprobs.entropies[b][g], np.ndarray)
            assert total == pytest.approx(float(logprobs.logprobs[b][g].double().sum()), abs=1e-3)
