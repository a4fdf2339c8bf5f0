"""A spec is checked before anything exists, and the same resolved spec means the same job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.diagnostics import columns_of
from jobs.errors import SpecError
from jobs.spec import JobSpec, PromptRow

MODEL = {"model": "tiny-arithmetic"}


@pytest.mark.parametrize(("field", "file"), [("model", "config.json"), ("adapter", "adapter_config.json")])
def test_a_folder_that_holds_no_model_is_refused_before_anything_is_stored(
    tmp_path: Path, field: str, file: str
) -> None:
    with pytest.raises(SpecError, match=f"{field}: the folder .* has no {file}"):
        JobSpec.parse(MODEL | {field: str(tmp_path)})
    (tmp_path / file).write_text("{}")
    assert getattr(JobSpec.parse(MODEL | {field: str(tmp_path)}), field) == str(tmp_path)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"G": 0}, "G: "),
        ({"temperature": -1}, "temperature: "),
        ({"top_p": 1.5}, "top_p: "),
        ({"temperature": float("nan")}, "temperature: "),
        ({"max_new_tokens": 0}, "max_new_tokens: "),
        ({"temprature": 1.0}, "temprature: there is no such field; fields are kind, model"),
        ({"model": "/no/such/folder"}, "model: no folder of a model at /no/such/folder"),
        ({"model": "a/b/c"}, "model: 'a/b/c' is neither an existing folder nor a hub id"),
        ({"stop_strings": [""]}, "stop_strings: an empty stop string"),
        ({"prompts": ["a"], "file": "x.jsonl"}, "prompts come from one place, but prompts and file are given"),
        ({"merge_adapter": True}, "merge_adapter needs an adapter"),
        ({"kind": "score", "dataset": "d"}, "kind score needs responses"),
        ({"prompts": [{"prompt": "a", "messages": [{"role": "user", "content": "b"}]}]}, "has prompt and messages"),
        ({"prompts": [{"answer": "a"}]}, "prompts.0: give exactly one of prompt, messages, prompt_token_ids"),
        ({"prompts": [{"prompt": "half \ud800"}]}, "prompts.0: prompt holds half a character"),
        ({"prompts": [[{"role": "user", "content": "half \ud800"}]]}, "prompts.0.messages: messages holds half"),
        ({"prompts": [[{"role": "user", "content": object()}]]}, "messages must be plain JSON data"),
        ({"prompts": [[5, 2**31]]}, "prompts.0: prompt_token_ids holds a number that is no token id"),
        ({"seed": -1}, "seed: "),
        ({"gen_batch_size": "many"}, "gen_batch_size: must be a whole number, 1 or more, or auto, not 'many'"),
        ({"tf_batch_size": 0}, "tf_batch_size: must be a whole number, 1 or more, or auto, not 0"),
        ({"head_dtype": "bfloat16"}, "head_dtype: "),
        ({"diagnostics": ["margins", "kl"]}, "diagnostics.1: input should be 'top1_probs', 'margins', "),
        ({"diagnostics": 3}, "diagnostics: "),
        ({"diagnostics": [3]}, "diagnostics.0: "),
        ({"top_k_alternatives": -1}, "top_k_alternatives: "),
        ({"top_k_alternatives": 101}, "top_k_alternatives: "),
    ],
)
def test_a_wrong_field_is_named_in_one_line(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError) as caught:
        JobSpec.parse(MODEL | fields)
    assert any(says in line for line in caught.value.problems), caught.value.problems
    assert all("\n" not in line for line in caught.value.problems)


def test_every_problem_is_reported_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        JobSpec.parse(MODEL | {"G": 0, "top_p": 2, "colour": "red"})
    assert len(caught.value.problems) == 3


def test_a_long_wrong_value_is_cut() -> None:
    with pytest.raises(SpecError) as caught:
        JobSpec.parse(MODEL | {"G": "x" * 10_000})
    assert len(str(caught.value)) < 200


def test_batch_sizes_are_numbers_or_auto() -> None:
    """As data, and as the text of a flag."""
    spec = JobSpec.parse(MODEL | {"gen_batch_size": "64", "tf_batch_size": 8})
    assert (spec.gen_batch_size, spec.tf_batch_size) == (64, 8)
    stored = JobSpec.of_stored(JobSpec.parse(MODEL | {"tf_batch_size": "auto"}).stored())
    assert (stored.gen_batch_size, stored.tf_batch_size, stored.head_dtype) == ("auto", "auto", "auto")


def test_diagnostics_may_stand_together() -> None:
    for given in (
        "margins, eos_probs",
        ["margins,eos_probs", "margins"],
        "margins\neos_probs\n",
        ("margins", "eos_probs"),
    ):
        assert JobSpec.parse(MODEL | {"diagnostics": given}).diagnostics == ("margins", "eos_probs")
    assert JobSpec.parse(MODEL | {"diagnostics": ""}).diagnostics == ()
    assert columns_of(JobSpec.parse(MODEL | {"top_k_alternatives": 2, "diagnostics": "margins"}).stored()) == [
        "margins",
        "top_ids",
        "top_logprobs",
    ]
    assert columns_of({}) == [], "a job from before there were any"


def test_texts_chats_and_token_ids_are_told_apart() -> None:
    chat = [{"role": "user", "content": "hi"}]
    spec = JobSpec.parse(MODEL | {"prompts": ["a", chat, [1, 2]]})
    assert spec.prompts == [PromptRow(prompt="a"), PromptRow(messages=chat), PromptRow(prompt_token_ids=[1, 2])]


def test_resolving_settles_the_seeds() -> None:
    spec = JobSpec.parse(MODEL)
    first, second = spec.resolve(), spec.resolve()
    assert first.seed != second.seed
    assert first.prompt_seed == first.seed
    assert first.resolve() == first
    assert JobSpec.parse(MODEL | {"seed": 5, "prompt_seed": 6}).resolve().prompt_seed == 6


def test_a_fresh_seed_under_an_idempotency_key_is_the_same_each_time() -> None:
    spec = JobSpec.parse(MODEL | {"idempotency_key": "night-1"})
    assert spec.resolve().digest() == spec.resolve().digest()
    assert spec.resolve().seed != JobSpec.parse(MODEL | {"idempotency_key": "night-2"}).resolve().seed


def test_the_digest_is_of_what_decides_the_sequences(tmp_path: Path) -> None:
    spec = JobSpec.parse(MODEL | {"seed": 1})
    same = JobSpec.parse(MODEL | {"seed": 1, "file": "elsewhere.jsonl", "idempotency_key": "k"})
    assert spec.digest() == same.digest()
    adapted = MODEL | {"seed": 1, "adapter": "org/lora"}
    others = [{"seed": 2}, adapted, adapted | {"merge_adapter": True}]
    assert len({JobSpec.parse(MODEL | {"seed": 1} | other).digest() for other in ({}, *others)}) == 4


def test_the_stored_spec_is_a_spec_again() -> None:
    spec = JobSpec.parse(MODEL | {"prompts": ["a"], "labels": {"run": "1"}}).resolve()
    again = JobSpec.parse(spec.stored())
    assert again.prompts is None
    assert again.digest() == spec.digest()
