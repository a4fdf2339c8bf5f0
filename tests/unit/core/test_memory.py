"""What fits, by the shapes; and running out of memory for real, in a process with a limit on its address space."""

import ctypes
import faulthandler
import logging
import multiprocessing
import re
import sys
from contextlib import contextmanager
from functools import partial

import numpy as np
import psutil
import pytest
import torch
import transformers

from sequence_processing import GenerationConfig, SequenceProcessor
from sequence_processing.memory import (
    Cost,
    _left_of_groups,
    free_bytes,
    kv_bytes_per_token,
    rows_for_generation,
    tokens_for_scoring,
)
from sequence_processing.model import CausalModel, is_out_of_memory

from .support import CONFIGS, make_model, make_tokenizer

MB = 1 << 20
QUANTITIES = ("logprobs", "entropies", "sampling_logprobs", "sampling_entropies")

QWEN_HALF_B = {
    "vocab_size": 151_936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": True,
}


def shaped(kind="qwen2", dtype=torch.bfloat16, **shapes):
    """A model of these shapes without weights."""
    with torch.device("meta"):
        config = transformers.CONFIG_MAPPING[kind](**{**QWEN_HALF_B, **shapes})
        return CausalModel(transformers.AutoModelForCausalLM.from_config(config, dtype=dtype))


class TestShapes:
    @pytest.mark.parametrize(
        ("model", "size"),
        [
            (shaped(), 24 * 2 * 2 * 64 * 2),  # layers, keys and values, heads of them, head_dim = 896 / 14, bfloat16
            (shaped(dtype=torch.float32), 24 * 2 * 2 * 64 * 4),
            (shaped("qwen3", head_dim=128), 24 * 2 * 2 * 128 * 2),
            (shaped("llama", num_key_value_heads=None), 24 * 2 * 14 * 64 * 2),
            (CausalModel(make_model("gpt2")), 2 * 2 * 4 * 8 * 4),
            (CausalModel(make_model("mamba")), 0),
            (CausalModel(make_model("lfm2")), 0),  # one layer keeps a state: nothing is cached
        ],
    )
    def test_keys_and_values_by_hand(self, model, size):
        assert kv_bytes_per_token(model) == size

    @pytest.mark.parametrize("kind", [*CONFIGS, "deepseek_v3"])
    def test_keys_and_values_are_what_a_cache_holds(self, kind):
        heads = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
        model = CausalModel(make_model(kind, **(heads if kind in ("deepseek_v3", "gpt_neox") else {})))
        if not model.caches_attention:
            assert kv_bytes_per_token(model) == 0
            return
        cache = transformers.DynamicCache(config=model.text_config)
        with torch.no_grad():
            model.module(input_ids=torch.tensor([[5, 6, 7]]), past_key_values=cache, use_cache=True)
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        assert kv_bytes_per_token(model) == held / 3

    def test_logits_and_activations_by_hand(self):
        cost = Cost.of(shaped())
        assert cost.logits == 151_936 * (2 + 4)
        assert cost.activations == 2 * (4 * 896 + 3 * 4864) + 8 * 896
        assert cost.attention == 4
        assert cost.blocks(1) == 6 * 8 * 151_936
        assert cost.blocks(1000) == 6 * 8 * (1 << 23)

    def test_stored_scores_and_experts_count(self):
        eager = shaped(attn_implementation="eager")
        assert Cost.of(eager).attention == 4 + 8 * 14
        experts = shaped("qwen3_moe", moe_intermediate_size=768, num_experts=16, num_experts_per_tok=8, head_dim=64)
        assert Cost.of(experts).activations == 2 * (4 * 896 + 3 * 8 * 768) + 8 * 896


class TestRows:
    def test_by_hand(self):
        """A power of 2 in half of what is free, for keys and values of the longest row, its prefill's share, logits."""
        model, GB = shaped(), 10**9
        longest, prefill = (300 + 200) * 12_288, 300 * (Cost.of(model).activations + 300 * 4)
        row = longest + prefill / 8 + 151_936 * 6
        fixed = 6 * 8 * (1 << 23)
        expected = (2 * GB - fixed) / row
        assert rows_for_generation(model, [100, 300] * 500, [200] * 8000, 4 * GB) == 128 < expected < 256
        assert rows_for_generation(model, [100, 300] * 500, [200] * 8000, 3.9 * GB) == 128  # steady

    def test_bounds(self):
        model = shaped()
        assert rows_for_generation(model, [10], [10] * 8, 10**15) == 8  # no more than there are
        assert rows_for_generation(model, [10] * 2000, [10] * 2000, 10**15) == 1024
        assert rows_for_generation(CausalModel(make_model()), [10] * 2000, [10] * 2000, 10**15) == 256
        assert rows_for_generation(model, [10] * 20, [10] * 20, 0) == 1
        assert tokens_for_scoring(model, 100, 0) == 100

    def test_a_limit_beyond_the_context_does_not_count(self):
        model = shaped(max_position_embeddings=512)
        lens, free = [12] * 100, 2 * 10**9
        assert rows_for_generation(model, lens, [10**9] * 100, free) == rows_for_generation(
            model, lens, [500] * 100, free
        )

    def test_rows_that_are_computed_again_pay_for_their_length(self):
        model, free = shaped("mamba", state_size=16, intermediate_size=1792), 10**9
        rows = [rows_for_generation(model, [100] * 64, [new] * 64, free) for new in (100, 900)]
        assert 1 < rows[1] * 4 <= rows[0]

    def test_scoring(self):
        model, free = shaped(), 3 * 10**9
        plain, graph = (tokens_for_scoring(model, 500, free, with_grad) for with_grad in (False, True))
        fixed, a_token = 6 * 8 * (1 << 23), Cost.of(model).activations + 500 * 4
        assert plain == 16_384 < (1.5e9 - fixed) / (a_token + 12_288) < 32_768
        assert graph == 512 < (1.5e9 - fixed) / (24 * a_token + 12_288) < 1024


class TestAuto:
    @pytest.mark.parametrize("kind", CONFIGS)
    def test_every_architecture_has_its_estimate_and_its_tokens(self, kind, caplog):
        runs = {}
        for size in (2, "auto"):
            config = GenerationConfig(max_new_tokens=6, gen_batch_size=size, tf_batch_size=size)
            processor = SequenceProcessor(make_model(kind), make_tokenizer(), config)
            with caplog.at_level(logging.INFO, logger="sequence_processing"):
                generated = list(processor.rollouts(["hi", "What is 2+3?"], 3, seed=1))
                pairs = [(r.prompt_ids, r.response_ids) for r in sorted(generated, key=lambda r: r.prompt_index)]
                runs[size] = (generated, list(processor.score(pairs)))
        for got, want in zip(runs["auto"], runs[2], strict=True):
            assert_same(got, want)
        assert "Generating 6 rows at once" in caplog.text and "Scoring up to 8192 tokens at once" in caplog.text

    def test_in_a_call_with_gradient_and_for_nothing(self, model, tokenizer):
        processor = SequenceProcessor(model, tokenizer, GenerationConfig(max_new_tokens=6))
        auto = {"gen_batch_size": "auto", "tf_batch_size": "auto"}
        sequences, results = processor.generate_with_logprobs(["hi", "a"], 2, seed=1, with_grad=True, **auto)
        again, plain = processor.generate_with_logprobs(["hi", "a"], 2, seed=1)
        assert torch.equal(sequences.sequences, again.sequences) and results.logprobs[0][0].requires_grad
        for b, g in np.ndindex(2, 2):
            np.testing.assert_allclose(results.logprobs[b][g].detach(), plain.logprobs[b][g], atol=1e-4)
        assert processor.generate_with_logprobs([], 2, with_grad=True, **auto)[1].logprobs == []


class TestFree:
    def test_of_this_host(self):
        total = psutil.virtual_memory().total
        assert 0 < free_bytes(torch.device("cpu")) <= total

    def test_of_a_gpu_what_torch_holds_unused_counts(self, monkeypatch):
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (1000, 9000))
        monkeypatch.setattr("torch.cuda.memory_reserved", lambda device: 500)
        monkeypatch.setattr("torch.cuda.memory_allocated", lambda device: 300)
        assert free_bytes(torch.device("cuda")) == 1200

    def group(self, folder, **files):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(f"{text}\n")

    def test_of_control_groups_of_version_2(self, tmp_path):
        own, root = tmp_path / "own", tmp_path / "cgroup"
        own.write_text("0::/outer/inner\n")
        self.group(root, memory__current=5)  # the root has no limit
        self.group(root / "outer", memory__max=1000, memory__current=600, memory__stat="anon 400\ninactive_file 150")
        self.group(root / "outer" / "inner", memory__max="max", memory__current=500, memory__stat="inactive_file 100")
        self.group(root / "beside", memory__max=1, memory__current=1, memory__stat="inactive_file 0")
        assert list(_left_of_groups(root, own)) == [1000 - 600 + 150]

    def test_of_control_groups_of_version_1_in_a_container(self, tmp_path):
        own, root = tmp_path / "own", tmp_path / "cgroup"
        own.write_text("12:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n")
        stat = "inactive_file 7\ntotal_inactive_file 50"
        self.group(root / "memory", memory__limit_in_bytes=2000, memory__usage_in_bytes=700, memory__stat=stat)
        assert list(_left_of_groups(root, own)) == [2000 - 700 + 50]

    def test_without_control_groups(self, tmp_path):
        assert list(_left_of_groups(tmp_path, tmp_path / "none")) == []


# --- for real -------------------------------------------------------------------------------------------------------

M_MMAP_THRESHOLD = -3  # of malloc.h
VOCAB = 60_000
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 2048,
    "n_inner": 2048,
    "max_position_embeddings": 8192,
    "n_positions": 8192,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "eos_token_id": None,
}


@contextmanager
def left(megabytes):
    """This process may take so much more address space."""
    import resource

    limit = psutil.Process().memory_info().vms + megabytes * MB
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


class Log(logging.Handler):
    """What the core told since `take`."""

    def __init__(self):
        super().__init__()
        self.lines = []
        logging.getLogger("sequence_processing").addHandler(self)

    def emit(self, record):
        self.lines.append(record.getMessage())

    def take(self):
        lines, self.lines = self.lines, []
        return lines


def prompts(rows, length):
    return np.random.default_rng(0).integers(0, VOCAB, (rows, length)).tolist()


def processor_of(model, size):
    config = GenerationConfig(max_new_tokens=8, gen_batch_size=size, tf_batch_size=size, stop_strings=())
    return SequenceProcessor(model, make_tokenizer(), config)


def generated(model, size):
    return list(processor_of(model, size).rollouts(prompts(16, 300), 4, seed=1))


def scored(model, size):
    pairs = [(ids[:90], ids[90:]) for ids in prompts(64, 100)]
    return list(processor_of(model, size).score(pairs))


def shrinking(model, log, job):
    """`job` in one batch with less and less memory until it has to shrink it: [(megabytes, rows, log)]."""
    runs = []
    for megabytes in (128, 64, 32):
        with left(megabytes):
            runs.append((megabytes, job(model, 64), log.take()))
        if any("Out of memory" in line for line in runs[-1][2]):
            break
    return runs


def note(told, b, g, error):
    told.append((b, g, str(error)))


def one_too_long(model, log):
    """Two short prompts and one that does not fit, generated and scored; by itself, then with what is left over."""
    short, long = prompts(2, 20), prompts(1, 6000)[0]
    out = {}
    for name, run in {
        "generate": lambda p, ids, **more: list(p.rollouts(ids, 2, seed=1, **more)),
        "score": lambda p, ids, **more: list(p.score([(i[:-5], i[-5:]) for i in ids], **more)),
    }.items():
        alone, told = run(processor_of(model, 8), short), []
        with left(48):
            rest = run(processor_of(model, 8), [*short, long], on_failed=partial(note, told))
            try:
                run(processor_of(model, 8), [*short, long])
            except MemoryError as error:
                raised = str(error)
        out[name] = (alone, rest, told, raised, log.take())
    return out


def of_its_own_accord(model, log, job):
    """`job` with "auto", with little memory and with more of it."""
    runs = []
    for megabytes in (64, 256):
        with left(megabytes):
            runs.append((megabytes, job(model, "auto"), log.take()))
    return runs


def other_voices():
    """How those that are not torch's allocator say it.

    Not oneDNN, whose words `test_rollouts` has: with no memory left at all it sometimes crashes instead of complaining.
    """
    said = []
    with left(1):
        for fail in (lambda: np.ones(10**9), lambda: bytearray(10**9)):
            try:
                fail()
            except Exception as error:
                said.append((type(error).__name__, str(error), is_out_of_memory(error)))
    return said


def limited(folder):
    """In a process of its own: everything that needs a limit, into `folder`."""
    faulthandler.enable()
    torch.set_num_threads(1)
    found = {"voices": other_voices()}
    # Tensors get pages of their own, which go back at once: a limit then counts what is used, and no holes in a heap.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MB // 16)
    log = Log()
    logging.getLogger("sequence_processing").setLevel(logging.INFO)
    for kind in ("gpt2", "qwen2"):
        model = make_model(kind, **SIZES)
        for job in (generated, scored):
            want = job(model, 4)
            runs = {"fixed": shrinking(model, log, job), "auto": of_its_own_accord(model, log, job)}
            found[kind, job.__name__] = (want, runs)
    found["one"] = one_too_long(make_model("gpt2", **SIZES), log)
    torch.save(found, folder / "found.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("limited")
    child = multiprocessing.get_context("spawn").Process(target=limited, args=(folder,))
    child.start()
    child.join()
    assert child.exitcode == 0
    return torch.load(folder / "found.pt", weights_only=False)


def assert_same(got, want):
    """The same rows, each once, with the same tokens, and quantities up to rounding."""
    named = [{(r.prompt_index, r.sample_index): r for r in rows} for rows in (got, want)]
    assert len(got) == len(named[0]) and named[0].keys() == named[1].keys()
    for name, row in named[0].items():
        assert row.response_ids == named[1][name].response_ids
        for quantity in QUANTITIES:
            np.testing.assert_allclose(getattr(row, quantity), getattr(named[1][name], quantity), atol=1e-4, rtol=0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits on address space are Linux's")
class TestRunningOut:
    @pytest.mark.parametrize("kind", ["gpt2", "qwen2"])  # the model's own modules, and kernels
    @pytest.mark.parametrize("job", ["generated", "scored"])
    def test_a_smaller_batch_goes_on_and_changes_nothing(self, found, kind, job):
        want, runs = found[kind, job]
        for _, got, _ in runs["fixed"]:
            assert_same(got, want)
        megabytes, _, log = runs["fixed"][-1]
        assert any(line.startswith("Out of memory with 64 rows; going on with 32") for line in log), f"{megabytes} MB"

    @pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
    @pytest.mark.parametrize("job", ["generated", "scored"])
    def test_auto_does_not_run_out(self, found, kind, job):
        want, runs = found[kind, job]
        sizes = []
        for _, got, log in runs["auto"]:
            assert_same(got, want)
            assert not any("Out of memory" in line for line in log), log
            sizes += [int(size[1]) for line in log if (size := re.match(r"(?:Generating|Scoring up to) (\d+)", line))]
        assert 1 <= sizes[0] < sizes[1]

    @pytest.mark.parametrize(
        ("job", "sizes"), [("generate", "6000 prompt tokens and up to 8 new"), ("score", "6000 tokens")]
    )
    def test_a_row_that_does_not_fit_fails_alone(self, found, job, sizes):
        alone, rest, told, raised, _ = found["one"][job]
        assert_same(rest, alone)
        assert [(b, g) for b, g, _ in told] == ([(2, 0), (2, 1)] if job == "generate" else [(2, 0)])
        assert all(sizes in sentence for *_, sentence in told) and sizes in raised

    def test_others_say_it_otherwise(self, found):
        assert [(name, known) for name, _, known in found["voices"]] == [("MemoryError", True)] * 2
