"""Weights are safetensors of the model itself: pickle is refused under every name, and nothing in it runs."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from sequence_processing import ModelError, load_model
from tests.trust.conftest import Touch

Copy = Callable[..., Path]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def refused(folder: Path, adapter: Path | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(str(folder), adapter=None if adapter is None else str(adapter), device="cpu")
    assert caught.value.permanent
    return str(caught.value)


def test_the_trap_works(trap: Path) -> None:
    pickle.loads(pickle.dumps(Touch(trap)))
    assert trap.exists(), "or the tests below would show nothing"


def test_a_pickle_in_place_of_weights(copy_model: Copy, trap: Path) -> None:
    folder = copy_model("model")
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Touch(trap)))
    assert "no weights as safetensors" in refused(folder)
    assert not trap.exists()


def test_a_pickle_that_calls_itself_safetensors(copy_model: Copy, trap: Path) -> None:
    folder = copy_model("model")
    (folder / WEIGHTS).write_bytes(pickle.dumps(Touch(trap)))
    with pytest.raises(ModelError):
        load_model(str(folder), device="cpu")
    assert not trap.exists()


@pytest.mark.parametrize("how", ["index", "config"])
def test_honest_pickled_weights_by_another_door(copy_model: Copy, how: str) -> None:
    """transformers opens a `.bin` that an index or the config names, whatever `use_safetensors` says."""
    folder = copy_model("model", **({"transformers_weights": "adapter_model.bin"} if how == "config" else {}))
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(weights, folder / "adapter_model.bin")
    if how == "index":
        index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "adapter_model.bin")}
        (folder / INDEX).write_text(json.dumps(index))
    assert "names 'adapter_model.bin' among its weights; only safetensors" in refused(folder)


def test_weights_of_another_folder(copy_model: Copy) -> None:
    private, folder = copy_model("private"), copy_model("model")
    names = load_file(private / WEIGHTS)
    (folder / WEIGHTS).unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, f"../private/{WEIGHTS}")}
    (folder / INDEX).write_text(json.dumps(index))
    assert "only safetensors files beside its config" in refused(folder)


def test_shards_of_its_own_are_loaded(copy_model: Copy) -> None:
    folder = copy_model("model")
    names = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
    (folder / INDEX).write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")})
    )
    load_model(str(folder), device="cpu")


class TestAdapters:
    @pytest.fixture
    def adapter(self, tmp_path: Path) -> Path:
        base, _ = load_model("tiny-arithmetic", device="cpu")
        lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
        get_peft_model(base, lora).save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter"

    def test_a_pickle_in_place_of_weights(self, copy_model: Copy, adapter: Path, trap: Path) -> None:
        (adapter / "adapter_model.safetensors").unlink()
        (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Touch(trap)))
        with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors"):
            load_model(str(copy_model("model")), adapter=str(adapter), device="cpu")
        assert not trap.exists()

    def test_one_hidden_in_the_models_folder(self, copy_model: Copy, adapter: Path) -> None:
        """It would change the numbers and not the identity, and its config may name any other base."""
        folder = copy_model("model")
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (adapter / name).rename(folder / name)
        assert "name its base as the model" in refused(folder)
