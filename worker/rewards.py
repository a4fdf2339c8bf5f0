"""Rewards that a job asks for, judged by its worker when a shard's rows are made and committed with them.

Nothing about a reward fails a shard. What could not be judged is null in its file; a reward that cannot be run here at
all leaves no file, so that `seqproc reward` can still judge what is missing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

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
        self, names: Sequence[str], paths: JobPaths, shard: Shard, result: ShardResult, look: Callable[[], object]
    ) -> Iterator[Sidecar]:
        """Judge the rows of a shard, whose file is written and not committed, by each reward.

        Args:
            look: called several times a second; what it raises ends the judging and passes.

        Raises:
            ResultsError: a sidecar cannot be written.
        """
        for name in names:
            judged = self._judged(name, paths, result, look)
            if judged is not None:
                measured = Measured(paths.job_id, REWARD, name, shard.index, result.sha256, judged.values)
                yield write_sidecar(paths, paths.resolve(result.file), measured)

    def close(self) -> None:
        """End the processes; they start again when they are needed."""
        for judges in self._judges.values():
            judges.close()
        self._judges.clear()

    def _judged(self, name: str, paths: JobPaths, result: ShardResult, look: Callable[[], object]) -> Judged | None:
        try:
            if name not in self._judges:
                self._judges[name] = Judges(name)
            judged = self._judges[name].judge(paths.resolve(result.file), result.sequences, look)
        except (CannotJudge, UsageError) as error:
            log.warning("no reward %s for this shard: %s", name, error)
            return None
        except BaseException:
            if name in self._judges:  # their processes were ended in the midst of it
                self._judges.pop(name).close()
            raise
        for reason, count in judged.reasons.most_common(_REASONS_SHOWN):
            log.warning("reward %s: %d of %d sequences not judged: %s", name, count, result.sequences, reason)
        return judged
