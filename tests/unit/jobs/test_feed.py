"""A job that is fed, on this machine: what is stored is what a file of the same prompts would have made."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from jobs import Client
from jobs.errors import ResultsError, SpecError, StoreError, UsageError, WrongState
from jobs.gc import collect
from jobs.intake import Intake
from jobs.manifest import ensure_manifest, read_manifest, verify
from jobs.names import Names
from jobs.records import Job, Shard
from jobs.snapshot import BadPrompt, read_all
from jobs.spec import JobSpec, PromptRow
from jobs.store import Store
from tests.house import House

SPEC: dict[str, Any] = {"model": "tiny-arithmetic", "G": 2, "seed": 1, "shard_size": 2}


@pytest.fixture
def intake(house: House) -> Intake:
    return Intake(house.store, house.settings)


@pytest.fixture
def job(intake: Intake) -> Job:
    return intake.open(JobSpec.parse(SPEC), owner="ann", feeder=None).job


@pytest.fixture
def client(house: House) -> Iterator[Client]:
    with Client(house.settings) as client:
        yield client


def prompts(*texts: str) -> list[PromptRow]:
    return [PromptRow(prompt=text) for text in texts]


def stored(house: House, job: Job) -> list[tuple[int, str, Any, str | None]]:
    rows = read_all(house.paths(job), house.store.segments(job.id))
    return [(row.prompt_index, row.custom_id, row.prompt, row.error) for row in rows]


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class TestIntake:
    def test_the_snapshot_is_that_of_a_file(self, house: House, intake: Intake, job: Job) -> None:
        intake.append(job.id, 0, prompts("a", "b", "c"))
        intake.append(job.id, 3, prompts("d"))
        sealed = intake.seal(job.id, None)
        assert sealed.snapshot_digest == house.submit(prompts=["a", "b", "c", "d"]).job.snapshot_digest
        assert [(s.segment, s.start, s.stop) for s in house.store.shards(job.id)] == [(0, 0, 2), (0, 2, 3), (1, 0, 1)]
        house.finish(job)
        ensure_manifest(house.store, house.settings, job.id)
        assert verify(house.paths(job).folder) == []
        manifest = read_manifest(house.paths(job).folder)
        assert (manifest["sealed"], manifest["truncated"], manifest["snapshot"]["segments"]) == (True, None, 2)

    def test_names_that_stand_twice(self, house: House, intake: Intake, job: Job) -> None:
        a, b = (PromptRow(prompt=name, custom_id=name) for name in "ab")
        intake.append(job.id, 0, [a, b, a])
        intake.append(job.id, 3, [b, PromptRow(prompt="x", custom_id="5"), PromptRow(prompt="y")])
        errors = [error for *_, error in stored(house, job)]
        stands = "stands already before it; give each its own"
        assert errors == [
            None,
            None,
            f"custom_id: 'a' {stands}",
            f"custom_id: 'b' {stands}",
            None,
            f"custom_id: '5' (a row without a custom_id gets its index) {stands}",
        ]

    def test_another_process_knows_the_names_too(self, house: House, intake: Intake, job: Job) -> None:
        """After a restart of the server they are read again from the prompts that are there."""
        intake.append(job.id, 0, [PromptRow(prompt="a", custom_id="a"), BadPrompt("no JSON")])
        other = Intake(house.store, house.settings)
        other.append(job.id, 2, [PromptRow(prompt="b", custom_id="a"), PromptRow(prompt="c", custom_id="c")])
        intake.append(job.id, 4, [PromptRow(prompt="d", custom_id="c"), PromptRow(prompt="e", custom_id="1")])
        assert [error is None for *_, error in stored(house, job)] == [True, False, False, True, False, True]

    def test_a_reply_that_is_lost(
        self, house: House, intake: Intake, job: Job, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The piece is there, its sender does not know, and sends it again: it is there once, and no twin of itself."""
        really = Store.append_prompts

        def lose(*args: Any) -> Job:
            really(*args)
            raise StoreError("lost")

        piece = [PromptRow(prompt="a", custom_id="a"), PromptRow(prompt="b", custom_id="b")]
        with monkeypatch.context() as patch:
            patch.setattr(Store, "append_prompts", lose)
            with pytest.raises(StoreError):
                intake.append(job.id, 0, piece)
        assert intake.append(job.id, 0, piece).num_prompts == 2
        intake.append(job.id, 2, [PromptRow(prompt="c", custom_id="b")])
        assert [error is None for *_, error in stored(house, job)] == [True, True, False]

    def test_a_piece_that_was_not_committed_leaves_nothing(
        self, house: House, intake: Intake, job: Job, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: Any) -> Job:
            raise StoreError("away")

        with monkeypatch.context() as patch:
            patch.setattr(Store, "append_prompts", fail)
            with pytest.raises(StoreError):
                intake.append(job.id, 0, prompts("a"))
        assert list(house.paths(job).prompts.iterdir()) == []
        assert intake.append(job.id, 0, prompts("a")).num_prompts == 1

    def test_gc_meanwhile(self, house: House, intake: Intake, job: Job) -> None:
        intake.append(job.id, 0, prompts("a", "b", "c"))
        house.run_one()
        assert collect(house.store, house.settings).files == 0
        intake.append(job.id, 3, prompts("d"))
        intake.seal(job.id, None)
        assert len(list(house.results(house.finish(job)).rows())) == 8

    def test_gc_takes_what_a_killed_feeder_left(self, house: House, intake: Intake, job: Job) -> None:
        """Pieces, temporary and whole, that no shard is over; and none before it is sure that no more can come."""
        intake.append(job.id, 0, prompts("a"))
        folder = house.paths(job).prompts
        for name in (".segment-00001.parquet.0123abcd.tmp", "segment-00001.parquet"):
            (folder / name).write_text("half")
        assert collect(house.store, house.settings).files == 0
        intake.append(job.id, 1, prompts("b"))
        intake.seal(job.id, None)
        (folder / "segment-00002.parquet").write_text("half")
        assert collect(house.store, house.settings).files == 2
        assert sorted(path.name for path in folder.iterdir()) == ["segment-00000.parquet", "segment-00001.parquet"]
        assert [text for _, _, text, _ in stored(house, job)] == ["a", "b"]

    def test_gc_while_the_last_piece_is_added(
        self, house: House, intake: Intake, job: Job, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its file lies there, its shards are committed only after gc has read them; and then the job is sealed."""
        intake.append(job.id, 0, prompts("a"))
        read, looks = Store.shards, 0

        def race(*args: Any, **options: Any) -> list[Shard]:
            nonlocal looks
            looks += 1
            found = read(*args, **options)
            if looks == 1:
                (house.paths(job).prompts / "segment-00001.parquet").unlink()
                intake.append(job.id, 1, prompts("b"))
                intake.seal(job.id, None)
            return found

        (house.paths(job).prompts / "segment-00001.parquet").write_text("as it will be")
        with monkeypatch.context() as patch:
            patch.setattr(Store, "shards", race)
            assert collect(house.store, house.settings).files == 0
        assert [text for _, _, text, _ in stored(house, job)] == ["a", "b"]

    def test_another_server_adds_in_the_same_moment(
        self, house: House, intake: Intake, job: Job, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What came too early a moment ago is next now. It is sent again, and never counted without being there."""
        read = Store.job

        def race(store: Store, job_id: str) -> Job:
            found = read(store, job_id)
            with monkeypatch.context() as patch:
                patch.setattr(Store, "job", read)
                if found.num_prompts == 0:
                    Intake(house.store, house.settings).append(job_id, 0, prompts("a"))
            return found

        with monkeypatch.context() as patch:
            patch.setattr(Store, "job", race)
            with pytest.raises(StoreError, match="send them again"):
                intake.append(job.id, 1, prompts("b"))
        assert house.store.job(job.id).num_prompts == 1
        assert intake.append(job.id, 1, prompts("b")).num_shards == 2
        assert [text for _, _, text, _ in stored(house, job)] == ["a", "b"]

    def test_cancelled_while_it_is_fed(self, house: House, intake: Intake, job: Job) -> None:
        intake.append(job.id, 0, prompts("a", "b", "c"))
        house.store.cancel(job.id)
        with pytest.raises(
            WrongState, match="takes no more prompts: its prompts broke off after 3 prompts: the job was cancelled"
        ):
            intake.append(job.id, 3, prompts("d"))
        ensure_manifest(house.store, house.settings, job.id)
        assert verify(house.paths(job).folder) == []
        assert house.store.job(job.id).snapshot_digest == house.submit(prompts=["a", "b", "c"]).job.snapshot_digest

    @pytest.mark.parametrize(
        ("fields", "says"),
        [
            ({"idempotency_key": "k"}, "idempotency_key: stands for a whole set of prompts"),
            ({"replacement": True, "num_prompts": 2}, "replacement: draws from a whole set of prompts"),
            ({"prompts": ["a"]}, "prompts come from one place"),
            ({"dataset": "arithmetic_r1_template"}, "prompts come from one place"),
            ({"kind": "score", "source": "x"}, "prompts come from one place"),
            ({"webhook": "https://hooks.example/x"}, "is not among the hosts that may be told"),
        ],
    )
    def test_what_cannot_be_opened(self, house: House, intake: Intake, fields: dict[str, Any], says: str) -> None:
        with pytest.raises(SpecError, match=says):
            intake.open(JobSpec.parse(SPEC | fields), owner="ann", feeder=None)
        assert house.store.jobs() == []


class TestFeed:
    def test_from_python(self, client: Client, house: House) -> None:
        with client.feed(**SPEC) as feed:
            for prompt in ("a", {"prompt": "b", "answer": "4"}, [1, 2], {"promt": "c"}, 5):
                feed.add(prompt)
        job = feed.job.record
        assert (feed.prompts, job.num_prompts, job.sealed, job.truncated) == (5, 5, True, None)
        errors = [error for *_, error in stored(house, job)]
        assert errors[:3] == [None] * 3
        assert "prompts[3] give exactly one of prompt" in (errors[3] or "")
        assert (errors[4] or "").startswith("prompts[4] input should be a valid dictionary")

    def test_workers_begin_before_the_end(self, client: Client, house: House) -> None:
        with client.feed(**SPEC) as feed:
            feed.add("a"), feed.add("b")
            rows = feed.job.stream(start_worker=False)
            while not house.store.job(feed.job.id).pending_shards:
                pass
            house.run_one()
            assert [next(rows)["prompt_index"] for _ in range(4)] == [0, 0, 1, 1]
            assert (feed.job.progress.sealed, feed.job.progress.eta_seconds) == (False, None)
            feed.add("c")
        house.finish(feed.job.record)
        assert [row["prompt_index"] for row in rows] == [2, 2]

    def test_a_quiet_moment_sends_what_there_is(self, client: Client, house: House) -> None:
        with client.feed(**SPEC | {"shard_size": 100}) as feed:
            feed.add("a")
            while not house.store.job(feed.job.id).num_shards:
                pass
            assert house.store.job(feed.job.id).num_prompts == 1

    def test_a_steady_trickle_does_not_wait_for_its_shard_to_be_full(
        self, client: Client, house: House, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No moment is quiet, and the shard would be full in a day."""
        monkeypatch.setattr("jobs.feed._QUIET", 60.0)
        monkeypatch.setattr("jobs.feed._LONGEST", 2.0)
        began = time.monotonic()
        with client.feed(**SPEC | {"shard_size": 4_000}) as feed:
            while not house.store.job(feed.job.id).num_shards:
                assert time.monotonic() < began + 20
                feed.add("a")
                time.sleep(0.1)
            assert time.monotonic() >= began + 2
            assert 1 < house.store.job(feed.job.id).num_prompts < 4_000

    def test_long_prompts_go_off_before_there_are_many(
        self, client: Client, house: House, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("jobs.feed._HEAVIEST", 1_000)
        texts: list[Any] = ["x" * 300] * 4 + [[7] * 200] * 2 + [[{"role": "user", "content": "y" * 5_000}]] + ["z"] * 3
        with client.feed(**SPEC | {"shard_size": 4_000}) as feed:
            for text in texts:
                feed.add({"messages": text} if isinstance(text[0], dict) else text)
        assert feed.job.record.num_prompts == len(texts)
        assert house.store.segments(feed.job.id) >= 3
        assert [error for *_, error in stored(house, feed.job.record)] == [None] * len(texts)

    def test_what_cannot_be_sent_truncates_at_once(
        self, client: Client, house: House, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nobody who follows the job waits until its feeder is given up."""

        def full(*_: Any) -> Job:
            raise ResultsError("the disk is full")

        with pytest.raises(ResultsError, match="the disk is full"), client.feed(**SPEC) as feed:
            feed.add("a"), feed.add("b")
            until(lambda: house.store.job(feed.job.id).num_prompts == 2)
            monkeypatch.setattr(Intake, "append", full)
            for _ in range(1_000_000):
                feed.add("c")
        record = house.store.job(feed.job.id)
        assert record.truncated == "its prompts broke off after 2 prompts: sending more failed: the disk is full"

    def test_a_pipe_that_breaks_is_not_at_its_end(self, client: Client, house: House) -> None:
        class Broken(io.RawIOBase):
            def readable(self) -> bool:
                return True

            def readinto(self, buffer: Any) -> int:
                if self.tell_once:
                    raise OSError(5, "Input/output error")
                self.tell_once = True
                line = b'{"prompt": "a"}\n'
                buffer[: len(line)] = line
                return len(line)

            tell_once = False

        with pytest.raises(UsageError, match="<stdin>: reading broke off"), client.feed(**SPEC) as feed:
            feed.add_lines(io.BufferedReader(Broken()))
        truncated = house.store.job(feed.job.id).truncated or ""
        assert truncated.startswith("its prompts broke off after 1 prompt: <stdin>: reading broke off: Input/output")

    def test_what_goes_wrong_in_the_block_truncates(self, client: Client) -> None:
        with pytest.raises(RuntimeError), client.feed(**SPEC) as feed:
            feed.add("a")
            raise RuntimeError("the producer broke")
        record = feed.job.refresh()
        assert record.truncated == "its prompts broke off after 1 prompt: RuntimeError: the producer broke"

    def test_a_cancelled_job_takes_no_more(self, client: Client) -> None:
        with (
            pytest.raises(WrongState, match=r"takes no more prompts: its .* the job was cancelled"),
            client.feed(**SPEC) as feed,
        ):
            feed.job.cancel()
            for _ in range(10_000_000):
                feed.add("a")

    def test_lines(self, client: Client, house: House) -> None:
        lines = b'{"prompt": "a"}\n\nnonsense\n{"prompt": "\xff"}\n{"prompt": 1}\n"b"'
        with client.feed(**SPEC) as feed:
            feed.add_lines(io.BytesIO(lines))
        found = stored(house, feed.job.record)
        assert [error for *_, error in found] == [
            None,
            "<stdin>:3: malformed JSON at column 1: Expecting value",
            "<stdin>:4: not UTF-8 at byte 13 of the line",
            "<stdin>:5 prompt: input should be a valid string, not 1",
            "<stdin>:6: not a JSON object but a string",
        ]

    def test_columns_and_lines_of_a_batch(self, client: Client, house: House) -> None:
        """As in a file, but that each line is judged by itself."""
        with client.feed(**SPEC, columns={"prompt": "question"}) as feed:
            feed.add({"question": "a"})
            feed.add({"prompt": "b"})
            feed.add({"custom_id": "x", "body": {"messages": [{"role": "user", "content": "c"}], "temperature": 1.0}})
            feed.add({"custom_id": "y", "body": {"messages": [{"role": "user", "content": "d"}], "temperature": 0.5}})
        found = stored(house, feed.job.record)
        assert [(name, text) for _, name, text, error in found if error is None] == [("0", "a"), ("x", None)]
        assert "give exactly one of prompt" in (found[1][3] or "")
        assert (found[3][3] or "").startswith("prompts[3] ") and "temperature" in (found[3][3] or "")

    def test_many_in_few_pieces(self, client: Client, house: House) -> None:
        with client.feed(**SPEC | {"shard_size": 16}) as feed:
            for number in range(50_000):
                feed.add(f"prompt {number}")
        record = feed.job.record
        assert (record.num_prompts, house.store.segments(record.id) < 20) == (50_000, True)
        sizes = {shard.stop - shard.start for shard in house.store.shards(record.id)[:-1]}
        assert 16 in sizes
        assert (
            record.snapshot_digest == house.submit(prompts=[f"prompt {n}" for n in range(50_000)]).job.snapshot_digest
        )


def test_names_against_a_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.names._FEW", 10)
    names, reference = Names(), set[str]()
    for start in range(0, 5_000, 7):
        new = {str(number * number % 3_001) for number in range(start, start + 7)}
        assert {name for name in new if name in names} == new & reference
        names.update(new - reference)
        reference |= new
        assert len(names) == len(reference)
    assert all(name in names for name in reference) and "x" not in names
