"""A wire between a client and a server that is cut: before an answer comes, or in the middle of one."""

from __future__ import annotations

import select
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field


@dataclass
class Wire:
    """Listens until `close`. The next connections are cut after so many bytes of answers each, as `cuts` says."""

    port_behind: int
    cuts: list[int] = field(default_factory=list)
    connections: int = 0
    asked: bytes = b""

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _listen(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                server = socket.create_connection(("127.0.0.1", self.port_behind))
                threading.Thread(target=self._run, args=(client, server), daemon=True).start()

    def _run(self, client: socket.socket, server: socket.socket) -> None:
        with client, server, suppress(OSError):
            while True:
                ready, _, _ = select.select([client, server], [], [])
                for end in ready:
                    data = end.recv(65536)
                    if not data:
                        return
                    if end is client:
                        self.asked += data
                        server.sendall(data)
                    elif self.cuts:
                        client.sendall(data[: self.cuts.pop(0)])
                        return
                    else:
                        client.sendall(data)
