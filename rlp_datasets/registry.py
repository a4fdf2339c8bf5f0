"""`DATASET_REGISTRY`: dataset names to functions that give a split's examples.

A dataset is a function `(split="train") -> Sequence[Example]`. It is registered by `@register_dataset(name)`, or found
by that name in the entry-point group `rlp_datasets` of an installed distribution, which names the function or the
module that registers it; either is imported when it is first asked for, and only then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any, Protocol, TypeVar

from .errors import UnknownDatasetError, UnknownSplitError
from .example import Example

ENTRY_POINT_GROUP = "rlp_datasets"


class Dataset(Protocol):
    """What a registered function looks like to its callers."""

    def __call__(self, split: str = "train") -> Sequence[Example]: ...


_Function = TypeVar("_Function", bound=Callable[..., Sequence[Example]])


class DatasetRegistry(Mapping[str, Dataset]):
    """All datasets by name. Iteration lists installed ones too, without importing them."""

    def __init__(self) -> None:
        self._functions: dict[str, Dataset] = {}

    def __getitem__(self, name: str) -> Dataset:
        """The dataset's function. Raises UnknownDatasetError, which says what exists."""
        if name not in self._functions:
            installed = _installed().get(name)
            if installed is None:
                raise UnknownDatasetError(f"Unknown dataset {name!r}. There are: {', '.join(self)}.")
            loaded = _load(installed)
            if isinstance(loaded, ModuleType):  # importing it was to register the dataset
                loaded = self._functions.get(name)
            if not callable(loaded):
                raise UnknownDatasetError(
                    f"Dataset {name!r} is installed as {installed.value!r}, which is no function and registers none of "
                    "this name. Repair or uninstall the distribution that names it."
                )
            self._functions[name] = loaded
        return self._functions[name]

    def __contains__(self, name: object) -> bool:
        return name in self._functions or name in _installed()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._functions, *_installed()}))

    def __len__(self) -> int:
        return len({*self._functions, *_installed()})

    def register(self, name: str, function: Dataset) -> None:
        """Raises ValueError if another function has the name; the same one defined again (a notebook cell) may."""
        known = self._functions.setdefault(name, function)
        if _origin(known) != _origin(function):
            raise ValueError(f"The dataset name {name!r} is taken by {_origin(known)}. Register under another name.")
        self._functions[name] = function


DATASET_REGISTRY = DatasetRegistry()


def register_dataset(name: str) -> Callable[[_Function], _Function]:
    """Decorator: make `function(split="train") -> Sequence[Example]` known as `name`.

        @register_dataset("my_sums")
        def my_sums(split="train"):
            return [Example(text="1+1=", question="1+1", answer="2")]

    For processes that do not import your module, add it to your distribution's `pyproject.toml`:
    `[project.entry-points.rlp_datasets]`, `my_sums = "my_package.datasets:my_sums"`, or only `"my_package.datasets"`.
    """

    def register(function: _Function) -> _Function:
        DATASET_REGISTRY.register(name, function)
        return function

    return register


def check_split(dataset: str, split: str, splits: Iterable[str]) -> None:
    """Raises UnknownSplitError if `split` is none of `splits`."""
    if split not in (known := list(splits)):
        raise UnknownSplitError(f"Dataset {dataset!r} has no split {split!r}. It has: {', '.join(known)}.")


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def _load(point: EntryPoint) -> Any:
    """What the entry point names. Raises UnknownDatasetError whatever its module raises: it is somebody's program."""
    try:
        return point.load()
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnknownDatasetError(
            f"Dataset {point.name!r} is installed as {point.value!r} but cannot be imported: {reason}. "
            "Repair or uninstall the distribution that names it."
        ) from error


def _origin(function: object) -> str:
    name = getattr(function, "__qualname__", repr(function))
    return f"{getattr(function, '__module__', '?')}.{name}"
