"""The process in which a tracker's library runs: a line of JSON in, one out, until it is told to close.

It outlives nobody: when whoever waits is killed, its input ends, and it closes the run as it is.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from typing import Any, TextIO

from jobs.tracking.tracker import Run, Tracker

_LONGEST = 300  # characters of a library's words


def main() -> None:
    """`python -m jobs.tracking NAME`."""
    answers = _own_output()
    tracker: Tracker | None = None
    state = "running"
    for line in sys.stdin:
        asked, answer = json.loads(line), {}
        try:
            match asked:
                case {"open": run}:
                    tracker = import_module(f"jobs.tracking.to_{sys.argv[1]}").open_run(Run(**run))
                    answer = {"where": tracker.where}
                case {"log": [step, figures]}:
                    _opened(tracker).log(step, figures)
                case {"close": state}:
                    _opened(tracker).close(state)
                    tracker = None
        except BaseException as failure:  # some libraries leave by SystemExit
            _say(answers, {"failed": _sentence(failure)})
            os._exit(1)  # without the libraries' last words, which may hang
        _say(answers, answer)
    if tracker is not None:
        tracker.close(state)


def _own_output() -> TextIO:
    """Standard output, for answers alone: what libraries print goes nowhere."""
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    return own


def _opened(tracker: Tracker | None) -> Tracker:
    if tracker is None:
        raise RuntimeError("the run is not open")
    return tracker


def _say(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def _sentence(failure: BaseException) -> str:
    words = " ".join(str(failure).split())
    return f"{type(failure).__name__}: {words}"[:_LONGEST] if words else type(failure).__name__


if __name__ == "__main__":
    main()
