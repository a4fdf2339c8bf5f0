"""One web server, and how it is spoken to: requests, what becomes of errors, and what is tried again.

An error that the server tells of is raised as the class that it was there, with the same sentence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, TypeVar, cast
from urllib.parse import parse_qsl, urlsplit

import httpx2
from pydantic import TypeAdapter, ValidationError
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from jobs import errors
from jobs.errors import ResultsError, SeqprocError, SpecError, Unreachable, UsageError
from jobs.files import replacing
from jobs.paging import Page

T = TypeVar("T")

_TRIES = 4
_PAUSE = wait_exponential(multiplier=0.2, max=2)  # seconds
_TIMEOUT = httpx2.Timeout(60, connect=10)
_LONG = httpx2.Timeout(900, connect=10)  # to write down a million prompts, or to remove as many files
_DIRECT = {f"all://{name}": None for name in ("localhost", "127.0.0.1", "[::1]")}  # through no proxy
_OURS = {kind.__name__: kind for kind in vars(errors).values() if isinstance(kind, type)}


class Server:
    """Requests to one server. Every method raises Unreachable if it does not answer, UsageError for a wrong token."""

    def __init__(self, url: str, token: str | None) -> None:
        """`url` may bear the token as `?token=…`, as `seqproc up` prints it. Raises UsageError if it is no address."""
        self.url, token = _address(url, token)
        headers = {"User-Agent": f"sequence-processor/{version('sequence-processor')}"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        self._token = token
        self._http = httpx2.Client(base_url=f"{self.url}/api/v1", headers=headers, timeout=_TIMEOUT, mounts=_DIRECT)

    def close(self) -> None:
        self._http.close()

    def read(self, kind: type[T], path: str, **query: Any) -> T:
        """What stands at a path."""
        return self._parsed(kind, self._request("GET", path, query))

    def pages(self, kind: type[T], path: str, **query: Any) -> Iterator[Page[T]]:
        """The pages of a list, from the cursor `query` has, if any, to the end."""
        while True:
            page: Page[T] = self.read(Page[kind], path, **query)  # type: ignore[valid-type]
            yield page
            if page.next is None:
                return
            query["cursor"] = page.next

    def post(self, kind: type[T], path: str, *, again: bool, **query: Any) -> T:
        """Ask for something. `again`: doing it twice is no harm, so that a lost answer is asked for again."""
        return self._parsed(kind, self._request("POST", path, query, again=again))

    def upload(self, kind: type[T], path: str, body: IO[bytes]) -> T:
        """Send a file of JSON lines, which must mean the same if it arrives twice."""
        return self._parsed(kind, self._request("POST", path, {}, body=body))

    def send(self, kind: type[T], path: str, data: dict[str, Any], *, again: bool) -> T:
        """Send plain data. `again` as of `post`."""
        return self._parsed(kind, self._request("POST", path, {}, again=again, data=data))

    def put(self, kind: type[T], path: str, data: dict[str, Any]) -> T:
        """Put plain data at a path; putting it twice is no harm."""
        return self._parsed(kind, self._request("PUT", path, {}, data=data))

    def delete(self, path: str) -> None:
        self._request("DELETE", path, {}, again=False)

    def download(self, path: str, target: Path, sha256: str | None) -> None:
        """Fetch a file, whole or not at all. Raises ResultsError if it is not the one with this digest."""
        for attempt in self._tries(again=True):
            with attempt, self._sentences(), self._http.stream("GET", path) as response:
                if not response.is_success:
                    response.read()
                    self._refuse(response)
                digest = hashlib.sha256()
                with replacing(target) as temporary, temporary.open("wb") as file:
                    for chunk in response.iter_bytes():
                        digest.update(chunk)
                        file.write(chunk)
                    if sha256 is not None and digest.hexdigest() != sha256:
                        raise ResultsError(
                            f"{self.url}/api/v1{path} did not arrive as the file that was committed (its sha256 "
                            "differs): try again; if it stays so, the file on the server is damaged"
                        )

    def _request(
        self,
        method: str,
        path: str,
        query: dict[str, Any],
        *,
        again: bool = True,
        body: IO[bytes] | None = None,
        data: dict[str, Any] | None = None,
    ) -> httpx2.Response:
        given = {name: value for name, value in query.items() if value is not None}
        options: dict[str, Any] = {"params": given or None, "timeout": _TIMEOUT if method == "GET" else _LONG}
        if data is not None:
            options |= {"json": data}
        if body is not None:
            options |= {"content": body, "headers": {"Content-Type": "application/x-ndjson"}}
        for attempt in self._tries(again=again):
            with attempt, self._sentences():
                if body is not None:
                    body.seek(0)
                response = self._http.request(method, path, **options)
        if not response.is_success:
            self._refuse(response)
        return response

    def _tries(self, *, again: bool) -> Retrying:
        """A request that never reached the server is always sent again, one whose answer was lost only if `again`."""

        def lost(error: BaseException) -> bool:
            cause = error.__cause__
            return isinstance(cause, httpx2.TransportError if again else httpx2.ConnectError)

        return Retrying(stop=stop_after_attempt(_TRIES), wait=_PAUSE, retry=retry_if_exception(lost), reraise=True)

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        try:
            yield
        except httpx2.ConnectError as error:
            raise Unreachable(
                f"no server answers at {self.url} ({error}): check the address; there, `seqproc web` starts one"
            ) from error
        except httpx2.TimeoutException as error:
            raise Unreachable(f"{self.url} does not answer in time: it is overloaded, or away; try again") from error
        except httpx2.TransportError as error:
            raise Unreachable(f"the connection to {self.url} broke off ({error}); try again") from error

    def _parsed(self, kind: type[T], response: httpx2.Response) -> T:
        try:
            found: T = _adapter(cast(Any, kind)).validate_json(response.content)
            return found
        except ValidationError:
            raise self._foreign(response) from None

    def _refuse(self, response: httpx2.Response) -> None:
        """Raises what the server says."""
        if response.status_code == 401:
            wrong = "does not take this token: give" if self._token else "asks for a token: give token=…,"
            raise UsageError(f"{self.url} {wrong} the one that it was started with (SEQPROC_TOKEN there)")
        try:
            detail = response.json()["error"]
            code, message, problems = detail["code"], str(detail["message"]), detail.get("problems")
        except (ValueError, KeyError, TypeError):
            raise self._foreign(response) from None
        kind = _OURS.get(code)
        if kind is SpecError:
            raise SpecError(problems or [message], detail.get("total"))
        if kind is None:
            kind = UsageError if response.is_client_error else SeqprocError
        raise kind(message)

    def _foreign(self, response: httpx2.Response) -> Unreachable:
        what = response.headers.get("content-type", "nothing")
        says = f": {response.text.splitlines()[0][:200]}" if what.startswith("text/plain") and response.text else ""
        return Unreachable(
            f"{self.url} is no server of this version of SequenceProcessor: it answered {response.request.url.path} "
            f"with status {response.status_code} and {what}{says}; check the address"
        )


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _address(url: str, token: str | None) -> tuple[str, str | None]:
    """(scheme://host:port/path, token)."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        httpx2.URL(url)
    except (ValueError, httpx2.InvalidURL):
        good = False
    if not good or "@" in parts.netloc:
        raise UsageError(
            "that is no address of a server; give one like http://host:8642, without a name or a password, "
            "and the token as token=…"
        )
    token = token or dict(parse_qsl(parts.query)).get("token")
    if token is not None and not (token.isascii() and token.isprintable()):
        raise UsageError("the token holds characters that no token has; give it as it stands in SEQPROC_TOKEN")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}", token
