"""A job and the one that scored its sequences: against closed forms, and against every product taken one by one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from jobs.client import Client, JobHandle
from jobs.compared import Shift
from jobs.errors import JobNotFound, NotFinished, ResultsError, SpecError, UsageError
from jobs.report import report, table
from jobs.shard_files import write_attempt
from jobs.snapshot import read_all
from tests.house import House

OLD, NEW = {3: 0.4, 4: 0.3, 5: 0.2, 6: 0.1}, {3: 0.1, 4: 0.2, 5: 0.3, 6: 0.4}  # token: its probability
Measure = Callable[[int, int, list[int]], dict[str, Any]]
"""(prompt_index, sample_index, tokens) → the measured columns."""


def steady(probabilities: dict[int, float]) -> Measure:
    """The same distribution at every position."""
    return lambda _p, _g, tokens: {
        name: [math.log(probabilities[t]) for t in tokens] for name in ("logprobs", "sampling_logprobs")
    }


def made(house: House, tokens: list[list[list[int]]], old: Measure, **fields: Any) -> JobHandle:
    """An ended job of these tokens, by prompt and sample. A prompt without samples could not be done."""
    prompts = [{"prompt": f"p{i}", "custom_id": f"é {i}", "answer": "1"} for i in range(len(tokens))]
    job = house.submit(prompts, G=max(map(len, tokens)), **fields).job
    finish(house, lambda p, _: [row(p, g, ids, old(p, g, ids)) for g, ids in enumerate(tokens[p])])
    return Client(house.settings).get(job.id)


def scored(house: House, job: JobHandle, new: Measure, *, failed: tuple[int, ...] = (), **fields: Any) -> JobHandle:
    """What `job.score` made, done without a model; the sequences `failed`, counted from 0, could not be scored."""
    handle = job.score(**fields)
    before = list(job.rows())

    def rows(index: int, _custom_id: str) -> list[dict[str, Any]]:
        if index in failed:
            return []
        old = before[index]
        measured = new(old["prompt_index"], old["sample_index"], old["response_ids"])
        return [row(index, 0, old["response_ids"], measured)]

    finish(house, rows)
    handle.refresh()
    return handle


def row(prompt: int, sample: int, tokens: list[int], measured: dict[str, Any]) -> dict[str, Any]:
    entropies = {name: [0.5] * len(tokens) for name in ("entropies", "sampling_entropies")}
    named = {"prompt_index": prompt, "sample_index": sample, "response": "x", "answer": "1", "finish_reason": "eos"}
    return named | {"prompt_ids": [1, prompt], "response_ids": tokens} | entropies | measured


def finish(house: House, rows_of: Callable[[int, str], list[dict[str, Any]]]) -> None:
    """Run all shards; a prompt without rows is an error."""
    while (claim := house.claim()) is not None:
        shard, paths = claim.shard, house.paths(claim.job)
        rows: list[dict[str, Any]] = []
        errors = []
        for prompt in list(read_all(paths, 1))[shard.start : shard.stop]:
            found = rows_of(prompt.prompt_index, prompt.custom_id)
            rows += [{**item, "custom_id": prompt.custom_id} for item in found]
            named = {"prompt_index": prompt.prompt_index, "sample_index": None, "custom_id": prompt.custom_id}
            errors += [] if found else [named | {"error": "it is bad"}]
        assert house.store.commit(claim, write_attempt(paths, shard, rows, errors, {}))


class TestFigures:
    def test_tokens_in_exact_proportion_give_the_divergence_itself(self, house: House) -> None:
        """Ten sequences of a token, each as often as it is probable: expectations are sums, and so in closed form."""
        tokens = [[[token] for token, share in OLD.items() for _ in range(round(10 * share))]]
        job = made(house, tokens, steady(OLD))
        found = scored(house, job, steady(NEW)).compared().summary()
        divergence = sum(p * math.log(p / NEW[t]) for t, p in OLD.items())
        chi2 = sum(NEW[t] ** 2 / p for t, p in OLD.items()) - 1
        for shift in (found.model, found.sampling):
            assert shift is not None
            assert shift.k1 == pytest.approx(divergence, rel=1e-6)
            assert shift.k3 == pytest.approx(divergence, rel=1e-6)
            assert shift.ess == pytest.approx(10 / (1 + chi2), rel=1e-6)
            assert shift.largest == pytest.approx(math.log(4), rel=1e-6)
        assert (found.source, found.sequences, found.tokens, found.failed) == (job.id, 10, 10, 0)

    def test_against_every_product_one_by_one(self, house: House) -> None:
        """Random responses of several tokens, an empty one among them, in several shards."""
        rng = np.random.default_rng(0)
        tokens = [[rng.integers(3, 7, (p + g) % 6).tolist() for g in range(3)] for p in range(9)]
        noise = {(p, g): rng.normal(0, 0.7, 6) for p in range(9) for g in range(3)}

        def new(prompt: int, sample: int, ids: list[int]) -> dict[str, Any]:
            model = [math.log(OLD[t]) + noise[prompt, sample][i] for i, t in enumerate(ids)]
            return {"logprobs": model, "sampling_logprobs": [value / 2 for value in model]}

        job = made(house, tokens, steady(OLD))
        handle = scored(house, job, new, shard_size=4)
        summary = handle.compared().summary()
        old_rows, new_rows = list(job.rows()), list(handle.rows())
        for name, shift in (("logprobs", summary.model), ("sampling_logprobs", summary.sampling)):
            weights, k1, k3 = [], [], []
            for before, after in zip(old_rows, new_rows, strict=True):
                ratios = [b / a for a, b in zip(map(math.exp, before[name]), map(math.exp, after[name]), strict=True)]
                weights.append(math.prod(ratios))
                k1 += [-math.log(ratio) for ratio in ratios]
                k3 += [(ratio - 1) - math.log(ratio) for ratio in ratios]
            ess = math.fsum(weights) ** 2 / math.fsum(w * w for w in weights)
            assert shift is not None
            assert shift.ess == pytest.approx(ess, rel=1e-9)
            assert shift.ess_share == pytest.approx(ess / 27, rel=1e-9)
            assert shift.k1 == pytest.approx(math.fsum(k1) / len(k1), rel=1e-9)
            assert shift.k3 == pytest.approx(math.fsum(k3) / len(k3), rel=1e-9)
            assert shift.largest == pytest.approx(max(map(abs, k1)), rel=1e-9)
            assert (shift.outside, shift.unknown, shift.unweighted) == (0, 0, 0)

    def test_what_a_nucleus_leaves_out(self, house: House) -> None:
        """A token outside the new one makes the weight 0, one outside the old one leaves no weight at all."""
        inf = float("inf")
        new = {3: -inf, 4: math.log(0.6)}
        old = {3: math.log(0.5), 4: math.log(0.5), 5: -inf}
        job = made(
            house,
            [[[4, 4], [4, 3], [4, 5]]],
            lambda _p, _g, ids: {"logprobs": [-1.0] * len(ids), "sampling_logprobs": [old[t] for t in ids]},
        )
        handle = scored(
            house,
            job,
            lambda _p, _g, ids: {
                "logprobs": [-1.0] * len(ids),
                "sampling_logprobs": [new.get(t, -inf) for t in ids],
            },
        )
        compared = handle.compared()
        found = compared.summary()
        assert found.sampling == Shift(
            k1=inf,
            k3=inf,
            largest=pytest.approx(math.log(1.2)),
            ess=1.0,
            ess_share=0.5,
            outside=1,
            unknown=1,
            unweighted=1,
        )
        assert found.model == Shift(0.0, 0.0, 0.0, 3.0, 1.0, 0, 0, 0)
        weights = [item["log_weight"] for item in compared.rows()]
        assert weights == [pytest.approx(2 * math.log(1.2)), -inf, None]

    def test_measurements_that_one_of_them_lacks(self, house: House) -> None:
        job = made(house, [[[3], [4]]], lambda _p, _g, ids: {"logprobs": [-1.0] * len(ids)})
        found = scored(house, job, steady(NEW)).compared()
        summary = found.summary()
        assert summary.sampling is None and summary.model is not None
        assert [(item["sampling_log_ratios"], item["log_weight"]) for item in found.rows()] == [(None, None)] * 2


class TestRows:
    def test_the_sources_columns_and_what_is_new(self, house: House) -> None:
        job = made(house, [[[3, 4], [5]], [], [[6], [3]]], steady(OLD))
        handle = scored(house, job, steady(NEW), failed=(2,))
        rows = list(handle.compared().rows())
        assert [(r["prompt_index"], r["sample_index"], r["custom_id"]) for r in rows] == [
            (0, 0, "é 0"),
            (0, 1, "é 0"),
            (2, 1, "é 2"),
        ]
        before = {(r["prompt_index"], r["sample_index"]): r for r in job.rows()}
        for item in rows:
            old = before[item["prompt_index"], item["sample_index"]]
            for name, value in old.items():
                assert np.array_equal(item[name], value) if isinstance(value, list) else item[name] == value
            expected = [math.log(NEW[t] / OLD[t]) for t in old["response_ids"]]
            np.testing.assert_allclose(item["sampling_log_ratios"], expected, rtol=1e-5)
            np.testing.assert_allclose(item["new_logprobs"], [math.log(NEW[t]) for t in old["response_ids"]], rtol=1e-6)
            assert item["log_ratios"].dtype == np.float64
            assert item["log_weight"] == pytest.approx(sum(expected), rel=1e-5)
        summary = handle.compared().summary()
        assert (summary.sequences, summary.failed) == (3, 1)
        frame = handle.compared().to_pandas()
        assert list(frame["log_weight"]) == [item["log_weight"] for item in rows]

    def test_the_report_has_it(self, house: House) -> None:
        job = made(house, [[[3, 4], [5]]], steady(OLD))
        handle = scored(house, job, steady(NEW))
        found = report(handle)
        assert found.compared == handle.compared().summary()
        assert found.apart is None, "what was given is no sample of this job's distribution"
        frame = table([report(job), found])
        assert list(frame["compared_source"])[1] == job.id
        assert list(frame["compared_sampling_ess"])[1] == found.compared.sampling.ess  # type: ignore[union-attr]

    def test_a_job_of_its_own(self, house: House) -> None:
        job = made(house, [[[3]]], steady(OLD))
        with pytest.raises(UsageError, match=f"did not score another job's sequences; seqproc score {job.id}"):
            job.compared()

    def test_an_unfinished_one(self, house: House) -> None:
        job = made(house, [[[3]]], steady(OLD))
        handle = job.score()
        with pytest.raises(NotFinished):
            handle.compared().summary()
        assert handle.compared().summary(partial=True).sequences == 0

    def test_a_source_that_was_deleted(self, house: House) -> None:
        job = made(house, [[[3, 4]]], steady(OLD))
        handle = scored(house, job, steady(NEW))
        job.delete()
        assert [r["response_ids"] for r in handle.rows()] == [[3, 4]]
        with pytest.raises(JobNotFound, match=f"job {job.id}, whose sequences job {handle.id} scored, was deleted"):
            handle.compared()
        assert report(handle).compared is None

    def test_other_tokens_than_were_scored(self, house: House) -> None:
        job = made(house, [[[3, 4]]], steady(OLD))
        handle = job.score()
        finish(house, lambda p, _: [row(p, 0, [3, 5], steady(NEW)(0, 0, [3, 5]))])
        with pytest.raises(ResultsError, match="sequence é 0#0 has other tokens"):
            handle.compared().summary()


class TestSpec:
    def test_what_is_taken_over(self, house: House) -> None:
        job = made(house, [[[3], [4]]] * 3, steady(OLD), temperature=0.7, top_p=0.9, queue="default", shard_size=2)
        spec = job.score().record.spec
        assert (spec["kind"], spec["source"], spec["model"], spec["G"]) == ("score", job.id, "tiny-arithmetic", 1)
        assert (spec["temperature"], spec["top_p"], spec["seed"], spec["shard_size"]) == (0.7, 0.9, 1, 4)
        given = job.score(temperature=1.0, shard_size=1, name="n", priority=3).record
        assert (given.spec["temperature"], given.spec["top_p"], given.num_shards) == (1.0, 0.9, 6)
        assert (given.name, given.priority) == ("n", 3)

    def test_the_tokens_as_they_stand(self, house: House) -> None:
        job = made(house, [[[3, 4], []], [], [[6], [3]]], steady(OLD))
        handle = job.score()
        stored = list(read_all(house.paths(handle.record), 1))
        assert [(r.custom_id, r.content, r.response_token_ids) for r in stored] == [
            ("é 0#0", [1, 0], [3, 4]),
            ("é 0#1", [1, 0], []),
            ("é 2#0", [1, 2], [6]),
            ("é 2#1", [1, 2], [3]),
        ]

    def test_which_model(self, house: House) -> None:
        """A model that is given is alone, an adapter goes over the job's model, and with neither all is as it was."""
        job = made(house, [[[3]]], steady(OLD), adapter="o/old", revision="r1", model="o/m")
        for given, expected in (
            ({}, ("o/m", "r1", "o/old")),
            ({"adapter": "o/new"}, ("o/m", "r1", "o/new")),
            ({"model": "o/other"}, ("o/other", None, None)),
            ({"model": "o/m", "revision": "r2"}, ("o/m", "r2", None)),
        ):
            spec = job.score(**given).record.spec
            assert (spec["model"], spec["revision"], spec["adapter"]) == expected, given

    def test_what_cannot_be_scored(self, house: House) -> None:
        waiting = Client(house.settings).get(house.submit(["a"]).job.id)
        with pytest.raises(SpecError, match=rf"source: job {waiting.id} is queued; score it once it has ended"):
            waiting.score()
        waiting.cancel()
        with pytest.raises(SpecError, match=rf"source: job {waiting.id} is cancelled and has no sequences to score"):
            waiting.score()
        client = Client(house.settings)
        with pytest.raises(SpecError, match="source: no job zzz"):
            client.submit(kind="score", source="zzz", model="m")
        with pytest.raises(SpecError, match="source names the job whose sequences are scored: that is kind score"):
            client.submit(source="zzz", model="m")
        with pytest.raises(SpecError, match="prompts come from one place, but prompts and source are given"):
            client.submit(kind="score", source=waiting.id, model="m", prompts=iter(["a"]))
        with pytest.raises(SpecError, match="prompts come from one place, but dataset and source are given"):
            client.submit(kind="score", source=waiting.id, model="m", dataset="disk:x")
        assert len(client.jobs()) == 1

    def test_a_name_of_the_longest_kind(self, house: House) -> None:
        """A name may have 512 characters, and that of a sequence is longer."""
        job = house.submit([{"prompt": "a", "custom_id": "x" * 512}], G=1).job
        finish(house, lambda p, _: [row(p, 0, [3], steady(OLD)(0, 0, [3]))])
        handle = scored(house, Client(house.settings).get(job.id), steady(NEW))
        assert next(handle.compared().rows())["custom_id"] == "x" * 512

    def test_the_tokenizer_is_the_sources(self, house: House) -> None:
        job = house.submit(["a"], G=1).job
        claim = house.claim()
        assert claim is not None
        house.store.pin_identity(claim, {"model": "m", "tokenizer": f"sha256:{'a' * 64}"})
        assert house.store.commit(
            claim, write_attempt(house.paths(job), claim.shard, [row(0, 0, [3], {}) | {"custom_id": "0"}], [], {})
        )
        handle = Client(house.settings).get(job.id)
        assert handle.score().record.spec["tokenizer"] == f"sha256:{'a' * 64}"
        assert handle.score(tokenizer="any").record.spec["tokenizer"] == "any"

    def test_a_key_for_the_same_score(self, house: House) -> None:
        job = made(house, [[[3]]], steady(OLD))
        first = job.score(idempotency_key="k")
        again = job.score(idempotency_key="k")
        assert (again.created, again.id) == (False, first.id)
        assert again.record.spec["source"] == job.id
