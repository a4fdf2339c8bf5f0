"""A request's body as the application receives it: never too long, and never slower than a person's patience.

A server that closes a connection on which bytes still arrive resets it, and the client may lose the answer that says
why. So what is left of a refused body is read and thrown away for a moment first.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

from jobs.text import size

IDLE_SECONDS = 30.0  # without a byte
SLOWEST = 1_000  # bytes per second, on average, of a body that is not streamed
_LINGER_SECONDS = 2.0
_CLOSE = {"Connection": "close"}


class Body:
    """The body of one request. `streamed`: it may come as slowly as its sender makes it."""

    def __init__(self, receive: Receive, headers: Headers, *, most: int, streamed: bool) -> None:
        self._receive, self._most, self._streamed = receive, most, streamed
        length = headers.get("content-length", "0")
        self._declared = int(length) if length.isdecimal() else 0
        self._received = 0
        self._began: float | None = None
        self._refused = False
        self.complete = self._declared == 0 and "transfer-encoding" not in headers

    def check_length(self) -> None:
        """Raises HTTPException, 413, if what the header declares is too long."""
        if self._declared > self._most:
            raise self._too_long()

    async def receive(self) -> Message:
        """ASGI's receive. Raises HTTPException: 413 when too much has come, 408 when nothing comes."""
        if self._refused:
            return {"type": "http.disconnect"}
        if self.complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline()):
                message = await self._next()
        except TimeoutError:
            self._refused = True
            raise HTTPException(408, "The body came too slowly, or stopped coming. Send it again.", _CLOSE) from None
        if self._received > self._most:
            self._refused = True
            raise self._too_long()
        return message

    async def discard(self) -> None:
        """Read what is left of it, for a moment."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                while not self.complete:
                    await self._next()

    async def _next(self) -> Message:
        message = await self._receive()
        self._received += len(message.get("body", b""))
        self.complete = not message.get("more_body", False)  # nor does anything come after a disconnect
        return message

    def _deadline(self) -> float:
        now = asyncio.get_running_loop().time()
        self._began = self._began or now
        idle = now + IDLE_SECONDS
        return idle if self._streamed else min(idle, self._began + IDLE_SECONDS + self._received / SLOWEST)

    def _too_long(self) -> HTTPException:
        return HTTPException(413, f"The body is too long: here it may have at most {size(self._most)}.", _CLOSE)
