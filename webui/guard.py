"""Who is let in: the right host name on loopback, the token where there is one.

Whoever reaches the server on loopback by another name than loopback's is a page that had its name rebound.
"""

from __future__ import annotations

import hmac
import ipaddress

from fastapi.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from jobs.settings import current_owner
from webui import health
from webui.caller import Caller


class Guard:
    """Lets through what may come through."""

    def __init__(self, app: ASGIApp, *, token: str | None, loopback: bool) -> None:
        self._app, self._loopback = app, loopback
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        scope.setdefault("state", {})["caller"] = Caller(current_owner(), operator=True)
        refusal = self._refusal(scope["path"], headers.get(b"host", b""), headers.get(b"authorization", b""))
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, path: str, host: bytes, authorization: bytes) -> PlainTextResponse | None:
        if self._loopback and not _is_loopback_name(host.decode("latin-1")):
            return PlainTextResponse("This server answers to localhost and 127.0.0.1 only.\n", 400)
        if self._token is None or path in health.OPEN:
            return None
        scheme, _, given = authorization.partition(b" ")
        if scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._token):
            return None
        sentence = "This server asks for its token: send the header `Authorization: Bearer TOKEN`.\n"
        return PlainTextResponse(sentence, 401, {"WWW-Authenticate": "Bearer"})


def _is_loopback_name(host: str) -> bool:
    """Whether a Host header names this machine as itself, with or without a port."""
    name = host[1 : host.find("]")] if host.startswith("[") else host.partition(":")[0]
    return is_loopback(name) or name.lower() == "localhost"


def is_loopback(address: str) -> bool:
    """Whether an address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
