"""The form that submits a job: the fields of JobSpec, and no second list of what they may hold.

What is typed goes to the model as text and the model alone judges it, as on the command line: the same mistake gets the
same sentence in both places. An empty field is one that was not given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args
from uuid import uuid4

from starlette.datastructures import FormData, UploadFile

from jobs.cli.spec_options import shape, to_fields
from jobs.errors import UsageError
from jobs.spec import JobSpec

Kind = Literal["text", "number", "choice", "lines", "checks"]

MAIN = ("model", "G", "temperature", "max_new_tokens", "seed", "name", "labels")
OF_DATASET = ("dataset", "split", "num_prompts", "replacement", "prompt_seed")
_NOT_TYPED = ("prompts", "file", "idempotency_key")  # what holds the prompts, and what makes two posts one job
MORE = tuple(name for name in JobSpec.model_fields if name not in (*MAIN, *OF_DATASET, *_NOT_TYPED))
_LINES = {
    "diagnostics": "one a line as well",
    "labels": "one a line",
    "columns": "one a line",
    "rewards": "one a line",
    "stop_strings": "one a line, or none",
    "chat_template_kwargs": "a JSON object",
}
_PLACE = re.compile(r"(\w+)(?:[.\[][^:]*)?:")


@dataclass(frozen=True, slots=True)
class Field:
    """One field as the form shows it."""

    name: str
    title: str
    hint: str
    kind: Kind
    choices: tuple[str, ...]
    default: str
    required: bool


@dataclass(slots=True)
class Values:
    """What stands in the form. `problems` are `field: message` lines, as of SpecError."""

    texts: dict[str, str] = field(default_factory=dict)
    measurements: tuple[str, ...] = JobSpec.model_fields["measurements"].default
    prompts: str = ""
    upload: UploadFile | None = None
    key: str = field(default_factory=lambda: uuid4().hex)
    problems: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, form: FormData) -> Values:
        texts = {name: value.replace("\r\n", "\n") for name, value in form.items() if isinstance(value, str)}
        upload = form.get("upload")
        return cls(
            texts={name: texts[name] for name in JobSpec.model_fields if name in texts and name != "prompts"},
            measurements=tuple(value for value in form.getlist("measurements") if isinstance(value, str)),
            prompts=texts.get("prompts", ""),
            upload=upload if isinstance(upload, UploadFile) and upload.filename else None,
            key=texts.get("idempotency_key") or uuid4().hex,
        )

    def spec_fields(self) -> dict[str, Any]:
        """What JobSpec.parse takes, without what an uploaded file holds. Adds to `problems` what is no value at all."""
        fields: dict[str, Any] = {"measurements": self.measurements, "idempotency_key": self.key}
        for name, text in self.texts.items():
            if name in _NOT_TYPED or name == "measurements":
                continue
            given = _lines(text) if name in ("labels", "columns", "rewards", "stop_strings") else text.strip()
            if name == "stop_strings":
                fields[name] = given
            elif given:
                fields |= self._field(name, given)
        if prompts := _lines(self.prompts):
            fields["prompts"] = prompts
        if fields.get("dataset") is None:
            fields.pop("split", None)  # the form shows its default, which says nothing without one
        return fields

    def problems_of(self, name: str) -> list[str]:
        """What is wrong with a field, without its name."""
        return [problem.partition(": ")[2] for problem in self.problems if _field_of(problem) == name]

    @property
    def summary(self) -> list[tuple[str | None, str]]:
        """(the field or None, the problem) of all that is wrong."""
        return [(_field_of(problem), problem) for problem in self.problems]

    def _field(self, name: str, given: Any) -> Mapping[str, Any]:
        try:
            return to_fields({name: given})
        except UsageError as error:  # no pair, no JSON
            self.problems.append(f"{name}: {str(error).partition(': ')[2]}")
            return {}


def fields(names: Iterable[str]) -> list[Field]:
    """These fields of JobSpec as the form shows them."""
    return [_shown(name) for name in names]


def _shown(name: str) -> Field:
    info = JobSpec.model_fields[name]
    kind, item = shape(info.annotation)
    hint = "; ".join(filter(None, (info.description, _LINES.get(name))))
    default = None if info.is_required() else info.get_default(call_default_factory=True)
    choices: tuple[str, ...] = ()
    form: Kind = "text"
    if kind is bool:
        form, choices, default = "choice", ("no", "yes"), "yes" if default else "no"
    elif kind is Literal:
        form, choices = "choice", get_args(item)
    elif name == "measurements":
        form, choices = "checks", default or ()
    elif kind in (dict, tuple):
        form, default = "lines", "\n".join(default) if isinstance(default, tuple) else ""
    elif kind in (int, float):
        form = "number"
    return Field(
        name=name,
        title=name.replace("_", " ").capitalize(),
        hint=hint[:1].upper() + hint[1:],
        kind=form,
        choices=choices,
        default="" if default is None else str(default),
        required=info.is_required(),
    )


def _field_of(problem: str) -> str | None:
    found = _PLACE.match(problem)
    return found[1] if found and found[1] in (*JobSpec.model_fields, "upload") else None


def _lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if line.strip()]
