"""Results in other people's forms, read back by their own libraries."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import pytest
from openai.types.chat import ChatCompletion

from jobs import Client
from jobs.errors import NotFinished, ResultsError
from jobs.export import export
from jobs.manifest import verify
from jobs.openai_output import output_lines
from jobs.records import Job
from jobs.results import JobResults
from jobs.rollouts import rollouts
from tests.house import House
from tests.unit.jobs.test_results import PROMPTS, expected_rows


@pytest.fixture
def job(house: House) -> Job:
    """Five prompts in three shards, the third prompt an error."""
    rows = [{"prompt": p, "custom_id": f"c{i}", "answer": str(i)} for i, p in enumerate(PROMPTS)]
    return house.finish(house.submit(prompts=rows).job)


class TestOpenAI:
    def test_its_own_library_reads_every_line(self, house: House, job: Job) -> None:
        lines = list(house.results(job).to_openai())
        assert [line["custom_id"] for line in lines] == [f"c{i}" for i in range(5)]
        for line in lines:
            assert line.keys() == {"id", "custom_id", "response", "error"}
            if line["response"] is not None:
                body = line["response"]["body"]
                assert line["response"]["status_code"] == 200
                assert ChatCompletion.model_validate(body, strict=True).model_dump(exclude_unset=True) == body
        assert len({line["id"] for line in lines}) == 5

    def test_a_prompts_samples_are_its_choices(self, house: House, job: Job) -> None:
        lines = [line for line in house.results(job).to_openai() if line["error"] is None]
        rows = iter(expected_rows())
        for line in lines:
            completion = ChatCompletion.model_validate(line["response"]["body"])
            assert completion.created == int(job.created_at) and completion.model == "tiny-arithmetic"
            assert [choice.index for choice in completion.choices] == [0, 1]
            made = 0
            for choice in completion.choices:
                row = next(rows)
                assert (choice.message.content, choice.finish_reason) == (row["response"], "length")
                assert choice.logprobs is not None and choice.logprobs.content is not None
                assert [token.logprob for token in choice.logprobs.content] == row["logprobs"]
                assert "".join(token.token for token in choice.logprobs.content) == row["response"]
                assert all(bytes(token.bytes or []).decode() == token.token for token in choice.logprobs.content)
                made += len(row["response_ids"])
            assert completion.usage is not None
            assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (2, made)
        assert next(rows, None) is None

    def test_a_prompt_that_failed_is_an_error_in_its_place(self, house: House, job: Job) -> None:
        line = list(house.results(job).to_openai())[2]
        assert (line["custom_id"], line["response"]) == ("c2", None)
        assert line["error"] == {"code": "prompt_error", "message": "it is bad"}

    @pytest.mark.parametrize(
        ("changes", "tokens"),
        [
            ({"logprobs": None}, None),
            ({"response": "ab", "token_ends": [1, 2, 2], "logprobs": [-1.0, -2.0, float("-inf")]}, ["a", "b", ""]),
            ({"response": "ab", "token_ends": None, "logprobs": [-1.0, float("nan")]}, ["", ""]),
            ({"response": "", "token_ends": [], "logprobs": []}, []),
        ],
    )
    def test_tokens_without_a_text_or_a_number(
        self, house: House, job: Job, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], tokens: list[str] | None
    ) -> None:
        rows = [row | changes for row in expected_rows()[:1]]
        monkeypatch.setattr("jobs.openai_output.read_rows", lambda _: iter(rows))
        results = house.results(job)
        [line] = output_lines(results.contents(), results.files()[:1], 0.0)
        [choice] = ChatCompletion.model_validate(line["response"]["body"]).choices
        content = choice.logprobs.content if choice.logprobs else None
        assert (content and [token.token for token in content]) == tokens
        assert all(-9999.0 <= token.logprob <= 0 for token in content or ())

    def test_alternatives_by_their_texts_or_ids(self, house: House, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
        row = expected_rows()[0] | {
            "response": "ab",
            "response_ids": [5, 6],
            "token_ends": [1, 2],
            "logprobs": [-0.5, -3.0],
            "top_ids": [[5, 9], [9, 7]],
            "top_logprobs": [[-0.5, -1.0], [-0.25, float("-inf")]],
        }
        monkeypatch.setattr("jobs.openai_output.read_rows", lambda _: iter([row]))
        results = house.results(job)
        [line] = output_lines(results.contents(), results.files()[:1], 0.0)
        [choice] = ChatCompletion.model_validate(line["response"]["body"], strict=True).choices
        assert choice.logprobs is not None and choice.logprobs.content is not None
        found = [[(t.token, t.logprob, t.bytes) for t in token.top_logprobs] for token in choice.logprobs.content]
        assert found == [
            [("a", -0.5, [97]), ("token_id:9", -1.0, None)],
            [("token_id:9", -0.25, None), ("token_id:7", -9999.0, None)],
        ]
        assert [token.token for token in choice.logprobs.content] == ["a", "b"]


class TestTrl:
    def test_rollouts_of_so_many_prompts(self, house: House, job: Job) -> None:
        batches = list(house.results(job).to_trl(prompts=3))
        assert [batch["prompt_index"] for batch in batches] == [[0, 0, 1, 1, 3, 3], [4, 4]]
        rows = expected_rows()
        assert [value for batch in batches for value in batch["prompt_ids"]] == [r["prompt_ids"] for r in rows]
        assert [value for batch in batches for value in batch["completion_ids"]] == [
            row["response_ids"] for row in rows
        ]
        assert [value for batch in batches for value in batch["logprobs"]] == [r["sampling_logprobs"] for r in rows]
        assert [value for batch in batches for value in batch["answer"]] == ["0", "0", "1", "1", "3", "3", "4", "4"]
        lengths = {len(values) for batch in batches[:1] for values in batch.values()}
        assert lengths == {6}, "an element a sequence under every key"

    def test_rewards_go_along(self) -> None:
        row = expected_rows()[0] | {"reward_math_answer": None, "reward_mine": 0.5}
        [batch] = rollouts([row], 1)
        assert (batch["reward_math_answer"], batch["reward_mine"]) == ([None], [0.5])

    def test_without_the_sampling_distribution(self) -> None:
        with pytest.raises(ResultsError, match="kept no sampling_logprobs"):
            list(rollouts([expected_rows()[0] | {"sampling_logprobs": None}], 1))

    def test_no_prompts_at_a_time(self, house: House, job: Job) -> None:
        with pytest.raises(ValueError, match="of 1 prompt or more at a time, not 0"):
            house.results(job).to_trl(prompts=0)


@pytest.mark.parametrize("read", [JobResults.to_openai, JobResults.to_trl])
def test_an_unfinished_job_only_when_asked(house: House, read: Any) -> None:
    job = house.submit(prompts=PROMPTS).job
    house.run_one()
    with pytest.raises(NotFinished):
        read(house.results(job))
    assert len(list(read(house.results(job), partial=True))) > 0


class TestFiles:
    def test_openai(self, house: House, job: Job, tmp_path: Path) -> None:
        told: list[tuple[int, int]] = []
        [file, *_] = export(house.results(job), tmp_path / "out", "openai", on_file=lambda *n: told.append(n))
        assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
        assert file.name == "openai.jsonl"
        assert [json.loads(line) for line in file.open()] == list(house.results(job).to_openai())
        assert verify(tmp_path / "out") == []
        with pytest.raises(ResultsError, match=r"is an export as JSONL: read openai\.jsonl"):
            list(JobResults.from_folder(tmp_path / "out").rows())

    def test_trl(self, house: House, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        export(house.results(job), tmp_path / "out", "openai")
        [file, *_] = export(house.results(job), tmp_path / "out", "trl")
        assert sorted(p.name for p in (tmp_path / "out").glob("*.jsonl")) == ["errors.jsonl", "trl.jsonl"]
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        read = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
        [batch] = house.results(job).to_trl()
        for key, values in batch.items():
            finite = [[None if x == float("-inf") else x for x in v] for v in values] if key == "logprobs" else values
            assert list(read[key]) == finite

    def test_memory_does_not_grow_with_the_job(self, house: House, tmp_path: Path) -> None:
        peaks = []
        for prompts in (200, 2_000):
            job = house.finish(house.submit(prompts=[f"p{i}" for i in range(prompts)], shard_size=100).job)
            tracemalloc.start()
            for format in ("openai", "trl"):
                export(house.results(job), tmp_path / f"{prompts}-{format}", format)  # type: ignore[arg-type]
            assert sum(1 for _ in house.results(job).to_openai()) == prompts
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert peaks[1] < 1.5 * peaks[0], peaks


class TestRoundTrips:
    def test_a_dataset_to_disk_and_back(self, tmp_path: Path, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        given = datasets.Dataset.from_dict({"q": ["one é", "two\n", "three"], "gold": [1, 2, 3], "id": ["x", "y", "z"]})
        given.save_to_disk(tmp_path / "disk")
        columns = {"prompt": "q", "answer": "gold", "custom_id": "id"}
        job = house.finish(house.submit(dataset=f"disk:{tmp_path / 'disk'}", columns=columns).job)
        found = house.results(job).dataset().filter(lambda row: row["sample_index"] == 1)
        assert [list(found[name]) for name in ("prompt", "answer", "custom_id")] == [
            list(given["q"]),
            ["1", "2", "3"],
            list(given["id"]),
        ]
        house.results(job).dataset().remove_columns("custom_id").save_to_disk(tmp_path / "again")  # prompts again
        again = house.submit(kind="score", dataset=f"disk:{tmp_path / 'again'}")
        assert again.job.num_prompts == 6

    def test_pandas(self, house: House, tmp_path: Path) -> None:
        import pandas

        frame = pandas.DataFrame({"prompt": ["a", "b, c", 'd "e"'], "answer": ["1", "2", "3"]})
        frame.to_csv(tmp_path / "p.csv", index=False)
        frame.to_parquet(tmp_path / "p.parquet")
        for file in ("p.csv", "p.parquet"):
            job = house.finish(house.submit(file=str(tmp_path / file)).job)
            found = house.results(job).to_pandas().query("sample_index == 0").reset_index()
            assert found["prompt"].tolist() == frame["prompt"].tolist()
            assert found["answer"].tolist() == frame["answer"].tolist()

    def test_an_openai_batch(self, house: House, tmp_path: Path) -> None:
        file = tmp_path / "batch.jsonl"
        ids = [f"request-{i} é" for i in range(5)]
        lines = [{"custom_id": i, "url": "/v1/completions", "body": {"prompt": "x", "n": 2}} for i in ids]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        job = house.finish(house.submit(file=str(file)).job)
        with Client(house.settings) as client:
            told = list(client.get(job.id).to_openai())
        assert [line["custom_id"] for line in told] == ids
        assert [len(line["response"]["body"]["choices"]) for line in told] == [2] * 5
