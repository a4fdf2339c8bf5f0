"""The kernels as a shared library: compiled once for a machine's instruction set, kept in the user's cache folder."""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import torch

log = logging.getLogger(__name__)

_SOURCES = Path(__file__).parent / "kernels"
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared", "-w")


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None, with a line in the log that says why, where they cannot be had."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        log.info("No C++ compiler (g++) here: CPU models run through their own modules, which is slower.")
        return None
    try:
        return ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, subprocess.CalledProcessError) as error:
        output = (getattr(error, "stderr", None) or "").strip() or str(error)
        log.warning("The CPU kernels could not be compiled by %s, so models run through their own modules, which is "
                    "slower: %s", compiler, output.splitlines()[0])  # fmt: skip
        return None


def _compiled(compiler: str) -> Path:
    sources = sorted(_SOURCES.iterdir())
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout
    parts = [version, _instruction_set(), torch.__version__, *_FLAGS, *(file.read_text() for file in sources)]
    name = f"kernels-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:20]}.so"
    reason: object = None
    for folder in (_cache_folder(), Path(tempfile.gettempdir()) / f"seqproc-{os.getuid()}"):
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if folder.stat().st_uid != os.getuid():  # a library from there is somebody else's to replace
                raise PermissionError(f"{folder} belongs to another user")
            if not (folder / name).is_file():
                _compile(compiler, [str(file) for file in sources if file.suffix == ".cpp"], folder / name)
            return folder / name
        except OSError as error:
            reason = error
    raise OSError(f"no folder to keep them in: {reason}")


def _cache_folder() -> Path:
    from platformdirs import user_cache_path  # the core itself needs torch, transformers and peft, and nothing more

    return user_cache_path("seqproc") / "kernels"


def _compile(compiler: str, files: list[str], target: Path) -> None:
    """Several processes may do this at once: each writes a file of its own and renames it into place."""
    log.info("Compiling the CPU kernels with %s, once for this machine.", compiler)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        command = [compiler, *_FLAGS, *files, "-o", str(made), *_openmp()]
        subprocess.run(command, check=True, capture_output=True, text=True)
        made.replace(target)


def _openmp() -> list[str]:
    """torch's own OpenMP library if it brought one: two pools of threads would fight over the cores."""
    return [str(path) for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*"))]


def _instruction_set() -> str:
    """A compiler's "native" differs between machines that share a home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
