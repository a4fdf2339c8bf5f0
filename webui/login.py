"""The page that asks for the token, where a session begins and ends."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Form, Request
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from webui.entrance import TheEntrance, address
from webui.templates import page

router = APIRouter(include_in_schema=False)

# Browsers take a backslash for a slash and leave out tabs and line breaks: none of them, and no second slash.
_LOCAL = re.compile(r"/(?![/\\])[!-\[\]-~]*")


def local(target: str) -> str:
    """`target` if it is a path of this server, else `/`: nobody is sent elsewhere by a link."""
    return target if _LOCAL.fullmatch(target) else "/"


@router.get("/login")
async def login(request: Request, entrance: TheEntrance, next: str = "/") -> Response:
    if entrance.everybody is not None or entrance.by_session(request) is not None:
        return RedirectResponse(local(next), 303)
    return page(request, "login.html", next=local(next), wrong=None)


@router.post("/login")
async def enter(
    request: Request,
    entrance: TheEntrance,
    token: Annotated[str, Form()] = "",
    next: Annotated[str, Form()] = "/",
) -> Response:
    if entrance.everybody is not None:
        return RedirectResponse(local(next), 303)
    try:
        caller = entrance.by_token(token.strip().encode("utf-8", "replace"), address(request))
    except HTTPException as refusal:
        answer = page(request, "login.html", status=refusal.status_code, next=local(next), wrong=refusal.detail)
        answer.headers.update(refusal.headers or {})
        return answer
    entered = RedirectResponse(local(next), 303)
    entrance.begin_session(request, entered, caller)
    return entered


@router.post("/logout")
async def logout(request: Request, entrance: TheEntrance) -> Response:
    left = RedirectResponse("/login", 303)
    entrance.end_session(request, left)
    return left
