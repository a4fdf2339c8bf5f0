"""The names of a stream's prompts, to find one that comes twice: sixteen bytes each, whatever their number.

A name is kept as a hash of 120 bits: among ten million, two that differ are taken for one with a chance below 1e-22.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np

_BYTES = 16
_KIND = f"S{_BYTES}"
_FEW = 65_536  # new ones that are kept apart, at least, before they are sorted in


class Names:
    """A set of names that grows."""

    def __init__(self) -> None:
        self._sorted = np.empty(0, dtype=_KIND)
        self._new: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._sorted) + len(self._new)

    def __contains__(self, name: str) -> bool:
        digest = _digest(name)
        if digest in self._new:
            return True
        place = int(np.searchsorted(self._sorted, digest))
        return place < len(self._sorted) and bool(self._sorted[place] == digest)

    def update(self, names: Iterable[str]) -> None:
        """Add names, none of which is there."""
        self._new.update(map(_digest, names))
        if len(self._new) > max(_FEW, len(self._sorted) // 8):
            new = np.array(list(self._new), dtype=_KIND)
            self._sorted = np.sort(np.concatenate([self._sorted, new]), kind="stable")
            self._new.clear()


def _digest(name: str) -> bytes:
    """Never one that ends in NUL, which numpy would strip."""
    return blake2b(name.encode(), digest_size=_BYTES - 1).digest() + b"\x01"
