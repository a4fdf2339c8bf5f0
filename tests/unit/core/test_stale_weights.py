"""Whatever changes the weights, the very next call uses the new ones, on every path.

Each test calls the path once, so that anything that could be kept of the old weights is there, changes them, calls
again and compares with a float64 forward of the weights as they are now.
"""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from sequence_processing import GenerationConfig, SequenceProcessor

from .support import given, make_model, reference

KINDS = ["llama", "gpt2"]  # one that has a faster way on the CPU, and one that runs through its own modules
PAIR = ([5, 6, 7, 8], [9, 10, 11, 12, 13])


def generated(processor):
    (r,) = processor.rollouts([PAIR[0]], 1, seed=0)
    return r.response_ids, r.logprobs


def scored(processor):
    (r,) = processor.score([PAIR])
    return r.response_ids, r.logprobs


def teacher_forced(processor):
    return PAIR[1], processor.teacher_force_logprobs(given([[PAIR]])).logprobs[0][0].numpy()


def teacher_forced_with_grad(processor):
    return PAIR[1], processor.teacher_force_logprobs(given([[PAIR]]), with_grad=True).logprobs[0][0].detach().numpy()


PATHS = [generated, scored, teacher_forced, teacher_forced_with_grad]


def optimizer_step(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    optimizer.step()


def fused_optimizer_step(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, fused=True)
    model(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    optimizer.step()


def load_state_dict(model):
    model.load_state_dict(make_model(model.config.model_type, seed=1).state_dict())


def load_state_dict_assign(model):
    model.load_state_dict(make_model(model.config.model_type, seed=1).state_dict(), assign=True)
    model.tie_weights()


def edit_in_place(model):
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.5)


def edit_data_in_place(model):
    model.get_input_embeddings().weight.data.mul_(1.5)


def replace_data(model):
    weight = model.get_input_embeddings().weight
    weight.data = weight.data * 1.5


def replace_parameter(model):
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach() * 1.5)


def replace_head(model):
    old = model.get_output_embeddings().weight
    head = nn.Linear(*reversed(old.shape), bias=False)
    with torch.no_grad():
        head.weight.copy_(old * 1.5)
    model.set_output_embeddings(head)


def edit_through_numpy(model):
    """Through memory that is shared: no version counter of torch's sees it."""
    model.get_input_embeddings().weight.detach().numpy()[:] *= 1.5


CHANGES = [
    optimizer_step,
    fused_optimizer_step,
    load_state_dict,
    load_state_dict_assign,
    edit_in_place,
    edit_data_in_place,
    replace_data,
    replace_parameter,
    replace_head,
    edit_through_numpy,
]


def processor_for(model, tokenizer):
    config = GenerationConfig(max_new_tokens=5, stop_strings=(), ignore_eos=True)
    return SequenceProcessor(model, tokenizer, config)


def assert_change_is_seen(processor, path, change):
    ids, before = path(processor)
    change(processor.model)
    new_ids, after = path(processor)
    want = reference(processor.model, PAIR[0], new_ids).logprobs
    np.testing.assert_allclose(after, want, atol=1e-4, rtol=0)
    assert ids != new_ids or np.abs(after - before).max() > 1e-3  # it was a change


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_changed_weights(tokenizer, kind, change, path):
    assert_change_is_seen(processor_for(make_model(kind), tokenizer), path, change)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_single_parameter(tokenizer, kind, path):
    """A small edit of each in turn; one that is forgotten would leave results as they were."""
    processor = processor_for(make_model(kind), tokenizer)
    for name, parameter in processor.model.named_parameters():
        path(processor)
        with torch.no_grad():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
        ids, after = path(processor)
        want = reference(processor.model, PAIR[0], ids).logprobs
        np.testing.assert_allclose(after, want, atol=1e-4, rtol=0, err_msg=name)


TARGETS = {"llama": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}


def with_two_adapters(kind):
    lora = LoraConfig(
        r=2, target_modules=TARGETS[kind], init_lora_weights=False, fan_in_fan_out=kind == "gpt2", lora_alpha=16
    )
    model = get_peft_model(make_model(kind), lora, adapter_name="first")
    model.add_adapter("second", lora)
    return model.eval()


ADAPTER_CHANGES = {
    "another adapter": lambda model: model.set_adapter("second"),
    "merged": lambda model: scaled_and(model, model.merge_adapter),
    "switched off": lambda model: model.base_model.disable_adapter_layers(),
    "removed": lambda model: (model.set_adapter("second"), model.delete_adapter("first")),
    "its weights edited": lambda model: scaled_and(model, lambda: None),
}


def scaled_and(model, then):
    """Three times the adapter's update: merging alone changes nothing but roundings."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B.first" in name:
                parameter.mul_(3)
    then()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("change", ADAPTER_CHANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_changed_adapter(tokenizer, kind, change, path):
    processor = processor_for(with_two_adapters(kind), tokenizer)
    assert_change_is_seen(processor, path, ADAPTER_CHANGES[change])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", KINDS)
def test_merged_and_taken_apart_again(tokenizer, kind, path):
    processor = processor_for(with_two_adapters(kind), tokenizer)
    ids, apart = path(processor)
    for change in (processor.model.merge_adapter, processor.model.unmerge_adapter):
        change()
        new_ids, after = path(processor)
        assert new_ids == ids
        np.testing.assert_allclose(after, apart, atol=1e-4, rtol=0)
