"""How a caller becomes known: by a token, or by the session that a token began.

The cookie of a session is not the token: it is a moment at which it expires, signed with a key that follows from the
token. A token that is changed ends its sessions.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import time
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from jobs.settings import Settings, current_owner
from webui.caller import Caller
from webui.guesses import Guesses

SESSION_SECONDS = 7 * 24 * 3600
_SESSION = re.compile(r"(?P<expires>[0-9]{1,12})\.(?P<signature>[0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class _Key:
    """What is known of one token."""

    caller: Caller
    digest: bytes  # of the token: tokens of any length compare in the same time
    signing: bytes

    def signature(self, expires: int) -> str:
        return hmac.new(self.signing, str(expires).encode(), hashlib.sha256).hexdigest()


class Entrance:
    """The tokens of one server. `everybody`: who all callers are where there are none."""

    def __init__(self, settings: Settings) -> None:
        operator = Caller(current_owner(), operator=True)
        tokens = [(Caller(name, operator=False), token) for name, token in settings.tokens.items()]
        if settings.token is not None:
            tokens.append((operator, settings.token))
        self._keys = [_key(caller, token.get_secret_value().encode()) for caller, token in tokens]
        self._guesses = Guesses()
        self.everybody = None if tokens else operator

    def by_token(self, token: bytes, address: str) -> Caller:
        """Raises HTTPException: 401 for a wrong token, 429 if too many wrong ones came from the address."""
        if wait := math.ceil(self._guesses.wait(address)):
            message = f"Too many wrong tokens came from your address. Try again in {wait} s."
            raise HTTPException(429, message, {"Retry-After": str(wait)})
        digest = _digest(token)
        fitting = [key.caller for key in self._keys if hmac.compare_digest(key.digest, digest)]
        if not fitting:
            self._guesses.add(address)
            raise HTTPException(401, "This is not a token of this server.", {"WWW-Authenticate": "Bearer"})
        return fitting[0]

    def by_session(self, connection: HTTPConnection) -> Caller | None:
        """Whose session the cookie is; None if it is none, or an expired one."""
        session = _SESSION.fullmatch(connection.cookies.get(_cookie(connection), ""))
        if session is None or (expires := int(session["expires"])) < time.time():
            return None
        given = session["signature"]
        fitting = [key.caller for key in self._keys if hmac.compare_digest(key.signature(expires), given)]
        return fitting[0] if fitting else None

    def begin_session(self, request: Request, response: Response, caller: Caller) -> None:
        """Have the response set the cookie of a new session."""
        expires = int(time.time()) + SESSION_SECONDS
        [key] = [key for key in self._keys if key.caller == caller]
        session = f"{expires}.{key.signature(expires)}"
        secure = request.scope["scheme"] == "https"
        response.set_cookie(
            _cookie(request), session, max_age=SESSION_SECONDS, httponly=True, samesite="lax", secure=secure
        )

    def end_session(self, request: Request, response: Response) -> None:
        """Have the response take the cookie away."""
        response.delete_cookie(_cookie(request), httponly=True, samesite="lax")

    @staticmethod
    def has_session(connection: HTTPConnection) -> bool:
        """Whether there is a cookie, whatever it is worth."""
        return _cookie(connection) in connection.cookies


def address(connection: HTTPConnection) -> str:
    """Where the request came from."""
    return connection.client.host if connection.client else ""


def _key(caller: Caller, token: bytes) -> _Key:
    return _Key(caller, _digest(token), hmac.digest(token, b"seqproc web session", "sha256"))


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _cookie(connection: HTTPConnection) -> str:
    """A name by port: browsers send all cookies of a host to each of its ports."""
    port = connection.headers.get("host", "").rpartition(":")[2]
    return f"seqproc-session-{port}" if port.isdecimal() else "seqproc-session"


async def _entrance(connection: HTTPConnection) -> Entrance:  # async: not worth a thread
    entrance: Entrance = connection.app.state.entrance
    return entrance


TheEntrance = Annotated[Entrance, Depends(_entrance)]
"""A route's parameter of this type is the entrance."""
