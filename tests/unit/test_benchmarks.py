"""The benchmarks work, and what they compare is comparable. Nothing here looks at a clock."""

from __future__ import annotations

import json
import os
import random
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from pathlib import Path

import pytest
import torch

from benchmarks import core, gpu, limits, measures, models, profile, sequences, usual
from benchmarks.workload import TEMPLATE, Workload, response_lengths, w1
from benchmarks.wrong import Wrong
from sequence_processing import SequenceProcessor, distribution
from sequence_processing.native.ops import Kernels

SMALL = Workload(prompts=[[5, 6, 7, 8, 9], [5, 6, 11]], lengths=[[3, 1], [2, 4]])


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def gsm8k(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for GSM8K, of few rows."""
    (tmp_path / "gsm8k").mkdir()
    for split, start in (("train", 0), ("test", 100)):
        rows = [{"question": f"{n} apples and 3 more?", "answer": f"#### {n + 3}"} for n in range(start, start + 20)]
        (tmp_path / "gsm8k" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("SEQPROC_DATA_DIR", str(tmp_path))


@pytest.fixture
def tiny(gsm8k: None, tmp_path: Path) -> measures.Case:
    return measures.prepare("tiny", tmp_path / "models", quick=True)


def test_w1_has_the_lengths_that_every_machine_draws():
    lengths = response_lengths(16)
    flat = [n for group in lengths for n in group]
    assert [len(group) for group in lengths] == [8] * 16
    assert (sum(flat), min(flat), max(flat)) == (12_714, 22, 200)
    assert response_lengths(64)[:16] == lengths


def test_the_digest_names_prompts_and_lengths():
    workload = w1([f"question {i}" for i in range(20)], lambda text: list(text.encode()))
    assert len(workload.prompts) == 16
    assert bytes(workload.prompts[3]).decode() == TEMPLATE.format(q="question 3")
    assert workload.digest == Workload(workload.prompts, workload.lengths).digest
    assert workload.cut(16, 100).digest != workload.digest != workload.cut(15, 200).digest
    assert workload.described()["shared_prefix_tokens"] == TEMPLATE.index("{q}") + len("question ")


def test_the_usual_pattern_measures_what_the_processor_measures(tiny: measures.Case):
    """Two independent ways to the same numbers: padded full logits, and the chunked head over true lengths."""
    model, tokenizer = measures.load(tiny.name)
    model = model.float()
    given = sequences.given(SMALL, 100)
    pairs = [
        (given.sequences[b, g, :p].tolist(), given.sequences[b, g, p : p + SMALL.lengths[b][g]].tolist())
        for b, p in enumerate(given.prompt_lens)
        for g in range(SMALL.G)
    ]
    rows = usual.measure(model, pairs, tf_rows=3)
    results = SequenceProcessor(model, tokenizer).teacher_force_logprobs(given)
    assert [row.response_ids for row in rows] == [response for _, response in pairs]
    measured = zip(chain(*results.logprobs), chain(*results.entropies), strict=True)
    for row, (logprobs, entropies) in zip(rows, measured, strict=True):
        torch.testing.assert_close(row.logprobs, logprobs, atol=1e-4, rtol=0)
        torch.testing.assert_close(row.entropies, torch.as_tensor(entropies), atol=1e-4, rtol=0)


def test_the_usual_pattern_generates_the_forced_lengths(tiny: measures.Case):
    model, _ = measures.load(tiny.name)
    rows, generating, measuring = usual.run(model, SMALL, seed=0, gen_rows=2, tf_rows=3)
    assert [len(row.response_ids) for row in rows] == SMALL.flat_lengths
    assert [row.prompt_ids for row in rows] == [p for p in SMALL.prompts for _ in range(SMALL.G)]
    assert all(torch.isfinite(row.logprobs).all() and (row.entropies > 0).all() for row in rows)
    assert generating > 0 < measuring


def test_decode_steps_count_what_a_walk_over_rows_counts():
    rng = random.Random(0)
    prompts = [[0] * rng.randint(1, 30) for _ in range(5)]
    workload = Workload(prompts, [[rng.randint(1, 12) for _ in range(4)] for _ in prompts])
    for t, step in enumerate(limits.decode_steps(workload), start=1):
        rows = [(b, t) for b, group in enumerate(workload.lengths) for n in group if n > t]
        assert step.rows == len(rows)
        assert step.attended == sum(len(prompts[b]) + t for b, _ in rows)
        prompts_read = sum(len(prompts[b]) for b in {b for b, _ in rows})
        assert step.cached == prompts_read + t * len(rows)
    assert sum(step.rows for step in limits.decode_steps(workload)) == workload.tokens - len(workload.flat_lengths)


def test_the_shape_counts_the_parameters_of_the_model():
    model = models.Qwen2ForCausalLM(models.config("tiny"))
    shape = limits.Shape.of(model.config, itemsize=2)
    products = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert shape.body + shape.head == sum(product.weight.numel() for product in products)
    assert shape.head == model.lm_head.weight.numel()
    cache = model(torch.ones(1, 7, dtype=torch.int64)).past_key_values
    assert shape.kv_numbers * 7 == sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)


def test_a_floor_is_what_its_slower_half_takes():
    shape = limits.Shape(body=10, head=4, kv_numbers=2, attention=1, itemsize=2)
    one = Workload([[0] * 3], [[2]])  # a prefill, and one step over a cache of 4 tokens
    prefill, step_flops, step_bytes = 2 * 10 * 3 + 9 / 2 + 2 * 4, 2 * 14 + 4, 2 * (14 + 4 * 2)
    assert limits.generation_floor(one, shape, 1.0, 1e9) == pytest.approx(prefill + step_flops)
    assert limits.generation_floor(one, shape, 1.0, 0.1) == pytest.approx(prefill + step_bytes / 0.1)
    assert limits.teacher_forcing_floor(one, shape, 1.0) == pytest.approx(2 * 10 * 3 + 9 / 2 + 2 * 14 * 2 + 2 * (3 + 1))


def test_unmeasured_draws_the_same_tokens():
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    arguments = (logits, list(range(6)), [0] * 6, distribution.Policy(0.8, 0.95))
    tokens, _ = distribution.sample(*arguments)
    with measures.without_measurements():
        assert torch.equal(distribution.sample(*arguments)[0], tokens)
        assert distribution.sample.keywords == {"measured": False}
    assert not hasattr(distribution.sample, "keywords")


def test_wrong_outputs_are_noticed():
    with pytest.raises(Wrong, match="11 tokens came out where 10 were asked for"):
        sequences.check_lengths([3, 1, 3, 4], SMALL)
    with pytest.raises(Wrong, match="2 values"):
        sequences.check_row([torch.zeros(3), torch.zeros(2)], 3)
    with pytest.raises(Wrong, match="not finite"):
        sequences.check_row([torch.tensor([0.0, -torch.inf])], 2)


def test_every_measurement_works(tiny: measures.Case):
    ways = measures.generate(tiny, 1, tuple(measures.WAYS))["ways"]
    assert set(ways) == set(measures.WAYS)
    assert all(len(timing["runs"]) == len(timing["load"]) == 1 for timing in ways.values())
    timing = measures.usual_pattern(tiny, 1)
    assert timing["seconds"] >= timing["generate_s"] > 0
    assert measures.teacher_forcing(tiny, 1)["peak_gib"] > 0
    for way in ("body", "ours", "naive"):
        for trained in (True, False):
            measured = measures.head_memory(tiny, way, trained, tokens=64)
            assert measured["peak_gib"] >= measured["before_gib"] > 0


def test_the_profile_counts_every_kernel_and_leaves_them_as_they_were(tiny: measures.Case):
    before = (Kernels.linear, Kernels.sample_rows)
    found = profile.profile(tiny)
    layers, steps, passes = 4, max(tiny.workload.flat_lengths) - 1, found["calls"]["head"]
    assert found["calls"]["decode steps"] == steps
    assert passes == steps + found["calls"]["prefill"]
    assert found["calls"]["attention"] == layers * passes
    assert found["calls"]["linear"] == 7 * layers * passes
    assert found["calls"]["sample_rows"] == found["calls"]["draws"] == passes
    inside = sum(s for name, s in found["seconds"].items() if name not in ("decode steps", "prefill", "draws"))
    assert 0 < inside < found["total"]
    assert (Kernels.linear, Kernels.sample_rows) == before


def test_the_table_and_the_json_of_a_run(
    gsm8k: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    canned = {
        "tiny: generate, default": {"ways": {"default": {"seconds": 2.0}}, "peak_gib": 0.5},
        "tiny: usual pattern": {"seconds": 30.0, "teacher_forcing_s": 10.0, "peak_gib": 0.7},
        "ceilings": {"flops": {"bfloat16": 1e12}, "bandwidth": 1e11},
        "tiny: shape": {"shape": limits.Shape(10, 10, 10, 10, 2), "dtype": "bfloat16"},
        "tiny: model": measures.prepare("tiny", tmp_path, quick=False),
    }
    monkeypatch.setattr(core.Session, "measure", lambda self, function, *args, name: canned[name])
    assert core.main(["--model", "tiny", "--only", "tiny", "memory"]) == 0
    out = capsys.readouterr().out
    report = json.loads(out.splitlines()[-1])
    assert {row["name"]: (row["measured"], row["verdict"]) for row in report["rows"]} == {
        "memory": (0.5, None),  # its bar is that of halfb
        "tiny": (15.0, "aim reached"),
    }
    assert "15 x" in out and "not the published one" in out and not report["published_data"]


@pytest.mark.parametrize(
    ("value", "at_least", "at_most"),
    [(20.0, "aim reached", "missed"), (12.0, "bar reached", "missed"), (5.0, "missed", "aim reached")],
)
def test_verdicts(value: float, at_least: str, at_most: str):
    upward = core.Row("", 10, True, "x", core.speed, 16, "halfb")
    downward = core.Row("", 10, False, "x", core.speed, 6, "halfb")
    assert (upward.verdict(value), downward.verdict(value)) == (at_least, at_most)


def test_a_measurement_runs_once_and_in_a_process_of_its_own():
    session = core.Session("tiny")
    child = session.measure(os.getpid, name="process")
    assert child != os.getpid()
    assert session.measure(os.getpid, name="process") == child


def test_a_process_that_dies_costs_its_row_and_no_other(
    tiny: measures.Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(BrokenProcessPool, match="The process of 'doomed' died, perhaps for want of memory"):
        core.Session("tiny").measure(os._exit, 1, name="doomed")

    def measure(session: core.Session, function: object, *args: object, name: str) -> object:
        if function is measures.usual_pattern:
            raise BrokenProcessPool("The process of 'usual' died.")
        return tiny if function is measures.prepare else {"ways": {"default": {"seconds": 1.0}}, "peak_gib": 1.0}

    monkeypatch.setattr(core.Session, "measure", measure)
    monkeypatch.setattr(core.Session, "floors", lambda session, model: {"generate": 0.5})
    assert core.main(["--model", "tiny", "--only", "tiny", "share"]) == 1
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]}
    assert (rows["tiny"]["verdict"], rows["tiny"]["measured"]) == ("failed", None)
    assert rows["tiny"]["beside"] == "The process of 'usual' died."
    assert rows["share"]["measured"] == 0.5


def test_gpu_says_in_one_sentence_that_there_is_none(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert "needs a CUDA GPU" in capsys.readouterr().out


def test_gpu_tried_out_on_the_cpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    work = gpu.workload(16, 4096)
    assert len(work.prompts) == 2 and work.lengths == response_lengths(2)
    monkeypatch.setattr(gpu, "workload", lambda rows, vocab_size: work.cut(2, 4))
    monkeypatch.setattr(gpu, "copy_bandwidth", lambda device: 1e10)
    assert gpu.main(["--device", "cpu", "--shape", "tiny", "--batches", "16", "--runs", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    report = json.loads(lines[-1])
    (line,) = report["batches"]
    read = sum(
        limits.step_bytes(s, limits.Shape.of(models.config("tiny"), 2)) for s in limits.decode_steps(work.cut(2, 4))
    )
    assert line["roofline_step_ms"] == pytest.approx(1e3 * read / 1e10 / 3)
    assert line["tokens"] == 2 * 8 * 4 and line["usual"]["peak_gib"] > 0
    assert [cell.strip() for cell in lines[-4].strip("|").split("|")] == list(gpu.COLUMNS)
