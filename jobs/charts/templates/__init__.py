"""Templates in which everything is escaped, and hostile characters are marked in what came from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from jobs.text import marked


def environment(*folders: Path) -> Environment:
    """The templates of these folders, and those of this one, which any of them may include."""
    return Environment(
        loader=FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _finalize(value: Any) -> Any:
    return marked(value) if isinstance(value, str) and not isinstance(value, Markup) else value
