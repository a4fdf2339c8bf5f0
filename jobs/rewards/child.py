"""What runs in a judge's process: `python -m jobs.rewards.child FD`, which is told a reward, then ranges of rows.

It answers in JSON, and only so: whatever a reward function does to its process, the parent unpickles nothing of it.
Rows are read here, from the shard's own file. Nobody needs to kill an orphan: between rows it sees that the other end
is gone, and a row that takes much too long ends the process by a signal that no Python code has to handle.
"""

from __future__ import annotations

import json
import math
import resource
import signal
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from jobs.diagnostics import DIAGNOSTICS
from jobs.errors import SeqprocError
from jobs.parquet import column_names, read_some
from jobs.rewards.registry import Reward, named

_MEMORY = 4 * 2**30  # bytes that the process may write to; beyond, its row counts as not judged
_GRACE = 5.0  # seconds after a row's limit, when the parent must have ended this process if there still is one


def main(parent: Connection) -> None:
    """Serve until the other end is closed."""
    with suppress(OSError, ValueError):  # not everywhere can it be limited
        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    try:
        reward = _reward(parent)
    except Exception as error:
        _tell(parent, problem=_sentence(error))
        return
    _tell(parent, seconds=reward.seconds)
    with suppress(EOFError, OSError):
        while True:
            _judge(parent, reward, json.loads(parent.recv_bytes()))


def _reward(parent: Connection) -> Reward:
    """The installed one of a name, or a function that the parent has pickled; modules are sought where it seeks."""
    order = json.loads(parent.recv_bytes())
    sys.path[:] = order["sys_path"]
    if order["name"] is not None:
        return named(order["name"])
    import dill

    reward: Reward = dill.loads(parent.recv_bytes())
    return reward


def _judge(parent: Connection, reward: Reward, order: dict[str, Any]) -> None:
    file = Path(order["file"])
    try:
        there = column_names(file)
        columns = there if reward.columns is None else list(reward.columns)
        strange = [name for name in columns if name not in there]
        if strange:
            remedy = f" (a job keeps it with --diagnostics {strange[0]})" if strange[0] in DIAGNOSTICS else ""
            raise KeyError(f"sequences have no column {strange[0]}{remedy}; columns are {', '.join(there)}")
        rows = read_some(file, columns, order["start"], order["stop"])
        first = next(rows, None)
    except (SeqprocError, KeyError) as error:
        _tell(parent, problem=str(error.args[0]))
        return
    _tell(parent, begun=True)
    row = first
    while row is not None:
        _tell(parent, **_verdict(reward, row))
        row = next(rows, None)


def _verdict(reward: Reward, row: dict[str, Any]) -> dict[str, Any]:
    """{"value": number} or {"value": None, "why": …}."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, reward.seconds + _GRACE)
    try:
        value: Any = reward(row)  # whatever it says it returns
        if value is None:
            return {"value": None, "why": "it gave no verdict"}
        number = float(value) if not isinstance(value, str | bytes) else None
    except Exception as error:
        return {"value": None, "why": f"it raised {_sentence(error)}"}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if number is None or not math.isfinite(number):
        return {"value": None, "why": f"it returned {type(value).__name__} {str(value)[:50]!r}, no finite number"}
    return {"value": number}


def _sentence(error: Exception) -> str:
    text = (str(error) or "without a word").splitlines()[0][:200]
    return text if isinstance(error, SeqprocError) else f"{type(error).__name__}: {text}"


def _tell(parent: Connection, **message: Any) -> None:
    parent.send_bytes(json.dumps(message).encode())


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])))
