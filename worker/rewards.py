"""Rewards that a job asks for, judged by its worker when a shard's rows are made and committed with them.

Nothing about a reward fails a shard. What could not be judged is null in its file; a reward that cannot be run here at
all leaves no file, so that `seqproc reward` can still judge what is missing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jobs.errors import UsageError
from jobs.paths import JobPaths
from jobs.records import Shard, ShardResult, Sidecar
from jobs.rewards.judge import CannotJudge, Judged, Judges
from jobs.sidecars import REWARD, Measured, write_sidecar

log = logging.getLogger(__name__)

_REASONS_SHOWN = 3


@dataclass(slots=True)
class Rewarder:
    """The processes of the rewards that were asked for last; they stay for the next shard, until `close`."""

    _judges: dict[str, Judges] = field(default_factory=dict)

    def sidecars(
        self,
        names: Sequence[str],
        paths: JobPaths,
        shard: Shard,
        result: ShardResult,
        look: Callable[[], object],
        known: Mapping[tuple[str, str], Sequence[float | None]],
    ) -> Iterator[Sidecar]:
        """Judge the rows of a shard, whose file is written and not committed, by each reward.

        Args:
            look: called several times a second; what it raises ends the judging and passes.
            known: what was measured of the rows before, rewards among it, by (kind, name).

        Raises:
            ResultsError: a sidecar cannot be written.
        """
        file = paths.resolve(result.file)

        def written(kind: str, name: str, values: Sequence[float | None]) -> Sidecar:
            measured = Measured(paths.job_id, kind, name, shard.index, result.sha256, values)
            return write_sidecar(paths, file, measured)

        for (kind, name), values in known.items():
            yield written(kind, name, values)
        for name in names:
            if (REWARD, name) not in known:
                judged = self.judge(name, file, result.sequences, look)
                if judged is not None:
                    yield written(REWARD, name, judged.values)

    def close(self) -> None:
        """End the processes; they start again when they are needed."""
        for judges in self._judges.values():
            judges.close()
        self._judges.clear()

    def judge(self, name: str, file: Path, rows: int, look: Callable[[], object]) -> Judged | None:
        """The rewards of all rows of a file, of which there are `rows`; None, and said, if it cannot be run here."""
        try:
            if name not in self._judges:
                self._judges[name] = Judges(name)
            judged = self._judges[name].judge(file, rows, look)
        except (CannotJudge, UsageError) as error:
            log.warning("no reward %s for this shard: %s", name, error)
            return None
        except BaseException:
            if name in self._judges:  # their processes were ended in the midst of it
                self._judges.pop(name).close()
            raise
        for reason, count in judged.reasons.most_common(_REASONS_SHOWN):
            log.warning("reward %s: %d of %d sequences not judged: %s", name, count, rows, reason)
        return judged
