"""`seqproc`, the command line over `jobs`: a file a command or small family, output from one place (`output.py`)."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper


def main() -> None:
    """Run the command line with this process's arguments; ends the process."""
    from jobs.cli.app import app

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character shows `?`
    try:
        app(prog_name="seqproc")
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:  # `seqproc list | head`: nobody reads the rest, and that is no failure to speak of
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
