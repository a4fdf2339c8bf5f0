"""docker-compose.yml and Dockerfile as data: what Compose makes of them, as far as tests ask."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
SECRETS = {"POSTGRES_PASSWORD": "pgsecret1", "REDIS_PASSWORD": "redissecret2", "SEQPROC_TOKEN": "tokensecret3"}

_VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>\w+)(?:(?P<how>:[-?])(?P<other>[^}]*))?\})")


class Refused(Exception):
    """A variable that the file insists on is missing or empty; the message is the file's."""


def interpolate(text: str, variables: Mapping[str, str]) -> str:
    """What Compose does with `${NAME}`, `${NAME:-default}`, `${NAME:?message}` and `$$`."""

    def value(match: re.Match[str]) -> str:
        if match["dollar"]:
            return "$"
        given = variables.get(match["name"], "")
        if not given and match["how"] == ":?":
            raise Refused(match["other"])
        return given or (match["other"] if match["how"] == ":-" else "")

    return _VARIABLE.sub(value, text)


def load(variables: Mapping[str, str], text: str | None = None) -> dict[str, Any]:
    """The file with anchors merged and variables put in. Values are interpolated, keys and comments are not."""
    text = (ROOT / "docker-compose.yml").read_text() if text is None else text
    loaded: dict[str, Any] = _map(yaml.safe_load(text), variables)
    return {key: value for key, value in loaded.items() if not key.startswith("x-")}


def _map(value: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _map(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [_map(item, variables) for item in value]
    return interpolate(value, variables) if isinstance(value, str) else value


def seconds(duration: str) -> float:
    """`1m30s` as seconds."""
    parts = re.findall(r"(\d+)([smh])", duration)
    assert "".join(number + unit for number, unit in parts) == duration
    return sum(float(number) * {"s": 1, "m": 60, "h": 3600}[unit] for number, unit in parts)


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """(INSTRUCTION, arguments) pairs, continued lines joined, comments dropped."""
    lines = [line for line in dockerfile.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    pairs = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [(name.upper(), rest.strip()) for name, rest in pairs]


def image_environment() -> dict[str, str]:
    """The ENV of our image."""
    found = [rest for name, rest in instructions((ROOT / "Dockerfile").read_text()) if name == "ENV"]
    return dict(pair.split("=", 1) for rest in found for pair in rest.split())
