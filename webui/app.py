"""The web application: whether it lives, whether it can work, and figures. Pages are to come.

Whoever reaches it on loopback by another name than loopback's is a page that had its name rebound, and is refused.
Where a token is set, everything but the two health checks asks for it.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import threading

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.types import ASGIApp, Receive, Scope, Send

from jobs.errors import SeqprocError, StoreError
from jobs.metrics import StoreCollector
from jobs.settings import Settings
from jobs.store import Store

log = logging.getLogger(__name__)

_OPEN = ("/healthz", "/readyz")  # whoever watches over the process has no token


class LazyStore:
    """The store, opened when it is first needed: the server starts, and says so, while the database is away."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._store: Store | None = None

    def store(self) -> Store:
        """Raises StoreError while the database does not answer or its schema is not ours."""
        with self._lock:
            if self._store is None:
                self._store = Store.open(self._settings)
            return self._store

    def check(self) -> None:
        """Ask the database now. Raises StoreError."""
        have, want = self.store().schema_version()
        if have != want:
            raise StoreError(f"{self.store().url} has schema {have} now, and this version needs {want}")


class Guard:
    """Lets through what may come through: the right host name on loopback, the token where there is one."""

    def __init__(self, app: ASGIApp, *, token: str | None, loopback: bool) -> None:
        self._app, self._loopback = app, loopback
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        refusal = self._refusal(scope["path"], headers.get(b"host", b""), headers.get(b"authorization", b""))
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, path: str, host: bytes, authorization: bytes) -> PlainTextResponse | None:
        if self._loopback and not _is_loopback_name(host.decode("latin-1")):
            return PlainTextResponse("This server answers to localhost and 127.0.0.1 only.\n", 400)
        if self._token is None or path in _OPEN:
            return None
        scheme, _, given = authorization.partition(b" ")
        if scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._token):
            return None
        sentence = "This server asks for its token: send the header `Authorization: Bearer TOKEN`.\n"
        return PlainTextResponse(sentence, 401, {"WWW-Authenticate": "Bearer"})


def create_app(settings: Settings, *, loopback: bool) -> FastAPI:
    """The application over the settings' database. `loopback`: whether only this machine can reach it."""
    app = FastAPI(title="SequenceProcessor", openapi_url=None, docs_url=None, redoc_url=None)
    lazy = LazyStore(settings)
    token = settings.token.get_secret_value() if settings.token else None
    app.add_middleware(Guard, token=token, loopback=loopback)

    @app.get("/", response_class=PlainTextResponse)
    def root() -> str:
        return "This is SequenceProcessor. Its pages are to come; `seqproc` on the command line does everything.\n"

    @app.get("/healthz", response_class=PlainTextResponse)
    def healthz() -> str:
        return "ok\n"

    @app.get("/readyz")
    def readyz() -> PlainTextResponse:
        try:
            lazy.check()
        except SeqprocError as error:
            log.error("not ready: %s", error)  # the reason names places: not for whoever asks without a token
            return PlainTextResponse("not ready, see the log\n", 503)
        return PlainTextResponse("ready\n")

    @app.get("/metrics")
    def metrics() -> PlainTextResponse:
        registry = CollectorRegistry()
        try:
            registry.register(StoreCollector(lazy.store()))
            return PlainTextResponse(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
        except SeqprocError as error:
            log.error("no figures: %s", error)
            return PlainTextResponse(f"{error}\n", 503)

    return app


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
