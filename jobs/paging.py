"""Long lists in pieces: a page, and the cursor at which the next one begins.

A cursor holds the place of the last item, not its number, so that a list that grows or shrinks skips and doubles
nothing. To whoever gets one it is opaque.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, Field, TypeAdapter

from jobs.errors import UsageError

T = TypeVar("T")

JobId = Annotated[str, Field(pattern=r"^[0-9A-Za-z_-]{1,64}$", description="A job's whole id.")]
Number = Annotated[int, Field(ge=-1, lt=2**31)]
Offset = Annotated[int, Field(ge=0, lt=2**63)]


class Page(BaseModel, Generic[T]):
    """A piece of a list."""

    items: list[T]
    next: str | None = Field(description="Cursor of the next page; null at the end.")


def page_of(items: list[T], limit: int, place: Callable[[T], Any]) -> Page[T]:
    """A page of what a look for `limit` items found; `place` of an item, at which the next page begins."""
    return Page(items=items, next=cursor(place(items[-1])) if len(items) == limit else None)


def cursor(place: Any) -> str:
    """The cursor for what comes after a place: plain data."""
    return base64.urlsafe_b64encode(json.dumps(place, separators=(",", ":")).encode()).decode().rstrip("=")


def place_of(text: str | None, shape: Any) -> Any:
    """The place that a cursor stands for, or None without one; `shape` is its type. Raises UsageError."""
    if text is None:
        return None
    try:
        return TypeAdapter(shape).validate_json(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except ValueError:  # pydantic's is one
        raise UsageError("the cursor is none of ours: take it from `next` of the page before, as it stands") from None


JOB_PLACE = tuple[Annotated[float, Field(allow_inf_nan=False)], JobId]
"""The shape of a `jobs.records.Moment` that comes from elsewhere."""
