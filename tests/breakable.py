"""What the servers of the tests have in common: a port that stays theirs, and outages that end with a block."""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager


class Breakable(ABC):
    """A server that a test takes away or lets hang."""

    @abstractmethod
    def start(self) -> None:
        """Returns when the server answers."""

    @abstractmethod
    def kill(self) -> None:
        """Gone at once, as by a crash."""

    @abstractmethod
    def freeze(self) -> None:
        """It hangs: connections are taken, and nothing is answered."""

    @abstractmethod
    def thaw(self) -> None:
        """It goes on where it stood."""

    @contextmanager
    def away(self) -> Iterator[None]:
        """Killed, and started again after the block."""
        self.kill()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """It hangs in the block, whatever it was about to do."""
        self.freeze()
        try:
            yield
        finally:
            self.thaw()


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
