"""Which process is which, and whether it still lives.

A pid alone is not a name: it is reused, and means something else in another container. Host, boot, pid namespace and
the operating system's start time of the process make it one. Only a process of this very host, boot and namespace can
be known to be dead; of any other nothing is known but its heartbeats.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import psutil


class Named(Protocol):
    """Anything that carries a process's name, such as a row of `workers`."""

    @property
    def host(self) -> str: ...
    @property
    def pid(self) -> int: ...
    @property
    def process_started(self) -> float: ...
    @property
    def boot_id(self) -> str: ...


@dataclass(frozen=True, slots=True)
class ProcessName:
    """The name of one process in the world."""

    host: str
    pid: int
    process_started: float  # seconds since boot where the system tells, so that setting the clock changes nothing
    boot_id: str  # of the boot and the pid namespace


@cache
def _boot_id() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return str(int(psutil.boot_time()))


def process_named(pid: int) -> ProcessName:
    """The name of a living process of this host. Raises ProcessLookupError if there is none."""
    return ProcessName(socket.gethostname(), pid, _started(pid), _boot_id())


def this_process() -> ProcessName:
    """The name of the calling process."""
    return process_named(os.getpid())


def is_dead(name: Named) -> bool:
    """True if the process is known to be gone; False if it lives, or if it is not for this process to know."""
    if name.host != socket.gethostname() or name.boot_id != _boot_id():
        return False
    try:
        os.kill(name.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's, which lives
        pass
    try:
        return _zombie(name.pid) or _started(name.pid) != name.process_started
    except ProcessLookupError:
        return True
    except OSError:  # alive, and its details are hidden from us
        return False


def _started(pid: int) -> float:
    """When the process started. Raises ProcessLookupError if it is gone, OSError if that is hidden."""
    fields = _stat(pid)
    if fields is not None:
        return int(fields[19]) / os.sysconf(
            "SC_CLK_TCK"
        )  # starttime, field 22 of proc(5), the third being the first here
    try:
        started: float = psutil.Process(pid).create_time()
        return started
    except psutil.NoSuchProcess:
        raise ProcessLookupError(pid) from None
    except psutil.AccessDenied:
        raise PermissionError(pid) from None


def _zombie(pid: int) -> bool:
    fields = _stat(pid)
    return fields is not None and fields[0] in ("Z", "X")


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on, None where there is no such file system."""
    if not Path("/proc/self/stat").exists():
        return None
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        raise ProcessLookupError(pid) from None
    return text.rpartition(")")[2].split()
