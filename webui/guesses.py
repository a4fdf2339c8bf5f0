"""Wrong tokens, counted by the address that they came from: after a few it has to wait.

Each try fills a bucket that leaks. While many are wrong everywhere, an address gets a single try at a time: whoever
brings a right token from an address of his own is let in even then.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

TRIES, REGAINED_IN = 10, 6.0  # wrong tokens of one address at once; seconds until it may try another
TRIES_IN_ALL, ALL_REGAINED_IN = 100, 0.6
_MOST_ADDRESSES = 10_000  # that are remembered


@dataclass(slots=True)
class _Bucket:
    """How many wrong tries there were, less those that time has forgiven."""

    regained_in: float
    filled: float = 0.0
    at: float = 0.0

    def level(self, now: float) -> float:
        self.filled = max(0.0, self.filled - (now - self.at) / self.regained_in)
        self.at = now
        return self.filled

    def add(self, now: float) -> None:
        self.filled = self.level(now) + 1


class Guesses:
    """The wrong tries of one server's life. For one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._all = _Bucket(ALL_REGAINED_IN)
        self._by_address: OrderedDict[str, _Bucket] = OrderedDict()  # the last seen last

    def wait(self, address: str) -> float:
        """Seconds until the address may try; 0 if it may now."""
        now = self._clock()
        bucket = self._by_address.get(_network(address))
        if bucket is None:
            return 0.0
        tries = TRIES if self._all.level(now) < TRIES_IN_ALL else 1
        return max(0.0, (bucket.level(now) + 1 - tries) * REGAINED_IN)

    def add(self, address: str) -> None:
        """The address brought a wrong token."""
        now, network = self._clock(), _network(address)
        self._all.add(now)
        self._by_address.setdefault(network, _Bucket(REGAINED_IN)).add(now)
        self._by_address.move_to_end(network)
        if len(self._by_address) > _MOST_ADDRESSES:
            self._by_address.popitem(last=False)


def _network(address: str) -> str:
    """Who counts as one: an IPv4 address, or the 64 bits that one holder of IPv6 addresses has."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    return str(parsed.ipv4_mapped or ipaddress.ip_network((parsed, 64), strict=False))
