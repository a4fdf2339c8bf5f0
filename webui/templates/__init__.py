"""Pages from templates: escaped everywhere, and hostile characters marked in what came from elsewhere.

A template gets the values of its route. `page` answers with a whole page or, to htmx, with the block `live` of it alone
(what polling replaces). That block is rendered without the rest: what it imports, it imports itself.
"""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import Any

from fastapi import Request
from starlette.responses import HTMLResponse

from jobs.charts.templates import environment
from webui.templates.filters import FILTERS

_environment = environment(Path(__file__).parent)
_environment.filters |= FILTERS


def page(request: Request, name: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    """The template as a page; only its block `live`, with an ETag, if htmx polls for it (header HX-Request)."""
    template = _environment.get_template(name)
    values |= {"request": request, "etag": ""}
    if "live" not in template.blocks:
        return HTMLResponse(template.render(values), status, {"Vary": "HX-Request"})
    live = "".join(template.blocks["live"](template.new_context(values)))
    etag = f'"{blake2b(live.encode(), digest_size=12).hexdigest()}"'
    if "HX-Request" in request.headers:
        return HTMLResponse(live, status, {"Vary": "HX-Request", "ETag": etag})
    around = template.new_context(values | {"etag": etag})
    around.blocks["live"] = [lambda _: iter([live])]  # as it was rendered already
    return HTMLResponse("".join(template.root_render_func(around)), status, {"Vary": "HX-Request"})
