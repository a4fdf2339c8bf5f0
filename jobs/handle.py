"""One job as Python has it: look at it, wait for it, steer it, and read what it made. `Client` gives them out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from jobs.access import Access
from jobs.errors import StoreError
from jobs.patience import Patience
from jobs.progress import Progress, Rate
from jobs.records import Attempt, Job, Shard, Webhook
from jobs.results import JobResults, ResultFile
from jobs.source import scoring
from jobs.states import JobState
from jobs.stream import stream
from jobs.submit import Submitted

if TYPE_CHECKING:
    import datasets
    import pandas

    from jobs.compared import Compared
    from jobs.rewards.afterwards import Rewarded
    from jobs.rewards.registry import Function, Reward
    from jobs.tracking.names import Track
    from sequence_processing.containers import BatchedSequences, LogprobResults

_LOOK_EVERY = 0.25  # seconds between looks of a waiting client


class JobHandle:
    """One job: what it is (`record`), how far it is (`progress`), and its results."""

    def __init__(
        self,
        access: Access,
        record: Job,
        *,
        created: bool = True,
        ignored_columns: list[str] | None = None,
        unrung: str | None = None,
    ):
        self._access = access
        self.record = record
        self.created = created
        self.ignored_columns = ignored_columns or []
        self.unrung = unrung  # why idle workers could not be rung; they find the job at their next look

    @classmethod
    def of(cls, access: Access, done: Submitted) -> JobHandle:
        """The handle of what was just submitted."""
        return cls(access, done.job, created=done.created, ignored_columns=done.ignored_columns, unrung=done.unrung)

    def __repr__(self) -> str:
        return f"JobHandle({self.id}, {self.record.state}, {self.record.done_shards}/{self.record.num_shards} shards)"

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def state(self) -> JobState:
        return self.refresh().state

    def refresh(self) -> Job:
        """Read the job's row again."""
        self.record = self._access.job(self.id)
        return self.record

    @property
    def progress(self) -> Progress:
        """How far the job is now, without rates."""
        self.record, running = self._access.look(self.id)
        return Progress.of(self.record, running)

    def wait(
        self,
        timeout: float | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        *,
        start_worker: bool = True,
        local: bool = False,
        track: Track | None = None,
    ) -> Progress:
        """Wait until the job has ended; with no worker alive, start one here as a child process.

        Of a job on a server, only watch: work is done there.

        Args:
            timeout: seconds; TimeoutError when they have passed. The job goes on.
            on_progress: called a few times a second.
            start_worker: False only watches.
            local: start a worker here even if others are alive.
            track: send progress, throughput and at the end the report's figures to this tracker, under your login
                there; one that fails is a warning in the log.

        Raises:
            SeqprocError: the child worker cannot go on; the message says why.
            UsageError: the tracker is not installed.
        """
        if track is None:
            return self._until_ended(timeout, on_progress, start_worker=start_worker, local=local)
        from jobs.tracking.tracked import tracked

        with tracked(self, track) as tell:

            def both(progress: Progress) -> None:
                tell(progress)
                if on_progress is not None:
                    on_progress(progress)

            return self._until_ended(timeout, both, start_worker=start_worker, local=local)

    def _until_ended(
        self,
        timeout: float | None,
        on_progress: Callable[[Progress], None] | None,
        *,
        start_worker: bool,
        local: bool,
    ) -> Progress:
        helper = self._access.helper(self.record, start_worker=start_worker, local=local)
        deadline = None if timeout is None else time.monotonic() + timeout
        rate, patience = Rate(), Patience()
        while True:
            try:
                helper.look()
                self.record, running = self._access.look(self.id)
                progress = rate.look(self.record, running)
                if on_progress is not None:
                    on_progress(progress)
                if progress.state.ended:
                    helper.finish()
                    return progress
                helper.help(self.record)
                patience.renew()
            except StoreError as failure:
                patience.bear(failure)
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"job {self.id} is still {self.record.state} after {timeout:g} s; it goes on")
            time.sleep(_LOOK_EVERY)

    def cancel(self) -> Job:
        """Ask the job to stop: pending shards at once, running ones within a heartbeat. What is done stays readable."""
        self.record = self._access.cancel(self.id)
        return self.record

    def retry(self, *, failed_only: bool = False) -> Job:
        """Queue what failed, and unless `failed_only` what was cancelled, again. What is done is not made twice."""
        done = self._access.retry(self.id, failed_only=failed_only)
        self.record, self.unrung = done.job, done.unrung
        return self.record

    def delete(self) -> None:
        """Delete the job, which must have ended, with its results. There is no way back."""
        self._access.delete(self.id)

    def shards(self) -> list[Shard]:
        """The job's shards in order, as they are now."""
        return self._access.shards(self.id)

    def attempts(self) -> list[Attempt]:
        """Every execution of every shard, by shard and attempt."""
        return self._access.attempts(self.id)

    @property
    def webhooks(self) -> list[Webhook]:
        """How telling of the job's ends went, oldest first; empty without a webhook."""
        return self._access.webhooks(self.id) if self.record.spec.get("webhook") else []

    @property
    def results(self) -> JobResults:
        """Readers of the job's files."""
        return self._access.results(self.id)

    def rows(self, *, partial: bool = False) -> Iterator[dict[str, Any]]:
        """One dict a sequence, in order of (prompt_index, sample_index). NotFinished unless ended or `partial`."""
        return self.results.rows(partial=partial)

    def stream(
        self, *, after: str | None = None, start_worker: bool = True, local: bool = False
    ) -> Iterator[dict[str, Any]]:
        """The rows as shards are done, while the job runs and until it has ended; each is given once.

        Shards come whole, in the order in which they were done. Beside the columns of `rows` each row has its `cursor`:
        with that as `after`, another call, in another process, goes on behind the row.

        Args:
            after: the cursor of the last row that was dealt with; default: from the beginning.
            start_worker, local: as of `wait`.

        Raises:
            UsageError: the cursor is none, or another job's.
            Incomplete: at the end, if the job failed or was cancelled and shards are missing.
            SeqprocError: the child worker cannot go on, a result file is missing or damaged.
        """
        helper = self._access.helper(self.record, start_worker=start_worker, local=local)
        return stream(self._access, self.id, helper, after=after)

    def errors(self, *, partial: bool = False) -> Iterator[dict[str, Any]]:
        """One dict a prompt that failed: prompt_index, sample_index (None: all samples), custom_id, error."""
        return self.results.errors(partial=partial)

    def manifest(self) -> dict[str, Any]:
        """What the job's folder holds and how it came about, as it is now."""
        return self.results.manifest()

    def to_batched(self, *, partial: bool = False) -> tuple[BatchedSequences, LogprobResults]:
        """The core's own containers; prompts that failed are left out, `prompt_indices` says which are there."""
        return self.results.to_batched(partial=partial)

    def to_pandas(self, *, partial: bool = False) -> pandas.DataFrame:
        """One row a sequence."""
        return self.results.to_pandas(partial=partial)

    def dataset(self, *, partial: bool = False) -> datasets.Dataset:
        """A `datasets.Dataset` over the job's Parquet files."""
        return self.results.dataset(partial=partial)

    def to_openai(self, *, partial: bool = False) -> Iterator[dict[str, Any]]:
        """The output lines of an OpenAI batch: one dict a prompt, its samples as `choices`, or its `error`."""
        return self.results.to_openai(partial=partial)

    def to_trl(self, *, prompts: int = 64, partial: bool = False) -> Iterator[dict[str, list[Any]]]:
        """What TRL's `rollout_func` returns, for so many prompts at a time: `prompt_ids`, `completion_ids`, `logprobs`.

        `logprobs` are of the sampling distribution, as its GRPOTrainer takes them; other keys go to reward functions.
        """
        return self.results.to_trl(prompts=prompts, partial=partial)

    def reward(
        self,
        reward: str | Function | Reward,
        *,
        name: str | None = None,
        again: bool | None = None,
        partial: bool = False,
        on_shard: Callable[[int, int], None] = lambda done, total: None,
    ) -> Rewarded:
        """Judge every sequence by a reward, an installed one by its name or a function of one's own, without making
        any again; readers then show a column `reward_NAME`. See `jobs.rewards`.

        Args:
            name: of the column; by default the reward's, or the function's.
            again: judge also the shards that have it, in place of what they have. By default so for a function, which
                may not be the one that it was, and not for an installed reward.
            partial: of a job that has not ended, those that there are.
            on_shard: called with (shards done, all).

        Raises:
            NotFinished, UsageError for a reward that is none, CannotJudge if it cannot be run, ResultsError.
        """
        from jobs.rewards.afterwards import reward_sequences

        def put(file: ResultFile, name: str, values: list[float | None]) -> None:
            self._access.put_reward(self.id, file, name, values)

        anew = not isinstance(reward, str) if again is None else again
        made = reward_sequences(self.results, put, reward, name=name, again=anew, partial=partial, on_shard=on_shard)
        self._access.helper(self.record, start_worker=False, local=False).finish()
        return made

    def score(self, *, on_prompt: Callable[[int], None] | None = None, **fields: Any) -> JobHandle:
        """Submit a job that scores this one's sequences, as tokens, under another model, adapter or checkpoint.

        Args:
            on_prompt: called with the number of sequences after each one that was read.
            fields: of a JobSpec. What is left open is as this job has it; see `jobs.source`. A model or an adapter that
                is given takes the place of this job's adapter.

        Raises SpecError with a line for each thing wrong, this job not having ended among them.
        """
        spec = self._access.parse(scoring(self.record, fields))
        return JobHandle.of(self._access, self._access.submit(spec, prompts=None, stdin=None, on_prompt=on_prompt))

    def compared(self) -> Compared:
        """Of a job that `score` made: its sequences beside what they were before; `rows`, `summary`, `to_pandas`.

        Raises UsageError for any other job, JobNotFound if the job that they are from was deleted.
        """
        from jobs.compared import compared

        return compared(self)

    def sibling(self, job: str) -> JobHandle:
        """Another job of the same database. Raises JobNotFound."""
        return JobHandle(self._access, self._access.job(job))

    def logs(self, *, follow: bool = False) -> Iterator[dict[str, Any]]:
        """The workers' log lines about this job, oldest first; with `follow`, until the job has ended."""
        return self._access.logs(self.id, follow=follow)
