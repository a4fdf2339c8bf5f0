"""What polling gets: a view is made once and kept for about a second, whoever asks, and nothing is sent that is known.

A hundred pages that look at the same jobs cost about as much as one. What a view shows must not hang on who asks, but
for those whose maker says so: these are kept for each caller.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from fastapi import Request
from starlette.responses import HTMLResponse, Response

from webui.caller import Caller

_KEPT = 1.0  # seconds
_VIEWS = 256  # at most so many


_Key = tuple[str, Caller | None]


@dataclass(slots=True)
class _View:
    lock: threading.Lock = field(default_factory=threading.Lock)
    made: float = float("-inf")
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Views:
    """The views of one application, by URL and, where it matters, caller. The ones asked for last are kept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._views: OrderedDict[_Key, _View] = OrderedDict()

    def get(self, key: _Key, make: Callable[[], Response]) -> _View:
        """The view, made now if it is too old; of those who ask at once, one makes it."""
        with self._lock:
            view = self._views.setdefault(key, _View())
            self._views.move_to_end(key)
            if len(self._views) > _VIEWS:
                self._views.popitem(last=False)
        with view.lock:
            if time.monotonic() - view.made > _KEPT:
                response = make()
                view.body = bytes(response.body)
                view.headers = {name: response.headers[name] for name in ("Vary", "ETag")}
                view.made = time.monotonic()
        return view


def polled(request: Request, make: Callable[[], Response], *, by_caller: bool = False) -> Response:
    """The page that `make` makes; to htmx, what was made for it just now, or 204 if it has that already.

    `by_caller`: it shows what the caller may do.
    """
    if "HX-Request" not in request.headers:
        return make()
    views: Views = request.app.state.site.views
    view = views.get((f"{request.url.path}?{request.url.query}", request.state.caller if by_caller else None), make)
    if request.headers.get("If-None-Match") == view.headers["ETag"]:
        return Response(status_code=204, headers=view.headers)
    return HTMLResponse(view.body, headers=view.headers)
