"""The options of `seqproc submit`, made from JobSpec: its fields are the flags, and there is no second list of them.

Options hand over text and the model alone judges it, so that every mistake is reported at once and in one voice.
They are made when the command runs: `seqproc --help` does not wait for pydantic.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Sequence
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import typer
from typer.core import TyperCommand
from typer.main import get_command

from jobs.errors import SpecError, UsageError
from jobs.labels import label_of

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

_PAIRS = {"labels": "KEY=VALUE", "columns": "FIELD=COLUMN"}  # fields whose dict is written pair by pair
_METAVARS = {int: "INTEGER", float: "NUMBER", str: "TEXT"}


class SpecCommand(TyperCommand):
    """A command that takes, beside its own options, one for every field of JobSpec; it finds them in `ctx.obj`.

    A class of it may take fewer, by `fields`; what is then not given is as the job has it that the command names.
    """

    fields: tuple[str, ...] | None = None
    _spec_params: list[Any] | None = None

    def get_params(self, ctx: Any) -> Any:
        if self._spec_params is None:
            self._spec_params = _parameters(self.fields)
        own = super().get_params(ctx)
        return [*own[:1], *self._spec_params, *own[1:]]

    def invoke(self, ctx: Any) -> Any:
        ctx.obj = {param.name: ctx.params.pop(param.name) for param in self._spec_params or ()}
        return super().invoke(ctx)


def flag(name: str) -> str:
    """The flag of a field: `max_new_tokens` → `--max-new-tokens`, `G` → `-G`; one that is repeated for each reward."""
    if name == "rewards":
        return "--reward"
    return f"-{name}" if len(name) == 1 else f"--{name.replace('_', '-')}"


def to_fields(values: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, as fields for JobSpec.parse; raises UsageError for a malformed pair or JSON."""
    fields: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, list):
            value = tuple(value)
        if value is None or value == ():
            continue
        if name == "labels":
            value = dict(_pair(name, text) for text in value)
        elif name == "columns":  # a comma begins the next pair only where one follows: it may stand in a column's name
            value = dict(_pair(name, pair) for text in value for pair in re.split(r",(?=\w+=)", text))
        elif name == "chat_template_kwargs":
            value = _json(flag(name), value)
        elif value == ("",):
            value = ()  # said on purpose: none of them
        fields[name] = value
    return fields


def with_flags(error: SpecError) -> SpecError:
    """The same problems, each place that is a field named by its flag."""
    from jobs.spec import JobSpec

    def rename(problem: str) -> str:
        found = re.match(r"([A-Za-z_]+)(\.[\w.]+)?: ", problem)
        if found and found[1] in JobSpec.model_fields:
            return f"{flag(found[1])}: {problem[found.end() :]}"
        return problem

    return SpecError([rename(problem) for problem in error.problems], error.total)


def _parameters(names: Sequence[str] | None) -> list[Any]:
    """typer's options for the fields, through a command that exists only to have them. None: all, with defaults."""
    from jobs.spec import JobSpec

    def holder() -> None: ...

    fields = JobSpec.model_fields
    options = [_parameter(name, fields[name], defaults=names is None) for name in names or fields]
    setattr(holder, "__signature__", inspect.Signature(options))  # noqa: B010
    app = typer.Typer(add_completion=False)
    app.command()(holder)
    return list(get_command(app).params)


def _parameter(name: str, field: FieldInfo, *, defaults: bool) -> inspect.Parameter:
    kind, item = shape(field.annotation)
    text = field.description or ""
    default = None if field.is_required() or kind is dict else field.default
    notes = ["required"] if defaults and field.is_required() else []
    if kind in (list, tuple, dict) and name != "chat_template_kwargs":
        notes.append("repeatable")
    if defaults and default not in (None, ()):
        notes += ["'' for none"] * (kind is tuple) + [f"default: {_shown(default)}"]
    names = [flag(name)]
    if kind is bool:
        names = [f"{flag(name)}/--no-{flag(name).removeprefix('--')}"]
    option = typer.Option(
        *names,
        help=f"{text[:1].upper()}{text[1:]}" + (f" [{'; '.join(notes)}]" if notes else ""),
        metavar=None if kind is bool else _metavar(name, kind, item),
        show_default=False,  # the text says it: the option's own default is None, which means not given
    )
    hint: Any = bool if kind is bool else list[str] if kind in (list, tuple) or name in _PAIRS else str
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[hint | None, option]
    )


def shape(annotation: Any) -> tuple[Any, Any]:
    """(bool | list | tuple | dict | Literal | int | float | str, what a collection holds), None put aside.

    Of a number or a word, as `int | Literal["auto"]`: (Union, the two).
    """
    choices = [arg for arg in get_args(annotation) if arg is not NoneType]
    if NoneType in get_args(annotation) and len(choices) == 1:
        annotation = choices[0]
    origin = get_origin(annotation) or annotation
    if origin is Literal:
        return Literal, annotation
    if origin is Union:
        return Union, choices
    return origin, (get_args(annotation) or (None,))[0]


def _metavar(name: str, kind: Any, item: Any) -> str:
    if kind is dict:
        return _PAIRS.get(name, "JSON")
    if kind is Union:
        return "|".join(_metavar(name, *shape(choice)).strip("[]") for choice in item)
    of = item if kind in (list, tuple, Literal, Annotated) else kind
    if get_origin(of) is Literal:
        return f"[{'|'.join(get_args(of))}]"
    return _METAVARS.get(of, "TEXT")


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    return ", ".join(default) if isinstance(default, tuple) else str(default)


def _pair(name: str, text: str) -> tuple[str, str]:
    key, value = label_of(text) or ("", None)
    if value is None:
        raise UsageError(f"{flag(name)}: {text!r} is no pair; write it as key=value")
    return key, value


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(
            f'{name}: not JSON at column {error.colno} ({error.msg}); write an object like {{"a": 1}}'
        ) from None
