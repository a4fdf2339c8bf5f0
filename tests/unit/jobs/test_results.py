"""Reading results: from the database, from a copied folder and from exports, always the same rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.errors import NotFinished, ResultsError
from jobs.export import export
from jobs.manifest import ensure_manifest, verify
from jobs.records import Job
from jobs.results import JobResults
from jobs.snapshot import SnapshotRow
from tests.house import House
from tests.rows import made_row

PROMPTS = ["p0", "p1", "bad", "p3", "p4"]


@pytest.fixture
def job(house: House) -> Job:
    """Five prompts in three shards, the third prompt an error."""
    rows = [{"prompt": p, "custom_id": f"c{i}"} for i, p in enumerate(PROMPTS)]
    return house.finish(house.submit(prompts=rows).job)


def expected_rows() -> list[dict[str, Any]]:
    made = [
        made_row(SnapshotRow(i, f"c{i}", prompt=p), g) for i, p in enumerate(PROMPTS) if p != "bad" for g in range(2)
    ]
    return [{k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in row.items()} for row in made]


ERRORS = [{"prompt_index": 2, "sample_index": None, "custom_id": "c2", "error": "it is bad"}]


class TestReading:
    def test_rows_and_errors(self, house: House, job: Job) -> None:
        results = house.results(job)
        assert list(results.rows()) == expected_rows()
        assert list(results.errors()) == ERRORS
        assert [file.prompt_errors for file in results.files()] == [0, 1, 0]

    def test_a_copied_folder_by_its_manifest_alone(self, house: House, job: Job, tmp_path: Path) -> None:
        ensure_manifest(house.store, house.settings, job.id)
        shutil.move(house.paths(job).folder, tmp_path / "copy")
        (tmp_path / "copy" / "shards" / "shard-000000-a009-00000000.parquet").write_text("a listing would trip here")
        results = JobResults.from_folder(tmp_path / "copy")
        assert list(results.rows()) == expected_rows()
        assert list(results.errors()) == ERRORS

    def test_pandas_and_dataset(self, house: House, job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        frame = house.results(job).to_pandas()
        assert frame["response"].tolist() == [row["response"] for row in expected_rows()]
        assert frame["logprobs"][1].dtype == np.float32
        assert list(house.results(job).dataset()) == expected_rows()
        ensure_manifest(house.store, house.settings, job.id)
        strange = shutil.copytree(house.paths(job).folder, tmp_path / "[a]* b")  # datasets takes glob patterns
        assert list(JobResults.from_folder(strange).dataset()) == expected_rows()

    def test_nothing_but_errors(self, house: House) -> None:
        job = house.finish(house.submit(prompts=["bad"]).job)
        results = house.results(job)
        assert list(results.rows()) == []
        assert len(results.to_pandas()) == len(results.dataset()) == 0
        sequences, logprobs = results.to_batched()
        assert (sequences.prompt_lens, logprobs.logprobs) == ([], [])

    def test_an_unfinished_job_only_when_asked(self, house: House) -> None:
        job = house.submit(prompts=PROMPTS).job
        house.run_one()
        results = house.results(job)
        for read in (
            results.rows,
            results.errors,
            results.to_pandas,
            results.to_batched,
            results.dataset,
            results.files,
        ):
            with pytest.raises(NotFinished, match=r"is running, with 1 of 3 shards done: .*partial"):
                read()
        assert [row["prompt_index"] for row in results.rows(partial=True)] == [0, 0, 1, 1]
        house.store.cancel(job.id)
        assert len(list(results.rows())) == 4, "committed shards of a cancelled job stay readable"

    def test_a_file_that_is_gone(self, house: House, job: Job) -> None:
        results = house.results(job)
        results.files()[1].path.unlink()
        with pytest.raises(ResultsError, match="is missing: its folder was moved, cleared or copied in part"):
            list(results.rows())
        with pytest.raises(ResultsError, match="is missing"):
            results.dataset()

    def test_no_manifest(self, tmp_path: Path) -> None:
        with pytest.raises(ResultsError, match=r"has no manifest\.json"):
            JobResults.from_folder(tmp_path)


class TestBatched:
    def test_the_cores_containers(self, house: House, job: Job) -> None:
        sequences, logprobs = house.results(job).to_batched()
        assert sequences.prompt_indices == sequences.prompt_keys == [0, 1, 3, 4]
        assert sequences.seed == 1
        rows = iter(expected_rows())
        for b in range(4):
            for g in range(2):
                row = next(rows)
                start, n = sequences.prompt_lens[b], sequences.gen_lens[b][g]
                assert sequences.sequences[b, g, :start].tolist() == row["prompt_ids"]
                assert sequences.sequences[b, g, start : start + n].tolist() == row["response_ids"]
                assert sequences.responses_text[b][g] == row["response"]
                assert torch.equal(logprobs.logprobs[b][g], torch.tensor(row["logprobs"]))
                assert logprobs.entropies[b][g].tolist() == row["entropies"]
                assert logprobs.sampling_logprobs[b][g].tolist() == row["sampling_logprobs"]
                assert logprobs.sequence_logprobs[b][g] == sum(row["logprobs"])

    def test_a_measurement_that_was_not_kept_is_nan(self, house: House, job: Job) -> None:
        sequences, logprobs = house.results(job).to_batched()
        kept = logprobs.sampling_entropies[1][1]
        assert len(kept) == sequences.gen_lens[1][1] > 0
        assert np.isnan(kept).all()


class TestExport:
    def test_parquet_is_read_back(self, house: House, job: Job, tmp_path: Path) -> None:
        out = tmp_path / "out"
        files = export(house.results(job), out)
        names = ["sequences.parquet", "errors.jsonl", "spec.json", "manifest.json"]
        assert files == [out / name for name in names]
        assert sorted(path.name for path in out.iterdir()) == sorted(names)
        assert list(JobResults.from_folder(out).rows()) == expected_rows()
        assert list(JobResults.from_folder(out).errors()) == ERRORS
        assert verify(out) == []
        assert json.loads((out / "spec.json").read_text()) == job.spec

    def test_jsonl_has_null_for_what_is_not_finite(self, house: House, job: Job, tmp_path: Path) -> None:
        (file, *_) = export(house.results(job), tmp_path / "out", "jsonl")
        text = file.read_text()
        assert "Infinity" not in text and "NaN" not in text
        read = [json.loads(line) for line in text.splitlines()]
        for row, expected in zip(read, expected_rows(), strict=True):
            values = [None if v == float("-inf") else v for v in expected["sampling_logprobs"]]
            assert row == expected | {"sampling_logprobs": values}
        assert verify(tmp_path / "out") == []
        with pytest.raises(ResultsError, match="is an export as JSONL"):
            list(JobResults.from_folder(tmp_path / "out").rows())

    def test_again_replaces(self, house: House, job: Job, tmp_path: Path) -> None:
        export(house.results(job), tmp_path / "out", "parquet")
        (tmp_path / "out" / "notes.txt").write_text("mine")
        export(house.results(job), tmp_path / "out", "jsonl")
        names = {path.name for path in (tmp_path / "out").iterdir()}
        assert names == {"sequences.jsonl", "errors.jsonl", "spec.json", "manifest.json", "notes.txt"}

    def test_what_belongs_to_others_is_left_alone(self, house: House, job: Job, tmp_path: Path) -> None:
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis" / "chapter.tex").write_text("x")
        other = house.finish(house.submit(prompts=["a"]).job)
        export(house.results(other), tmp_path / "other")
        ensure_manifest(house.store, house.settings, job.id)
        for target in (tmp_path / "thesis", tmp_path / "other", house.paths(job).folder):
            with pytest.raises(ResultsError, match=f"is not empty and holds no export of job {job.id}"):
                export(house.results(job), target)
        assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]

    def test_a_failure_leaves_nothing(self, house: House, job: Job, tmp_path: Path) -> None:
        house.results(job).files()[2].path.unlink()
        (tmp_path / "empty").mkdir()
        for target in (tmp_path / "new", tmp_path / "empty"):
            with pytest.raises(ResultsError, match="is missing"):
                export(house.results(job), target)
        assert not (tmp_path / "new").exists()
        assert list((tmp_path / "empty").iterdir()) == []

    def test_part_of_a_running_job(self, house: House, tmp_path: Path) -> None:
        job = house.submit(prompts=PROMPTS).job
        house.run_one()
        with pytest.raises(NotFinished):
            export(house.results(job), tmp_path / "out")
        assert not (tmp_path / "out").exists()
        export(house.results(job), tmp_path / "out", partial=True)
        assert len(list(JobResults.from_folder(tmp_path / "out").rows(partial=True))) == 4
        house.finish(job)
        export(house.results(job), tmp_path / "out")
        assert len(list(JobResults.from_folder(tmp_path / "out").rows())) == 8
