"""Which devices there are, what the host calls them, and how full their memory is.

A worker that `--gpus` started sees one device, which torch calls `cuda:0` in every such process: people are shown the
name that tells them apart. Importing this module loads no torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil

from jobs.errors import SeqprocError

VISIBLE = "CUDA_VISIBLE_DEVICES"
_ASK_SECONDS = 120.0  # importing torch from a cold disk takes tens of seconds
_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA, AMD, either of them under WSL
_COUNT = "import json, torch; print(json.dumps(torch.cuda.device_count()))"


def gpus() -> list[str]:
    """The GPUs of this host that may be used, by the names that CUDA_VISIBLE_DEVICES takes.

    Asked of a child process, so that no CUDA context stays in this one. Raises SeqprocError if torch cannot be used.
    """
    command = [sys.executable, "-P", "-c", _COUNT]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_SECONDS, check=False)
        count = int(json.loads(done.stdout.strip().splitlines()[-1])) if done.returncode == 0 else None
    except subprocess.TimeoutExpired:
        raise SeqprocError(f"torch did not say within {_ASK_SECONDS:.0f} s which GPUs there are; try again") from None
    if count is None:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise SeqprocError(f"torch cannot be used: {last}; `seqproc doctor` tells more")
    return (_visible() or [str(number) for number in range(count)])[:count]


def shown(device: str) -> str:
    """The host's name of the device that torch calls `device`; for an empty name, what can be told before it loads."""
    kind, _, number = device.partition(":")
    visible, place = _visible(), int(number or 0)
    if kind == "cuda" and visible and place < len(visible):
        return f"cuda:{visible[place]}"
    if device:
        return device
    if visible and len(visible) == 1:
        return f"cuda:{visible[0]}"
    return "" if _gpu_driver() else "cpu"


def memory(device: str) -> tuple[int | None, int | None]:
    """(bytes used, by whomever; bytes in all) of the device that torch calls `device`; of the host for those without.

    Unknown before a GPU is in use: asking it would take some of its memory.
    """
    if device.startswith("cuda"):
        try:
            free, total = sys.modules["torch"].cuda.mem_get_info(device)
        except RuntimeError:  # a lost GPU: the next shard will say so
            return None, None
        return int(total - free), int(total)
    if not device and shown(device) != "cpu":
        return None, None
    host = psutil.virtual_memory()
    return int(host.total - host.available), int(host.total)


def _gpu_driver() -> bool:
    """Whether a driver that torch's CUDA could speak to is loaded, or that cannot be told."""
    if sys.platform == "darwin":
        return False
    return sys.platform != "linux" or any(Path(file).exists() for file in _DRIVERS)


def _visible() -> list[str] | None:
    """What CUDA_VISIBLE_DEVICES names; None if it is not set. CUDA itself stops at the first that is not there."""
    given = os.environ.get(VISIBLE)
    return None if given is None else [name.strip() for name in given.split(",") if name.strip()]
