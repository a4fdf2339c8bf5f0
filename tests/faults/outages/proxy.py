"""A wire between a worker and PostgreSQL that is cut around the COMMIT of a chosen transaction, or goes dead.

It speaks as much of the protocol as it takes to see where a message ends: a byte of type, four of length, the content.
"""

from __future__ import annotations

import ctypes
import select
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

Where = Literal["before", "after"]  # the commit happens or not; its reply never comes

COMMITS_A_SHARD = b"\x00\x00\x00\x04done"  # a parameter that only the transaction of a finished shard has
CLAIMS_A_SHARD = b"INSERT INTO attempts"
MAKES_A_JOB = b"INSERT INTO jobs"

_SO_ATTACH_FILTER = 26  # Linux
_DROP_ALL = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0), 8)  # BPF: return 0 bytes of any packet


@dataclass
class Proxy:
    """Listens until `close`. `cut` chooses; `cuts` counts the connections that were cut so."""

    port_behind: int
    cuts: int = 0
    _chosen: Callable[[bytes], Where | None] = lambda transaction: None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._wires: list[_Wire] = []
        self._vanished: list[socket.socket] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def cut(self, where: Where, mark: bytes, times: int) -> None:
        """Cut the next connections whose transaction contains `mark`: before its COMMIT arrives, or after it did."""
        left = [where] * times

        def choose(transaction: bytes) -> Where | None:
            return left.pop() if left and mark in transaction else None

        self._chosen = choose

    def choose_by(self, choose: Callable[[bytes], Where | None]) -> None:
        """Ask this of every transaction."""
        self._chosen = choose

    def choose(self, transaction: bytes) -> Where | None:
        with self._lock:
            where = self._chosen(transaction)
            self.cuts += where is not None
            return where

    def vanish(self) -> int:
        """To those who are connected, as a host without power: no packet of theirs is even acknowledged, and no
        connection is closed; how many there were. On the host that stands in for it, new ones are taken."""
        program = struct.pack("HP", 1, ctypes.addressof(_DROP_ALL))
        for wire in (wires := [wire for wire in self._wires if wire.client.fileno() >= 0]):
            wire.client.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
            self._vanished.append(wire.client.dup())  # stays open when the wire lets go of it
            wire.server.shutdown(socket.SHUT_RDWR)
        return len(wires)

    def close(self) -> None:
        for end in (self._listener, *self._vanished):
            end.close()

    def _listen(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self.port_behind))
                except OSError:  # the server is away
                    client.close()
                    continue
                self._wires.append(_Wire(self, client, server))
                threading.Thread(target=self._wires[-1].run, daemon=True).start()


@dataclass
class _Wire:
    proxy: Proxy
    client: socket.socket
    server: socket.socket
    started: bool = False  # the first message has no type
    unread: bytes = b""  # of the client, not yet a whole message
    transaction: bytes = b""
    withheld: bytes | None = None  # the server's answers since the fatal COMMIT

    def run(self) -> None:
        with self.client, self.server, suppress(OSError):
            while self._goes_on():
                pass

    def _goes_on(self) -> bool:
        ready, _, _ = select.select([self.client, self.server], [], [])
        for end in ready:
            data = end.recv(65536)
            if not data:
                return False
            if end is self.server and not self._answer(data):
                return False
            if end is self.client and not self._ask(data):
                return False
        return True

    def _answer(self, data: bytes) -> bool:
        if self.withheld is None:
            self.client.sendall(data)
            return True
        self.withheld += data
        return b"COMMIT\x00" not in self.withheld  # the server says that it did: now the wire breaks

    def _ask(self, data: bytes) -> bool:
        self.unread += data
        while (message := self._message()) is not None:
            if self.started and message == b"Q\x00\x00\x00\x0bCOMMIT\x00":
                where, self.transaction = self.proxy.choose(self.transaction), b""
                if where == "before":
                    return False
                self.withheld = b"" if where == "after" else None
            else:
                self.transaction += message
            self.started = True
            self.server.sendall(message)
        return True

    def _message(self) -> bytes | None:
        kind = 1 if self.started else 0
        if len(self.unread) < kind + 4:
            return None
        size = kind + int.from_bytes(self.unread[kind : kind + 4])
        if len(self.unread) < size:
            return None
        message, self.unread = self.unread[:size], self.unread[size:]
        if message == b"Q\x00\x00\x00\x0aBEGIN\x00" or message.endswith(b"ROLLBACK\x00"):
            self.transaction = b""
        return message
