"""`/docs`: the OpenAPI description as a page, made here so that it needs no script and nothing from elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse

from webui.templates import page

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class Field:
    """A parameter, or a field of an object."""

    name: str
    place: str  # path, query, or "" for a field
    kind: str
    required: bool
    description: str


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    summary: str
    description: str
    parameters: list[Field]
    body: list[Field] | None
    body_text: str
    answers: list[tuple[str, str, str]]  # (status, description, kind)

    @property
    def anchor(self) -> str:
        return f"{self.method}{self.path}".replace("/", "-").replace("{", "").replace("}", "")


@router.get("/docs")
def docs(request: Request) -> HTMLResponse:
    app: FastAPI = request.app
    description = app.openapi()
    groups: dict[str, list[Operation]] = {}
    for path, methods in description["paths"].items():
        for method, found in methods.items():
            groups.setdefault(found["tags"][-1], []).append(_operation(method, path, found))
    shapes = {name: _fields(schema) for name, schema in description["components"]["schemas"].items()}
    return page(request, "docs.html", version=description["info"]["version"], groups=groups, shapes=shapes)


def _operation(method: str, path: str, found: dict[str, Any]) -> Operation:
    content: dict[str, Any] = found.get("requestBody", {}).get("content", {})
    schema: dict[str, Any] = next((of["schema"] for of in content.values()), {})
    return Operation(
        method=method.upper(),
        path=path,
        summary=found["summary"],
        description=found.get("description", ""),
        parameters=[
            Field(each["name"], each["in"], kind_of(each["schema"]), each["required"], each.get("description", ""))
            for each in found.get("parameters", ())
        ],
        body=_fields(schema) if "properties" in schema else None,
        body_text=found.get("requestBody", {}).get("description", ""),
        answers=[(status, answer["description"], _answer(answer)) for status, answer in found["responses"].items()],
    )


def _answer(answer: dict[str, Any]) -> str:
    kinds = [kind_of(of.get("schema", {})) or media for media, of in answer.get("content", {}).items()]
    return ", ".join(kinds)


def _fields(schema: dict[str, Any]) -> list[Field]:
    required = schema.get("required", ())
    return [
        Field(name, "", kind_of(of), name in required, of.get("description", ""))
        for name, of in schema.get("properties", {}).items()
    ]


def kind_of(schema: dict[str, Any]) -> str:
    """A schema in a few words: `integer`, `list of Job`, `queued | running`, `text | null`."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(kind_of(choice) for choice in schema["anyOf"]))
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    kind = str(schema.get("type", ""))
    if kind == "array":
        return f"list of {kind_of(schema.get('items', {})) or 'anything'}"
    return {"string": "text"}.get(kind, kind)
