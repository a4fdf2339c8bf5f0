"""Who is let in, and what every answer says to the browser.

A request passes in this order: a host name that is ours, no page of another site behind it, a body that is not too
long, and a caller who is known. Whoever reaches the server on loopback by another name than loopback's is a page that
had its name rebound. On other addresses any name will do: a rebound page brings neither cookie nor token, and without
one of them it gets nothing.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import parse_qsl, urlencode, urlsplit

from fastapi import Request
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.settings import Settings
from webui import health, refusals
from webui.body import Body
from webui.entrance import Entrance, address
from webui.login import local

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not no-referrer: under that a browser says `Origin: null` even when it sends our own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_STREAMED = ("/api/v1/jobs/stream", "/api/v1/jobs/plan/stream", "/submit")
_MOST, _MOST_OF_STRANGERS = 32 * 2**20, 16 * 2**10  # bytes of a body
_AT_ONCE = 200  # requests
_STATIC = "/static/"
_OPEN = (*health.OPEN, "/login")
_SAFE = ("GET", "HEAD", "OPTIONS")
_HOST = re.compile(r"((?P<name>[A-Za-z0-9._-]+)|\[(?P<ipv6>[0-9A-Fa-f:.]+)\])(:[0-9]{1,5})?")


class Guard:
    """Lets through what may come through, and leaves in `request.state.caller` who asks (None on open paths)."""

    def __init__(self, app: ASGIApp, settings: Settings, entrance: Entrance, *, loopback: bool) -> None:
        self._app, self._settings, self._entrance = app, settings, entrance
        self._names = {name.lower() for name in settings.web_hosts}
        self._any_name = not loopback and not self._names
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":  # there are no websockets here
                await self._app(scope, receive, send)
            return
        request = Request(scope)
        body = self._body(request, receive)
        self._under_way += 1
        try:
            answer = self._answer(request, body) or self._app
            await answer(scope, body.receive, _closing(request, body, send))
        finally:
            self._under_way -= 1

    def _answer(self, request: Request, body: Body) -> Response | None:
        """What there is to say before the application is asked; None if nothing."""
        request.state.caller = None
        name = _host_name(request)
        if name is None:  # no page: it could not even tell its own address
            return PlainTextResponse("The header Host is missing, or names no host.\n", 400)
        try:
            self._check_name(name)
            _check_site(request)
            body.check_length()
            if self._under_way > _AT_ONCE and request.scope["path"] not in health.OPEN:
                raise HTTPException(503, "Too many requests are under way. Try again.", {"Retry-After": "1"})
            return self._enter(request)
        except HTTPException as refusal:
            return refusals.of_http(request, refusal)

    def _body(self, request: Request, receive: Receive) -> Body:
        path, streamed = request.scope["path"], request.scope["path"] in _STREAMED
        most = self._settings.web_max_body if streamed else _MOST_OF_STRANGERS if _is_open(path) else _MOST
        return Body(receive, request.headers, most=most, streamed=streamed)

    def _check_name(self, name: str) -> None:
        if not (self._any_name or name in self._names or name == "localhost" or is_loopback(name)):
            raise HTTPException(
                400, f"This server does not answer to the name {name}. SEQPROC_WEB_HOSTS lists more than loopback's."
            )

    def _enter(self, request: Request) -> Response | None:
        """Find out who asks. Raises HTTPException if that is nobody known."""
        if _is_open(request.scope["path"]):
            return None
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        in_query = request.query_params.get("token") if _is_navigation(request) else None
        if self._entrance.everybody is not None:
            request.state.caller = self._entrance.everybody
        elif scheme.lower() == "bearer":
            request.state.caller = self._entrance.by_token(bearer.strip().encode("latin-1"), address(request))
        else:
            request.state.caller = self._entrance.by_session(request)
        if in_query is not None:
            return self._without_token(request, in_query)
        return None if request.state.caller else _ask_for_token(request)

    def _without_token(self, request: Request, token: str) -> Response:
        """To the same page, with a session in place of the token in the address."""
        answer = RedirectResponse(local(_target(request, without="token")), 303)
        if request.state.caller is None:
            caller = self._entrance.by_token(token.encode("utf-8", "replace"), address(request))
            self._entrance.begin_session(request, answer, caller)
        return answer


def _host_name(request: Request) -> str | None:
    """The name, or address, under which the server was reached; None if that is none."""
    host = _HOST.fullmatch(request.headers.get("host", ""))
    if host is None:
        return None
    try:
        return host["name"].lower() if host["name"] else str(ipaddress.IPv6Address(host["ipv6"]))
    except ValueError:
        return None


def _check_site(request: Request) -> None:
    """Raises HTTPException, 403, for what a page of another site has the browser send: it may link here, no more.

    Such a page cannot send the header Authorization without our leave, which nobody gets.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if "authorization" in request.headers:
        return
    if site is not None:
        ours = site in ("same-origin", "none") or (
            request.method in _SAFE and request.headers.get("sec-fetch-mode") == "navigate"
        )
    elif origin is not None:
        ours = _place(origin) == request.headers["host"].lower()
    else:  # no browser, for they tell where a form or a script is from: so no cookie of one
        ours = request.method in _SAFE or not Entrance.has_session(request)
    if not ours:
        raise HTTPException(403, "This came from a page of another site, which may link here and do nothing else.")


def _ask_for_token(request: Request) -> Response:
    if _is_navigation(request):
        return RedirectResponse("/login?" + urlencode({"next": local(_target(request))}), 303)
    headers = {"WWW-Authenticate": "Bearer"}
    if "hx-request" in request.headers:  # a session has ended while a page polled: load it anew, and so the login
        headers["HX-Refresh"] = "true"
    raise HTTPException(401, "This server asks for its token: send the header `Authorization: Bearer TOKEN`.", headers)


def _closing(request: Request, body: Body, send: Send) -> Send:
    """A `send` that adds our headers, and ends the connection if the answer comes before the body was read."""
    caching = "no-cache" if request.scope["path"].startswith(_STATIC) else "no-store"

    async def closing(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in {**HEADERS, "Cache-Control": caching}.items():
                headers.setdefault(name, value)
            if not body.complete:
                headers["Connection"] = "close"
        elif not body.complete and not message.get("more_body", False):
            await send({**message, "more_body": True})
            await body.discard()
            message = {"type": "http.response.body"}
        await send(message)

    return closing


def _is_open(path: str) -> bool:
    return path in _OPEN or path.startswith(_STATIC)


def _is_navigation(request: Request) -> bool:
    """Whether a person waits for a page: who may be sent to the login."""
    return request.method in ("GET", "HEAD") and "text/html" in request.headers.get("accept", "")


def _target(request: Request, without: str | None = None) -> str:
    """Path and query as they came, less one parameter."""
    path, query = request.scope["raw_path"].decode("latin-1"), request.scope["query_string"].decode("latin-1")
    if without is not None:
        pairs = parse_qsl(query, keep_blank_values=True)
        query = urlencode([(name, value) for name, value in pairs if name != without])
    return f"{path}?{query}" if query else path


def _place(origin: str) -> str:
    """Host and port of an origin, as a Host header has them; empty for what is none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def is_loopback(address: str) -> bool:
    """Whether an address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
