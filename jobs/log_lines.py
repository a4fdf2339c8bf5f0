"""How a process that serves logs: one JSON object a line, pure ASCII, so that no text in it steers a terminal.

On stderr the lines are for a machine (a container's log) unless a terminal is there to read them.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jobs.redact import without_credentials
from jobs.text import clean_line


class JsonLines(logging.Formatter):
    """A record as JSON: time, level, what the process and the moment are called, message, and a traceback if any."""

    def __init__(self, names: Callable[[], dict[str, Any]]) -> None:
        super().__init__()
        self._names = names

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            **self._names(),
            "message": without_credentials(record.getMessage()),
        }
        if record.exc_info:
            line["traceback"] = without_credentials("".join(traceback.format_exception(*record.exc_info)))
        elif stacks := getattr(record, "stacks", None):  # of all threads, from the watchdog
            line["traceback"] = without_credentials(stacks)
        return json.dumps(line)


class PlainLines(logging.Formatter):
    """A record as a line for a person at a terminal; a traceback follows it."""

    def format(self, record: logging.LogRecord) -> str:
        clock = self.formatTime(record, "%H:%M:%S")
        lines = [f"{clock} {record.levelname} {record.getMessage()}"]
        if record.exc_info:
            lines += "".join(traceback.format_exception(*record.exc_info)).splitlines()
        return "\n".join(clean_line(without_credentials(line)) for line in lines)


def on_stderr(json_lines: JsonLines) -> logging.Handler:
    """A handler for stderr: plain lines where that is a terminal, `json_lines` where it is not."""
    handler = logging.StreamHandler()
    handler.setFormatter(PlainLines() if sys.stderr.isatty() else json_lines)
    return handler


def send(levels: Mapping[str, int], handlers: Iterable[logging.Handler]) -> None:
    """What these packages log, each from its level on, goes to these handlers and nowhere else."""
    for package, level in levels.items():
        logger = logging.getLogger(package)
        logger.setLevel(level)
        logger.propagate = False
        for handler in handlers:
            logger.addHandler(handler)
