"""Models by name, what they are, and whose fault it is when one does not load."""

import json
import shutil

import pytest
import torch
import transformers

from sequence_processing import ModelError, load_model, model_identity

from .support import make_model, make_tokenizer


@pytest.fixture
def folder(tmp_path):
    """A saved model and tokenizer."""
    path = tmp_path / "model"
    make_model().save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def adapter(tmp_path):
    """A saved LoRA adapter for it."""
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(make_model(), lora).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


class TestLoadModel:
    def test_folder(self, folder):
        model, tokenizer = load_model(str(folder), device="cpu")
        assert not model.training and model.dtype == torch.float32
        torch.testing.assert_close(model.lm_head.weight, make_model().lm_head.weight)
        assert tokenizer("hi")["input_ids"] == make_tokenizer()("hi")["input_ids"]
        assert load_model(str(folder), dtype="bfloat16", device="cpu")[0].dtype == torch.bfloat16

    def test_adapter(self, folder, adapter):
        model, _ = load_model(str(folder), adapter=str(adapter), device="cpu")
        plain, _ = load_model(str(folder), device="cpu")
        ids = torch.tensor([[1, 2, 3]])
        assert not torch.allclose(model(ids).logits, plain(ids).logits)

    def test_this_machines_fault(self, folder, adapter, tmp_path):
        for call in (
            lambda: load_model(str(tmp_path / "nowhere")),
            lambda: load_model(str(folder), adapter=str(tmp_path / "nowhere")),
            lambda: model_identity(str(tmp_path / "nowhere")),
        ):
            with pytest.raises(ModelError, match=r"There is no model folder .*nowhere on this machine") as caught:
                call()
            assert not caught.value.permanent

    def test_hub_out_of_reach(self, monkeypatch, tmp_path):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(ModelError, match="cannot be reached") as caught:
            load_model("some-org/some-model-that-is-not-cached")
        assert not caught.value.permanent and "\n" not in str(caught.value)

    def test_code_of_its_own_is_for_another_machine_to_allow(self, folder):
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "homemade", "auto_map": {"AutoConfig": "a.B", "AutoModelForCausalLM": "a.C"}}
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ModelError, match="needs code of its own, which is not allowed here") as caught:
            load_model(str(folder), device="cpu")
        assert not caught.value.permanent

    def test_nobody_can_load_it(self, folder, adapter, tmp_path):
        t5 = tmp_path / "t5"
        transformers.T5Config().save_pretrained(t5)
        bert = tmp_path / "clip"
        transformers.CLIPVisionConfig().save_pretrained(bert)
        pickled = tmp_path / "pickled"
        shutil.copytree(folder, pickled)
        (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
        other = tmp_path / "other"
        make_model(hidden_size=64).save_pretrained(other)
        make_tokenizer().save_pretrained(other)
        for name, options, sentence in [
            (t5, {}, "encoder-decoder"),
            (bert, {}, "not a causal language model"),
            (pickled, {}, "no weights as safetensors"),
            (folder, {"dtype": "float7"}, "Unknown dtype 'float7'"),
            (other, {"adapter": str(adapter)}, "does not fit the model"),
        ]:
            with pytest.raises(ModelError, match=sentence) as caught:
                load_model(str(name), device="cpu", **options)
            assert caught.value.permanent and "\n" not in str(caught.value)


class TestIdentity:
    def test_says_what_it_is_and_not_where(self, folder, adapter, tmp_path):
        elsewhere = tmp_path / "elsewhere"
        shutil.copytree(folder, elsewhere)
        one, two = model_identity(str(folder)), model_identity(str(elsewhere))
        assert one == two and set(one) == {"model", "tokenizer", "chat_template"}
        model, tokenizer = load_model(str(folder), device="cpu")
        tokenizer("a b", truncation=True, max_length=1)  # leaves its mark on the tokenizer's settings
        assert model_identity(str(folder), model=model, tokenizer=tokenizer) == one
        assert set(model_identity(str(folder), adapter=str(adapter))) == {*one, "adapter"}

    def test_each_part_shows(self, folder, tmp_path):
        before = model_identity(str(folder))
        make_model(seed=1).save_pretrained(folder)
        after = model_identity(str(folder))
        assert {part for part in before if before[part] != after[part]} == {"model"}
        tokenizer = make_tokenizer()
        tokenizer.chat_template = "{{ messages }}"
        tokenizer.save_pretrained(folder)
        templated = model_identity(str(folder))
        assert {part for part in after if after[part] != templated[part]} == {"chat_template"}
