"""Prompts for a job as somebody makes them: workers begin with the first while the last is not thought of.

What was added goes off in pieces of whole shards, at most one a second; after a second in which nothing was added, or
ten in which nothing went off, all that there is. A heartbeat says meanwhile that more will come: of a feeder that dies
the job is sealed as truncated.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import rlp_datasets
from jobs.access import Access
from jobs.columns import Columns
from jobs.errors import SeqprocError, StoreError, UsageError
from jobs.openai_batch import OpenAIBatch
from jobs.patience import Patience
from jobs.prompts import checked
from jobs.snapshot import BadPrompt, Item
from jobs.spec import JobSpec, PromptRow
from jobs.states import broken_off

if TYPE_CHECKING:
    from jobs.client import JobHandle

_QUIET = 1.0  # seconds
_LONGEST = 10.0  # seconds that a prompt waits for its shard to be full, however steadily others trickle in
_BEAT = 2.0  # seconds between heartbeats
_PAUSE = 1.0  # seconds before a piece that did not get through is sent again
_MOST = 8_192  # prompts that wait to go off; whoever adds more waits
_HEAVIEST = 32 * 2**20  # characters of them, about; one prompt may have more


class Feed:
    """Feeds one job. Leaving its block seals the job; an exception in the block seals it as truncated.

    `add` may be called from any thread. What went wrong with sending is raised by the next `add`, and at the end.
    """

    def __init__(self, access: Access, job: JobHandle) -> None:
        self.job = job
        """The job, which may be waited for and read while it is fed."""
        self.prompts = 0
        """How many were added, what is no prompt included."""
        self._access, self._size = access, min(job.record.spec["shard_size"], _MOST)
        self._spec = JobSpec.of_stored(job.record.spec)
        self._columns = Columns(self._spec.columns)
        self._changed = threading.Condition()
        self._waiting: list[Item] = []
        self._weight = 0  # of those
        self._sent = 0
        self._last_added = self._last_sent = float("-inf")
        self._first_waits_since = 0.0
        self._ending = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"feed {job.id}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.end()
        else:
            self.break_off(_why(error))

    def add(self, prompt: Any) -> None:
        """Add a prompt, in any form that `Client.submit` takes; one that is none becomes a prompt error.

        Waits while too many wait to be sent. Raises WrongState if the job takes no more, as after a cancel.
        """
        row = self._judged(prompt)
        self._add(BadPrompt(f"prompts[{self.prompts}] {'; '.join(row)}") if isinstance(row, list) else row)

    def add_lines(self, stream: BinaryIO, name: str = "<stdin>") -> None:
        """Add a prompt for each line of JSON as it comes, until the stream ends. A bad one becomes a prompt error.

        Raises UsageError if reading breaks off, and as `add`.
        """
        for place, data in _lines(stream, name):
            row = BadPrompt(f"{place}: {data.message}") if isinstance(data, rlp_datasets.BadRow) else data
            if not isinstance(row, BadPrompt):
                good = self._judged(row)
                row = BadPrompt(f"{place} {'; '.join(good)}") if isinstance(good, list) else good
            self._add(row)

    @property
    def ended(self) -> bool:
        """Whether it takes no more."""
        return self._ending

    def end(self) -> None:
        """Send what waits, and seal the job: no more will come. Once it has ended in any way, this does nothing.

        Raises what went wrong with sending; UsageError if there was nothing to send.
        """
        if not self._finish(None):
            return
        if self._failure is not None:
            raise self._failure
        if not self.prompts:
            raise UsageError(f"no prompt came, so that there is nothing to do; job {self.job.id} was cancelled")

    def break_off(self, why: str) -> None:
        """Send what waits, and seal the job as truncated. Raises nothing of ours: something else has gone wrong."""
        with suppress(SeqprocError):  # whoever looks after a while seals it
            self._finish(why)

    def _judged(self, data: Any) -> PromptRow | list[str]:
        """The prompt of a row as it was made, or what is wrong with it; each is judged by itself."""
        batch = OpenAIBatch(self._spec)
        try:
            data = batch(0, self._columns(data))
        except ValueError as error:
            return [str(error)]
        return [line.strip() for line in batch.problems(lambda _: "")] or checked(data, self._spec.kind)

    def _add(self, item: Item) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._full() or self._failure is not None)
            if self._failure is not None:
                raise self._failure
            if self._ending:
                raise UsageError(f"job {self.job.id} was sealed by this feed; submit another job for more prompts")
            self._last_added = time.monotonic()
            if not self._waiting:
                self._first_waits_since = self._last_added
            self._waiting.append(item)
            self._weight += _weight(item)
            self.prompts += 1
            self._changed.notify_all()

    def _finish(self, why: str | None) -> bool:
        """False if that was done before."""
        with self._changed:
            if self._ending:
                return False
            self._ending = True
            self._changed.notify_all()
        self._thread.join()
        if self._failure is None:
            self.job.record = self._access.seal(self.job.id, broken_off(self._sent, why) if why else None)
        return True

    def _run(self) -> None:
        """Sends pieces and heartbeats until the end."""
        patience = Patience()
        piece: list[Item] | None = None
        try:
            while (piece := piece or self._next_piece()) is not None:
                try:
                    self.job.record = self._access.append(self.job.id, self._sent, piece)
                    patience.renew()
                except StoreError as failure:
                    patience.bear(failure)
                    time.sleep(_PAUSE)
                    continue  # the very same piece again: it may be there and only the reply be lost
                added = len(piece) and self.job.record.num_prompts - self._sent
                piece = piece[added:]
                with self._changed:
                    self._sent += added
                    self._weight -= sum(map(_weight, self._waiting[:added]))
                    del self._waiting[:added]
                    self._last_sent = self._first_waits_since = time.monotonic()
                    self._changed.notify_all()
        except BaseException as failure:
            with self._changed:
                self._failure = failure
                self._changed.notify_all()
            with suppress(SeqprocError):  # it may be sealed, or out of reach: then whoever looks after a while seals it
                why = f"sending more failed: {failure}"
                self.job.record = self._access.seal(self.job.id, broken_off(self._sent, why))

    def _next_piece(self) -> list[Item] | None:
        """What to send now, once there is something; nothing, for a heartbeat; None at the end."""
        with self._changed:
            due = time.monotonic() + _BEAT
            while not (count := self._ready()):
                if self._ending:
                    return None
                now = time.monotonic()
                if now >= due:
                    return []
                self._changed.wait(min(due - now, _QUIET / 4 if self._waiting else _BEAT))
            return self._waiting[:count]

    def _ready(self) -> int:
        """How many of those that wait should go off now."""
        now, count = time.monotonic(), len(self._waiting)
        late = now - self._last_added >= _QUIET or now - self._first_waits_since >= _LONGEST
        if self._ending or late or self._full():
            return count
        return count // self._size * self._size if now - self._last_sent >= _QUIET else 0

    def _full(self) -> bool:
        return len(self._waiting) >= _MOST or self._weight >= _HEAVIEST


def _why(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "it was interrupted"
    return str(error) if isinstance(error, SeqprocError) else f"{type(error).__name__}: {error}"


def _weight(item: Item) -> int:
    """Characters of a prompt, about."""
    if isinstance(item, BadPrompt):
        return len(item.error)
    text, messages, ids = item.prompt or "", item.messages or (), item.prompt_token_ids or ()
    return len(text) + sum(len(str(message)) for message in messages) + 8 * len(ids)


def _lines(stream: BinaryIO, name: str) -> Iterator[tuple[str, Any]]:
    """(place, what stands there or a BadRow). Raises UsageError if reading breaks off."""
    try:
        for row in rlp_datasets.read_stream(stream, name):
            yield row.place, row if isinstance(row, rlp_datasets.BadRow) else row.data
    except rlp_datasets.DatasetError as error:
        if isinstance(error.__cause__, OSError):
            raise UsageError(str(error)) from error
        # else there was nothing: the job says so
