"""A worker process as `seqproc worker` starts one, with a held engine in place of a model.

python -m tests.lanes.worker HOLD [--queue Q]... [--idle-exit] [--rings N]    (N: how often each of its rings is sent)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import worker.engine
from jobs import doorbell
from jobs.errors import SeqprocError
from jobs.settings import Settings
from tests.lanes.engine import HeldEngine
from worker.command import serve


def multiply_rings(times: int) -> None:
    """From now on every ring of this process is sent so often."""
    load = doorbell.load_ringer

    def load_multiplied(redis_url: str, store_id: str) -> doorbell.Ringer:
        ring = load(redis_url, store_id)
        return lambda queue, count: ring(queue, times * count)

    doorbell.load_ringer = load_multiplied


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("hold", type=Path)
    parser.add_argument("--queue", action="append")
    parser.add_argument("--idle-exit", action="store_true")
    parser.add_argument("--rings", type=int, default=1)
    options = parser.parse_args()
    worker.engine.CoreEngine = lambda *_: HeldEngine(options.hold)  # type: ignore[assignment,misc]
    if options.rings > 1:
        multiply_rings(options.rings)
    try:
        serve(Settings.load(), options.queue or ["default"], idle_exit=options.idle_exit, quiet=False)
    except SeqprocError as failure:
        print(failure, file=sys.stderr)
        raise SystemExit(failure.exit_code) from None


if __name__ == "__main__":
    main()
