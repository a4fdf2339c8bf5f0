"""Every file name of the results root, in one class. Nobody else joins these paths.

ROOT/STORE_ID
ROOT/logs/<worker>.jsonl
ROOT/jobs/<id>/spec.json  manifest.json
               prompts/segment-00000.parquet
               shards/shard-000012-a003-<random>.parquet
               errors/shard-000012-a003-<random>-<sha256>.jsonl
               sidecars/reward-math_answer-shard-000012-<random>.parquet
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from pathlib import Path

STORE_ID_FILE = "STORE_ID"
_DIGEST = re.compile(r"-(?P<sha256>[0-9a-f]{64})\.")


@dataclass(frozen=True, slots=True)
class JobPaths:
    """The folder of one job under the results root, or where it was copied to."""

    root: Path
    job_id: str
    copied_to: Path | None = None

    @classmethod
    def at(cls, folder: Path) -> JobPaths:
        """The names in a folder that was copied away from its results root."""
        return cls(folder.parent, folder.name, copied_to=folder)

    @property
    def folder(self) -> Path:
        return self.copied_to or self.root / "jobs" / self.job_id

    @property
    def spec(self) -> Path:
        return self.folder / "spec.json"

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.json"

    @property
    def prompts(self) -> Path:
        return self.folder / "prompts"

    @property
    def shards(self) -> Path:
        return self.folder / "shards"

    @property
    def errors(self) -> Path:
        return self.folder / "errors"

    @property
    def sidecars(self) -> Path:
        return self.folder / "sidecars"

    def segment(self, number: int) -> Path:
        return self.prompts / f"segment-{number:05d}.parquet"

    def attempt_files(self, shard: int, attempt: int) -> tuple[str, str]:
        """Names, relative to the folder, of one attempt's rows and prompt errors; no two claims ever share one."""
        stem = f"shard-{shard:06d}-a{attempt:03d}-{secrets.token_hex(4)}"
        return f"shards/{stem}.parquet", f"errors/{stem}.jsonl"

    @staticmethod
    def sidecar_file(kind: str, name: str, shard: int) -> str:
        """A name, relative to the folder, of one measurement of a shard; no two measurements ever share one."""
        return f"sidecars/{kind}-{name}-shard-{shard:06d}-{secrets.token_hex(4)}.parquet"

    @staticmethod
    def with_digest(name: str, sha256: str) -> str:
        """The name with the digest of what is in the file: the database, which keeps names, so keeps that as well."""
        stem, dot, suffix = name.rpartition(".")
        return f"{stem}-{sha256}{dot}{suffix}"

    @staticmethod
    def digest_in(name: str) -> str | None:
        """The digest in a name from `with_digest`; files of earlier versions have none."""
        match = _DIGEST.search(name)
        return match["sha256"] if match else None

    def resolve(self, name: str) -> Path:
        """The path of a name that the database keeps relative to the folder."""
        return self.folder / name


def new_job_id() -> str:
    """Twelve random hex digits: short to type by a unique prefix, and nothing to guess an order from."""
    return secrets.token_hex(6)


def worker_log(root: Path, worker_id: str) -> Path:
    """The log of one worker: a file a worker, JSON lines, each naming the job that it belongs to."""
    return root / "logs" / f"{worker_id}.jsonl"
