"""Pages from templates: escaped everywhere, and hostile characters taken out of what came from elsewhere.

A template gets the values of its route; filters are named here. `page` answers with a whole page or, to htmx, with the
block `live` of it alone (what polling replaces).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse

_environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def page(request: Request, name: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    """The template as a page; only its block `live` if htmx polls for it (header HX-Request)."""
    template = _environment.get_template(name)
    values |= {"request": request}
    if "HX-Request" in request.headers and "live" in template.blocks:
        context = template.new_context(values)
        return HTMLResponse("".join(template.blocks["live"](context)), status, {"Vary": "HX-Request"})
    return HTMLResponse(template.render(values), status, {"Vary": "HX-Request"})
