"""TensorBoard: event files in a folder a job under SEQPROC_TENSORBOARD_DIR. Opened again, another file goes there."""

from __future__ import annotations

import re
import time
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from jobs.settings import Settings
from jobs.tracking.tracker import Figures, Run

_LONGEST_NAME = 100  # characters of a job's name in its folder's


class TensorBoard:
    """Scalars over the number of sequences; the config, with the labels, as hyperparameters."""

    def __init__(self, run: Run) -> None:
        root = Settings.load().tensorboard_dir.expanduser().resolve()
        name = re.sub(r"[^A-Za-z0-9._=-]", "_", run.name)[:_LONGEST_NAME]
        self.where = f"tensorboard --logdir {root}"
        self._writer = EventFileWriter(str(root / (run.id if name == run.id else f"{name}-{run.id}")))
        self._add(0, hparams_pb(dict(run.config), trial_id=run.id))

    def log(self, step: int, figures: Figures) -> None:
        for name, value in figures.items():
            self._add(step, scalar_pb(name, value))
        self._writer.flush()

    def close(self, state: str) -> None:
        self._add(0, text_pb("state", state))
        self._writer.close()

    def _add(self, step: int, summary: Any) -> None:
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))


open_run = TensorBoard
