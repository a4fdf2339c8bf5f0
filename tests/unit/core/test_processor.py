"""The public face: SEED's names, defaults and types; prompts in; grids out; what is refused."""

import inspect
import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from tokenizers.processors import TemplateProcessing
from torch import nn
from torch.distributed.fsdp import FSDPModule

from sequence_processing import (
    BatchedSequences,
    GenerationConfig,
    LogprobResults,
    PromptError,
    Rollout,
    SequenceProcessor,
)
from sequence_processing.model import CausalModel

from .support import EOS, make_model, make_tokenizer


@pytest.fixture
def processor(model, tokenizer):
    return SequenceProcessor(model, tokenizer, GenerationConfig(max_new_tokens=6, temperature=0.8))


class TestSeed:
    def test_names_order_and_defaults(self):
        config = list(inspect.signature(GenerationConfig).parameters.values())
        assert [(p.name, p.default) for p in config[:6]] == [
            ("temperature", 1.0),
            ("top_p", 1.0),
            ("max_new_tokens", 200),
            ("do_sample", True),
            ("gen_batch_size", 32),
            ("tf_batch_size", 64),
        ]
        fields = ["sequences", "prompt_lens", "gen_lens", "attention_masks", "responses_text"]
        assert list(inspect.signature(BatchedSequences).parameters)[:5] == fields
        fields = ["logprobs", "entropies", "sequence_logprobs"]
        assert list(inspect.signature(LogprobResults).parameters)[:3] == fields
        method = inspect.signature(SequenceProcessor.generate_with_logprobs).parameters
        assert [(p.name, p.default) for p in method.values()][1:10] == [
            ("prompts", None),
            ("G", 8),
            ("dataset_name", None),
            ("split", "train"),
            ("num_prompts", None),
            ("seed", None),
            ("with_grad", False),
            ("gen_batch_size", None),
            ("tf_batch_size", None),
        ]

    def test_shapes_and_types(self, processor):
        sequences, logprobs = processor.generate_with_logprobs(["Solve: 2+2=", "What is 5*3?"], 3)
        assert sequences.sequences.shape == sequences.attention_masks.shape == (2, 3, sequences.sequences.shape[2])
        assert sequences.sequences.dtype == torch.int64
        assert sequences.prompt_lens == [len(processor.encode(p)) for p in ("Solve: 2+2=", "What is 5*3?")]
        for b in range(2):
            for g in range(3):
                start, n = sequences.prompt_lens[b], sequences.gen_lens[b][g]
                response = sequences.sequences[b, g, start : start + n].tolist()
                assert sequences.attention_masks[b, g].sum() == start + n
                text = processor.tokenizer.decode(response, skip_special_tokens=True)
                assert sequences.responses_text[b][g] == text
                assert isinstance(logprobs.logprobs[b][g], torch.Tensor) and logprobs.logprobs[b][g].shape == (n,)
                assert isinstance(logprobs.entropies[b][g], np.ndarray)
                assert isinstance(logprobs.sequence_logprobs[b][g], float)
                assert logprobs.sequence_logprobs[b][g] == pytest.approx(float(logprobs.logprobs[b][g].sum()), abs=1e-4)
        assert sequences.prompt_indices == [0, 1] and sequences.prompt_keys == [0, 1]

    def test_no_seed_draws_one_and_records_it(self, processor):
        one = processor.generate_batched(["hi"], G=2)
        two = processor.generate_batched(["hi"], G=2)
        assert one.seed != two.seed
        again = processor.generate_batched(["hi"], G=2, seed=one.seed)
        assert torch.equal(again.sequences, one.sequences)

    @pytest.mark.parametrize("with_grad", [False, True])
    def test_empty_prompt_lists_and_responses(self, processor, with_grad):
        sequences, results = processor.generate_with_logprobs([], G=4, with_grad=with_grad)
        assert sequences.sequences.shape == (0, 4, 0) and results.logprobs == results.entropies == []
        sequences, results = processor.generate_with_logprobs(["hi"], G=2, with_grad=with_grad, max_new_tokens=0)
        assert sequences.gen_lens == [[0, 0]] and sequences.responses_text == [["", ""]]
        assert [len(e) for e in results.entropies[0]] == [0, 0] and not results.sequence_logprobs[0][0]

    def test_prompts_or_dataset_and_not_both(self, processor):
        for wrong in ({}, {"prompts": ["a"], "dataset_name": "x"}):
            with pytest.raises(ValueError, match="either prompts or dataset_name"):
                processor.generate_with_logprobs(**wrong)
        with pytest.raises(ValueError, match="not one string"):
            processor.generate_batched("hello")

    def test_dataset_sampling(self, processor):
        name = "arithmetic_r1_template"
        prompts = processor.sample_prompts(name, "train", 8, seed=42)
        assert len(set(prompts)) == 8 and prompts == processor.sample_prompts(name, "train", 8, seed=42)
        assert prompts != processor.sample_prompts(name, "train", 8, seed=43)
        processor.model = make_model(max_position_embeddings=1024)
        sequences, _ = processor.generate_with_logprobs(dataset_name=name, num_prompts=2, G=2, seed=42)
        row = sequences.sequences[0, 0, : sequences.prompt_lens[0]]
        assert processor.tokenizer.decode(row) == processor.sample_prompts(name, "train", 2, seed=42)[0]
        with pytest.raises(ValueError, match="num_prompts is 1000000000"):
            processor.sample_prompts(name, "train", 10**9)

    def test_missing_pad_token_becomes_eos_and_eos_is_still_measured(self, processor):
        assert processor.tokenizer.pad_token_id == EOS
        with torch.no_grad():
            processor.model.lm_head = nn.Linear(32, 272)
            processor.model.lm_head.bias[EOS] = 3.0
        sequences = processor.generate_batched(["hi"], G=16, seed=0)
        ended = [g for g in range(16) if sequences.finish_reasons[0][g] == "eos"]
        short = min(ended, key=lambda g: sequences.gen_lens[0][g])
        start, n = sequences.prompt_lens[0], sequences.gen_lens[0][short]
        assert sequences.sequences[0, short, start + n - 1] == EOS
        assert (sequences.sequences[0, short, start + n :] == EOS).all()
        assert sequences.attention_masks[0, short].sum() == start + n
        assert len(sequences.sampling_pass.logprobs[0][short]) == n


class TestConfig:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("temperature", -1),
            ("temperature", float("inf")),
            ("temperature", "hot"),
            ("top_p", 0),
            ("top_p", 1.5),
            ("top_p", float("nan")),
            ("max_new_tokens", -1),
            ("gen_batch_size", 0),
            ("tf_batch_size", 1.5),
            ("tf_batch_size", "Auto"),
            ("head_dtype", "bfloat16"),
            ("diagnostics", "margins"),
            ("diagnostics", ["margins", "kl"]),
            ("diagnostics", None),
            ("top_k_alternatives", -1),
            ("top_k_alternatives", True),
            ("stop_strings", "</answer>"),
            ("stop_strings", [""]),
            ("stop_strings", None),
            ("stop_strings", 3),
            ("temperature", True),
            ("max_new_tokens", np.float64(3)),
        ],
    )
    def test_out_of_range(self, processor, field, value):
        with pytest.raises(ValueError, match=f"^{field} must"):
            GenerationConfig(**{field: value})
        setattr(processor.config, field, value)
        with pytest.raises(ValueError, match=f"^{field} must"):
            processor.generate_batched(["hi"], G=1)

    def test_numbers_of_numpy_and_torch(self, processor):
        want = processor.generate_batched([[1, 2], [3]], 2, 3, seed=1, prompt_keys=[4, 5], max_new_tokens=[6, 5])
        processor.config = GenerationConfig(
            temperature=np.float64(0.8), top_p=np.float32(1), max_new_tokens=np.int32(6), tf_batch_size=np.int64(2)
        )
        got = processor.generate_batched(
            [[np.int64(1), np.int16(2)], np.array([3])],
            np.int64(2),
            np.int64(3),
            seed=np.int64(1),
            prompt_keys=np.array([4, 5]),
            max_new_tokens=torch.tensor([6, 5]),
        )
        assert torch.equal(got.sequences, want.sequences)
        assert got.seed == 1 and type(got.seed) is int and [type(key) for key in got.prompt_keys] == [int, int]
        assert processor.generate_batched([[1]], 1, max_new_tokens=np.array(0)).gen_lens == [[0]]
        name = "arithmetic_r1_template"
        drawn = processor.sample_prompts(name, "test", np.int64(3), seed=np.int64(42))
        assert drawn == processor.sample_prompts(name, "test", 3, seed=42)

    @pytest.mark.parametrize(
        ("prompts", "call", "sentence"),
        [
            (["a"], {"seed": 1.0}, "^seed must be a whole number, not 1.0"),
            (["a"], {"seed": "1"}, "^seed must be a whole number, not '1'"),
            (["a"], {"prompt_keys": [1.9]}, r"^prompt_keys\[0\] must be a whole number, not 1.9"),
            (["a"], {"prompt_keys": 1}, "^prompt_keys must be a list"),
            (["a"], {"G": 2.0}, "^G must be a whole number"),
            (["a"], {"max_new_tokens": 1.5}, "^max_new_tokens must be a whole number, or a list"),
            (["a"], {"max_new_tokens": [1.5]}, "^max_new_tokens must be a whole number, 0 or more, not 1.5"),
            (None, {}, "^prompts must be a list of prompts, not None"),
            ([1, 2, 3], {}, "^Prompt 0: The prompt must be text, token ids or messages, not 1"),
            ([b"hi"], {}, "^Prompt 0: The prompt must be text, token ids or messages, not b'hi'"),
        ],
    )
    def test_what_cannot_be_read_is_one_sentence(self, processor, prompts, call, sentence):
        for method in (processor.generate_batched, processor.rollouts):
            with pytest.raises(ValueError, match=sentence):
                method(prompts, **call)

    def test_overrides_of_a_call(self, processor):
        for method in (processor.generate_batched, processor.generate_with_logprobs):
            for wrong in (0, "many"):
                with pytest.raises(ValueError, match="gen_batch_size must be a whole number, 1 or more, or 'auto'"):
                    method(["hi"], G=1, gen_batch_size=wrong)


class TestPrompts:
    def with_bos(self):
        """A tokenizer that puts <bos> before every text."""
        tokenizer = make_tokenizer()
        tokenizer.add_special_tokens({"bos_token": "<bos>"})
        backend = tokenizer.backend_tokenizer
        backend.post_processor = TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
        )
        return tokenizer

    def test_no_second_bos(self, model):
        tokenizer = self.with_bos()
        processor, bos = SequenceProcessor(model, tokenizer), tokenizer.bos_token_id
        assert (
            processor.encode("a")
            == processor.encode("<bos>a")
            == [bos, *tokenizer("a", add_special_tokens=False)["input_ids"]]
        )
        assert processor.encode("") == [bos]
        assert processor.encode([bos, bos]) == [bos, bos]

    def test_messages(self, processor):
        with pytest.raises(PromptError, match="no chat template"):
            processor.encode([{"role": "user", "content": "hi"}])
        processor.tokenizer.chat_template = (
            "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ '' if loop.last else ' ' }}{% endfor %}"
            "{% if add_generation_prompt %} [assistant]{{ mood }}{% endif %}"
        )
        decode = processor.tokenizer.decode
        user = [{"role": "user", "content": "hi"}]
        assert decode(processor.encode(user)) == "[user]hi [assistant]"
        assert decode(processor.encode(user, {"mood": "glad"})) == "[user]hi [assistant]glad"
        processor.model = make_model()
        told = {"chat_template_kwargs": {"mood": "glad"}}
        want = processor.encode(user, {"mood": "glad"})
        assert next(processor.rollouts([user], 1, **told)).prompt_ids == want
        for sequences in (
            processor.generate_batched([user], G=1, **told),
            processor.generate_with_logprobs([user], G=1, **told)[0],
        ):
            assert sequences.sequences[0, 0, : sequences.prompt_lens[0]].tolist() == want
        prefilled = [*user, {"role": "assistant", "content": "The answer"}]
        assert decode(processor.encode(prefilled)) == "[user]hi [assistant]The answer"
        processor.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
        with pytest.raises(PromptError, match="refused the messages: roles must alternate"):
            processor.encode(user)

    @pytest.mark.parametrize(
        ("prompt", "sentence"),
        [
            ("", "no tokens and the model has no BOS"),
            ([], "no tokens and the model has no BOS"),
            ([1, 272], "Token id 272 at position 1 of the prompt is outside the model's vocabulary of 272"),
            ([-1], "Token id -1"),
            ([1, "a"], "its item 1 is 'a'"),
            ([True], "its item 0 is True"),
            (None, "must be text, token ids or messages, not None"),
            (np.array(5), r"must be text, token ids or messages, not array\(5\)"),
            ([1] * 128, "128 tokens, which leaves no room"),
        ],
    )
    def test_refused(self, processor, prompt, sentence):
        with pytest.raises(PromptError, match=sentence):
            processor.encode(prompt)

    def test_ids_are_taken_as_they_are(self, processor):
        assert processor.encode([1, EOS, 2]) == [1, EOS, 2]
        assert processor.encode(np.array([1, 2])) == processor.encode(torch.tensor([1, 2])) == [1, 2]


class TestContainers:
    def rollout(self, b, g, n=2, prompt=(1, 2)):
        values = np.arange(n, dtype=np.float32)
        return Rollout(b, g, list(prompt), list(range(10, 10 + n)), "x", values, values, values, values, "eos", None)

    def test_any_order_and_missing_prompts(self):
        rollouts = [
            self.rollout(7, 1),
            self.rollout(2, 0, prompt=[5]),
            self.rollout(7, 0, n=0),
            self.rollout(2, 1, n=3),
        ]
        rollouts[1] = self.rollout(2, 0, prompt=(1, 2))
        grid = BatchedSequences.from_rollouts(rollouts, 2, pad_token_id=9)
        assert grid.prompt_indices == [2, 7] and grid.gen_lens == [[2, 3], [0, 2]]
        assert grid.sequences.tolist() == [
            [[1, 2, 10, 11, 9], [1, 2, 10, 11, 12]],
            [[1, 2, 9, 9, 9], [1, 2, 10, 11, 9]],
        ]
        assert grid.attention_masks[1].tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]
        results = LogprobResults.from_rollouts(rollouts, 2)
        assert results.sequence_logprobs == [[1.0, 3.0], [0.0, 1.0]]

    def test_incomplete_grids(self):
        with pytest.raises(ValueError, match=r"Prompt 0 has samples \[0\], but a grid with G=2 needs 0 to 1"):
            BatchedSequences.from_rollouts([self.rollout(0, 0)], 2)
        with pytest.raises(ValueError, match="sample 0 twice"):
            BatchedSequences.from_rollouts([self.rollout(0, 0), self.rollout(0, 0)], 2)
        with pytest.raises(ValueError, match="different prompt tokens"):
            LogprobResults.from_rollouts([self.rollout(0, 0), self.rollout(0, 1, prompt=[3])], 2)

    def test_containers_do_not_need_transformers_and_the_package_not_even_torch(self):
        code = (
            "import sys, sequence_processing; assert 'torch' not in sys.modules; "
            "import sequence_processing.containers; assert 'transformers' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code], check=True)


class TestModels:
    def test_warpers_of_generation_config_are_logged_and_not_applied(self, model, tokenizer, caplog):
        prompts, config = ["hi"], GenerationConfig(max_new_tokens=8)
        want = SequenceProcessor(model, tokenizer, config).generate_batched(prompts, G=4, seed=0)
        model.generation_config = transformers.GenerationConfig(
            do_sample=True, temperature=0.1, top_k=2, repetition_penalty=1.3, eos_token_id=EOS
        )
        with caplog.at_level(logging.WARNING, logger="sequence_processing"):
            processor = SequenceProcessor(model, tokenizer, config)
        assert "temperature=0.1, top_k=2, repetition_penalty=1.3; not applied" in caplog.text
        assert torch.equal(processor.generate_batched(prompts, G=4, seed=0).sequences, want.sequences)

    def test_every_setting_that_would_change_a_draw_is_named(self, model):
        neutral = {"guidance_scale": 1.0, "renormalize_logits": False, "remove_invalid_values": False}
        model.generation_config = transformers.GenerationConfig(eos_token_id=EOS, **neutral)
        assert CausalModel(model).ignored_settings() == []
        asked = {
            "guidance_scale": 1.5,
            "top_h": 0.4,
            "exponential_decay_length_penalty": (5, 1.1),
            "watermarking_config": {"bias": 2.5},
            "renormalize_logits": True,
            "remove_invalid_values": True,
            "stop_strings": ["x"],
        }
        model.generation_config = transformers.GenerationConfig(do_sample=True, eos_token_id=EOS, **asked)
        assert [setting.partition("=")[0] for setting in CausalModel(model).ignored_settings()] == list(asked)

    def test_encoder_decoders_are_refused(self, tokenizer):
        config = transformers.T5Config(vocab_size=272, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
        with pytest.raises(TypeError, match="encoder-decoder"):
            SequenceProcessor(transformers.T5ForConditionalGeneration(config), tokenizer)

    def test_models_that_attend_to_both_sides_are_refused(self, tokenizer):
        config = transformers.BertConfig(vocab_size=272, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
        with pytest.raises(TypeError, match="BertLMHeadModel attends to both sides"):
            SequenceProcessor(transformers.BertLMHeadModel(config), tokenizer)
        config = transformers.GPTNeoXConfig(vocab_size=272, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
        SequenceProcessor(transformers.GPTNeoXForCausalLM(config), tokenizer)  # causal, though its is_decoder is False

    def test_sharded_wrappers_are_refused(self, model, tokenizer):
        fsdp1 = type("FullyShardedDataParallel", (nn.Module,), {})()
        with pytest.raises(TypeError, match="FSDP"):
            SequenceProcessor(fsdp1, tokenizer)
        inner = model.model.layers[0]  # fully_shard mixes its class into a module's own
        inner.__class__ = type("FSDPLayer", (FSDPModule, type(inner)), {})
        with pytest.raises(TypeError, match="FSDP"):
            SequenceProcessor(model, tokenizer)
        with pytest.raises(TypeError, match="DeepSpeed"):
            SequenceProcessor(type("DeepSpeedEngine", (nn.Module,), {})(), tokenizer)
        zero = make_model()
        next(zero.parameters()).ds_id = 0
        with pytest.raises(TypeError, match="ZeRO"):
            SequenceProcessor(zero, tokenizer)

    def test_what_is_no_language_model(self, tokenizer):
        with pytest.raises(TypeError, match="causal LM of transformers"):
            SequenceProcessor(nn.Linear(2, 2), tokenizer)
        with pytest.raises(TypeError, match="must be a torch module, not str"):
            SequenceProcessor("gpt2", tokenizer)
