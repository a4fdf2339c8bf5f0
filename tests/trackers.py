"""What trackers have written, read back: with their own readers, or with their own types where there is no reader."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Written:
    """One run: its name, its config, and each figure's (step, value) pairs in the order in which they were logged."""

    name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    state: str = ""
    figures: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    def last(self, figure: str) -> float:
        return self.figures[figure][-1][1]


def wandb_runs(folder: Path) -> dict[Path, Written]:
    """The runs that lie in an offline folder, by file, oldest first."""
    return {file: _wandb_run(file) for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))}


def _wandb_run(file: Path) -> Written:
    from wandb.proto.wandb_internal_pb2 import Record

    run = Written()
    for data in _wandb_records(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.name, run.tags = record.run.display_name, list(record.run.tags)
            run.config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
            for name, value in row.items():
                run.figures.setdefault(name, []).append((row["sequences"], value))
        elif kind == "summary":
            found = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.summary.update}
            run.state = found.get("state", run.state)
    return run


def _wandb_records(data: bytes) -> Iterator[bytes]:
    """A .wandb file is LevelDB's log after 7 bytes: blocks of 32 KiB; records of crc (4), length (2), type (1), data.

    Type 1 is a whole record; 2, 3, 4 are the first, middle and last piece of one.
    """
    assert data[:4] == b":W&B"
    place, whole = 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


def tensorboard_runs(folder: Path) -> dict[Path, Written]:
    """The runs of a log folder, by their own folders."""
    return {run: _tensorboard_run(run) for run in sorted(folder.iterdir())}


def _tensorboard_run(folder: Path) -> Written:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    run = Written(name=folder.name)
    for tag in events.Tags()["tensors"]:
        values = [(event.step, make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)]
        plugin = events.SummaryMetadata(tag).plugin_data
        if plugin.plugin_name == "scalars":
            run.figures[tag] = [(step, float(value)) for step, value in values]
        elif tag == "state":
            run.state = values[-1][1].item().decode()
        else:
            hparams = parse_session_start_info_plugin_data(plugin.content).hparams
            run.config = {name: getattr(value, value.WhichOneof("kind")) for name, value in hparams.items()}
    return run


def mlflow_runs(uri: str) -> dict[str, Written]:
    """The runs of the experiment `seqproc`, by id."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("seqproc")
    assert experiment is not None
    runs = {}
    for found in client.search_runs([experiment.experiment_id]):
        run = Written(found.info.run_name, dict(found.data.params), list(found.data.tags.items()), found.info.status)
        for name in found.data.metrics:
            history = client.get_metric_history(found.info.run_id, name)
            run.figures[name] = [(metric.step, metric.value) for metric in history]
        runs[found.info.run_id] = run
    return runs
