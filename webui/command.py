"""`seqproc web`: the server, on loopback unless told otherwise, and then only with a token.

Importing this module loads nothing heavy: `seqproc --help` lists the command.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.errors import SeqprocError, UsageError

if TYPE_CHECKING:
    from jobs.settings import Settings

PORT = 8642


def web(
    host: Annotated[str, typer.Option(help="Address; any but loopback needs SEQPROC_TOKEN.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any that is free.")] = PORT,
) -> None:
    """Serve health checks and metrics over HTTP."""
    from jobs.settings import Settings

    serve(Settings.load(), host, port)


def serve(settings: Settings, host: str, port: int) -> None:
    """The life of one web server, until SIGTERM or Ctrl-C. Raises UsageError or SeqprocError if it cannot listen."""
    import logging

    import uvicorn

    from jobs.log_lines import JsonLines, on_stderr, send
    from webui.app import create_app
    from webui.guard import is_loopback

    family, address = _resolve(host, port)
    loopback = is_loopback(address)
    if not loopback and settings.token is None:
        raise UsageError(
            f"{host} can be reached from other machines, and SEQPROC_TOKEN is not set: set it to a long random text, "
            "or leave out --host"
        )
    with _listen(family, address, port) as listener:
        send(
            dict.fromkeys(("jobs", "webui", "uvicorn"), logging.INFO),
            [on_stderr(JsonLines(lambda: {"web": os.getpid()}))],
        )
        shown = f"[{address}]" if family == socket.AF_INET6 else address
        logging.getLogger("webui").info("listening on http://%s:%d", shown, listener.getsockname()[1])
        # No access log: health checks and scrapes come every few seconds and say nothing.
        app = create_app(settings, loopback=loopback)
        config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False)
        uvicorn.Server(config).run(sockets=[listener])


def _resolve(host: str, port: int) -> tuple[int, str]:
    """(address family, address) to listen on, the very one that is judged. Raises UsageError."""
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--host: {host!r} is no address of this machine: {error}") from None
    family, _, _, _, place = found[0]
    return family, str(place[0])


def _listen(family: int, address: str, port: int) -> socket.socket:
    try:
        return socket.create_server((address, port), family=family)
    except OSError as error:
        raise SeqprocError(
            f"cannot listen on {address} port {port}: {os.strerror(error.errno or 0)}; choose another with --port"
        ) from None
