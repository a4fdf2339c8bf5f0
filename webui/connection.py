"""uvicorn's connections, with the patience that they lack: it waits for ever for a request to come, and for an answer
to be taken."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 20.0  # from the connection, or the last answer, to the end of the next request's head
STALLED_SECONDS = 60.0  # in which nothing of an answer was taken


class PatientProtocol(H11Protocol):
    """Closes a connection whose request's head does not come, or whose answer is not taken."""

    _head: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _unsent = 0  # bytes, when last looked at

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._look_at_head()

    def on_response_complete(self) -> None:
        self._await_head()
        super().on_response_complete()  # which may find the next request there already
        self._look_at_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_writes()

    def resume_writing(self) -> None:
        super().resume_writing()
        _cancel(self._stalled)

    def connection_lost(self, exc: Exception | None) -> None:
        _cancel(self._head)
        _cancel(self._stalled)
        super().connection_lost(exc)

    def _await_head(self) -> None:
        _cancel(self._head)
        self._head = self.loop.call_later(HEAD_SECONDS, self._no_head)

    def _look_at_head(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            _cancel(self._head)

    def _no_head(self) -> None:
        if self.transport.get_write_buffer_size():  # of the last answer
            self._await_writes()
        else:
            self.transport.abort()

    def _await_writes(self) -> None:
        _cancel(self._stalled)
        self._unsent = self.transport.get_write_buffer_size()
        self._stalled = self.loop.call_later(STALLED_SECONDS, self._look_at_writes)

    def _look_at_writes(self) -> None:
        if self.transport.get_write_buffer_size() < self._unsent:
            self._await_writes()
        else:
            self.transport.abort()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
