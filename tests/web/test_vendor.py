"""What others wrote is what they published, and says under which licence."""

from __future__ import annotations

import hashlib
from pathlib import Path

import webui

VENDOR = Path(webui.__file__).parent / "static" / "vendor"


def test_digests_and_licences() -> None:
    known = dict(reversed(line.split()) for line in (VENDOR / "SHA256SUMS").read_text().splitlines())
    for name, digest in known.items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == digest
        assert (VENDOR / f"{name.partition('.')[0]}.LICENSE").is_file()
    assert {path.name for path in VENDOR.iterdir() if path.suffix in (".js", ".css")} == set(known)
