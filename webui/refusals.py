"""What becomes of an error: a status and a sentence, as JSON under /api and as a page elsewhere."""

from __future__ import annotations

import logging
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response

from jobs.errors import (
    IdempotencyConflict,
    JobNotFound,
    NotFinished,
    ResultsError,
    SeqprocError,
    SpecError,
    StoreError,
    UsageError,
    WrongState,
)
from jobs.redact import without_credentials
from webui.templates import page

log = logging.getLogger(__name__)

_STATUS: dict[type[SeqprocError], HTTPStatus] = {  # the first that fits
    SpecError: HTTPStatus.UNPROCESSABLE_ENTITY,
    JobNotFound: HTTPStatus.NOT_FOUND,
    IdempotencyConflict: HTTPStatus.CONFLICT,
    UsageError: HTTPStatus.BAD_REQUEST,
    WrongState: HTTPStatus.CONFLICT,
    NotFinished: HTTPStatus.CONFLICT,
    StoreError: HTTPStatus.SERVICE_UNAVAILABLE,
    ResultsError: HTTPStatus.SERVICE_UNAVAILABLE,
    SeqprocError: HTTPStatus.INTERNAL_SERVER_ERROR,
}


def install(app: FastAPI) -> None:
    """Have the application answer errors so."""
    app.add_exception_handler(SeqprocError, _ours)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _unforeseen)


def refuse(
    request: Request,
    status: int,
    message: str,
    *,
    code: str,
    problems: list[str] | None = None,
    total: int | None = None,
) -> Response:
    """The answer that says what is wrong. `code` is a word for programs; `problems`, a line for each thing to mend.

    `total`: how many things that are, if not all have a line.
    """
    if request.scope["path"].startswith("/api/"):  # `request.url` would need a Host that is one
        detail: dict[str, object] = {"code": code, "message": message}
        if problems:
            detail |= {"problems": problems, "total": total or len(problems)}
        return JSONResponse({"error": detail}, status)
    title = HTTPStatus(status).phrase
    return page(request, "error.html", status=status, title=title, message=message, problems=problems or [])


async def _ours(request: Request, error: Exception) -> Response:
    status = next(found for kind, found in _STATUS.items() if isinstance(error, kind))
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("%s %s: %s", request.method, request.url.path, error)
    problems, total = (error.problems, error.total) if isinstance(error, SpecError) else (None, None)
    # A library's words in a message may hold credentials.
    message = without_credentials(str(error))
    return refuse(request, status, message, code=type(error).__name__, problems=problems, total=total)


def of_http(request: Request, error: HTTPException) -> Response:
    """The answer to an HTTPException, headers included."""
    answer = refuse(request, error.status_code, str(error.detail), code=HTTPStatus(error.status_code).name.lower())
    answer.headers.update(error.headers or {})
    return answer


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return of_http(request, error)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = [f"{'.'.join(map(str, found['loc'][1:]))}: {found['msg']}" for found in error.errors()]
    return refuse(request, 422, "; ".join(problems), code="invalid", problems=problems)


async def _unforeseen(request: Request, error: Exception) -> Response:
    log.error("%s %s was not foreseen", request.method, request.url.path, exc_info=error)
    return refuse(request, 500, "This was not foreseen; the server's log says more.", code="unforeseen")
