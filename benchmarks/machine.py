"""The machine under a measurement: what it is, what else it was doing, and how much memory this process took.

Memory and load are read from `/proc`, so on Linux only; elsewhere the load is unknown and a peak counts from the
process's start.
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # those that decide how fast a product is
_PEAK_SINCE_NOW = "5"  # what /proc/self/clear_refs takes to set the peak of memory to what is held now


def described() -> dict[str, Any]:
    """Processor, cores, threads, memory in GiB and versions."""
    return {
        "cpu": _first("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "instructions": [name for name in _INSTRUCTIONS if name in (_first("/proc/cpuinfo", "flags") or "").split()],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "system": platform.platform(),
    }


def reset_peak() -> None:
    """From here on `peak_gib` counts: what is held now, and what comes."""
    refs = Path("/proc/self/clear_refs")
    if refs.exists():
        refs.write_text(_PEAK_SINCE_NOW)


def peak_gib() -> float:
    """The most resident memory of this process since `reset_peak`, weights included, GiB."""
    if held := _first("/proc/self/status", "VmHWM"):
        return int(held.split()[0]) / 2**20
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def timed(variants: Mapping[str, Callable[[int], None]], runs: int) -> dict[str, dict[str, Any]]:
    """Wall seconds of `variants` called with a run's number, `runs` times each, and what the machine did meanwhile.

    The variants take turns, every second round in reverse, so that a machine that grows slower or faster does so for
    all of them. `seconds` is the median.
    """
    measured: dict[str, dict[str, Any]] = {name: {"seconds": 0.0, "runs": [], "load": []} for name in variants}
    for run in range(runs):
        for name in list(variants) if run % 2 == 0 else reversed(list(variants)):
            before, start = _cpu_seconds(), time.perf_counter()
            variants[name](run)
            measured[name]["runs"].append(round(time.perf_counter() - start, 3))
            own, busy, stolen = (b - a for a, b in zip(before, _cpu_seconds(), strict=True))
            load = {"own_cpu_s": round(own, 1), "others_cpu_s": round(busy - own, 1), "stolen_s": round(stolen, 1)}
            measured[name]["load"].append(load)
            print(f"{name}: {measured[name]['runs'][-1]:.2f} s {load}", file=sys.stderr, flush=True)
    for timing in measured.values():
        timing["seconds"] = statistics.median(timing["runs"])
    return measured


def _cpu_seconds() -> tuple[float, float, float]:
    """CPU seconds of this process with its children, of all processes, and those that the hypervisor took away."""
    spent = os.times()
    own = spent.user + spent.system + spent.children_user + spent.children_system
    stat = Path("/proc/stat")
    if not stat.exists():
        return own, own, 0.0
    ticks = [int(field) for field in stat.read_text().splitlines()[0].split()[1:9]]
    hertz = os.sysconf("SC_CLK_TCK")
    return own, sum(ticks[:3]) / hertz, ticks[7] / hertz


def _first(file: str, name: str) -> str | None:
    """The value of the first line `name: value` of a file of /proc."""
    path = Path(file)
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() == name), None)
