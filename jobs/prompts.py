"""Prompts on their way in: from a file, a stream, a dataset or Python, one checked row at a time.

Everything wrong is gathered with its place, so that one look mends it all; nothing is stored of a job that has any
problem. Memory is bounded by a row and sixteen bytes a prompt (a hash of its custom_id, its line).
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydantic import ValidationError

import rlp_datasets
from jobs.columns import Columns
from jobs.draws import Numbered, told_apart, with_replacement
from jobs.errors import SpecError
from jobs.openai_batch import OpenAIBatch
from jobs.snapshot import SnapshotRow
from jobs.spec import JobSpec, PromptRow, problems

SHOWN = 100  # problems that are listed; the others are counted


@dataclass(slots=True)
class Problems:
    """What is wrong, one `place: message` line each: the first `SHOWN`, and how many there are."""

    lines: list[str] = field(default_factory=list)
    total: int = 0

    def add(self, line: str) -> None:
        self.total += 1
        if len(self.lines) < SHOWN:
            self.lines.append(line)

    def raise_any(self) -> None:
        """Raises SpecError if there are any."""
        if self.total:
            raise SpecError(self.lines, self.total)


class PromptSource:
    """The prompts of a resolved spec, iterated once; then `check` tells whether all of it was right.

    Wrong rows are left out and gathered in `problems`. `ignored_columns` are names that no prompt has, in order of
    appearance. Raises SpecError at once for what cannot be read at all: a file, a dataset, an empty source.
    """

    def __init__(self, spec: JobSpec, *, prompts: Iterable[Any] | None = None, stdin: BinaryIO | None = None) -> None:
        """`prompts`: of texts, messages, token ids or dicts; streamed, in place of the spec's own source."""
        self.problems = Problems()
        self.ignored_columns: list[str] = []
        self._spec = spec
        self._columns = Columns(spec.columns)
        self._batch = OpenAIBatch(spec)
        self._hashes, self._numbers = array("Q"), array("Q")
        self._place: Callable[[int], str] = lambda number: f"{spec.dataset or 'prompts'}[{number}]"
        self._rows = self._source(spec, prompts, stdin)

    def __iter__(self) -> Iterator[PromptRow]:
        try:
            for number, row in self._chosen():
                self._remember(row.custom_id, number)
                yield row
        except rlp_datasets.DatasetError as error:
            self.problems.add(str(error))
        if missing := self._columns.problems():
            raise SpecError(missing)  # alone: they are the reason of what else is wrong
        for line in self._batch.problems(self._place):
            self.problems.add(line)
        if not self._hashes and not self.problems.total:
            self.problems.add("prompts: there are none; give at least one")

    def check(self, stored: Callable[[], Iterable[SnapshotRow]]) -> None:
        """Raises SpecError with all that was wrong, custom_ids that stand twice included.

        Equal hashes are only a suspicion: `stored`, the snapshot as it was written, is read again to be sure.
        """
        suspects = _repeated(self._hashes)
        seen: dict[str, int] = {}
        for row in stored() if suspects else ():
            if row.prompt_index not in suspects:
                continue
            first = seen.setdefault(row.custom_id, row.prompt_index)
            if first != row.prompt_index:
                place, before = (self._place(self._numbers[index]) for index in (row.prompt_index, first))
                default = (
                    " (a row without a custom_id gets its index)" if row.custom_id == str(row.prompt_index) else ""
                )
                self.problems.add(
                    f"{place} custom_id: {row.custom_id!r}{default} stands already at {before}; give each its own"
                )
        self.problems.raise_any()

    def _chosen(self) -> Iterator[Numbered]:
        """All that are right, or as many of them as are drawn."""
        spec = self._spec
        rows = ((number, row) for number, data in self._rows if (row := self._checked(number, data)) is not None)
        if not spec.replacement:
            return rows
        if spec.dataset is not None:  # of which only what is drawn is read
            return told_apart(rows)
        assert spec.num_prompts is not None
        return told_apart(with_replacement(rows, spec.num_prompts, spec.prompt_seed))

    def _source(
        self, spec: JobSpec, prompts: Iterable[Any] | None, stdin: BinaryIO | None
    ) -> Iterator[tuple[int, Any]]:
        """(number, row) pairs; a number is what `_place` makes a place of."""
        given = [name for name in ("prompts", "file", "dataset") if getattr(spec, name) is not None]
        if prompts is not None and given:
            raise SpecError([f"prompts come from one place, but prompts and {given[0]} are given"])
        if spec.file is not None:
            return self._file_rows(spec.file, stdin)
        if spec.dataset is not None:
            return _dataset_rows(spec)
        source = prompts if prompts is not None else spec.prompts
        if source is None:
            raise SpecError(["prompts: there are none; give prompts, a file (- is standard input) or a dataset"])
        return enumerate(source)

    def _file_rows(self, file: str, stdin: BinaryIO | None) -> Iterator[tuple[int, Any]]:
        if file == "-" and stdin is None:
            raise SpecError(["file: standard input (-) can only be read where there is one; name a file"])
        name = "<stdin>" if stdin is not None and file == "-" else str(Path(file).expanduser())
        self._place = lambda number: f"{name}:{number}"
        rows = rlp_datasets.read_stream(stdin) if stdin and file == "-" else rlp_datasets.read_rows(name)
        for row in rows:
            if isinstance(row, rlp_datasets.BadRow):
                self.problems.add(f"{row.place}: {row.message}")
            else:
                yield int(row.place.rpartition(":")[2]), row.data

    def _checked(self, number: int, data: Any) -> PromptRow | None:
        """The row, or None if it is wrong in some way."""
        try:
            data = self._batch(number, self._columns(data))
        except ValueError as error:
            self.problems.add(f"{self._place(number)} {error}")
            return None
        if self._spec.dataset is not None and data.get("custom_id") is None:
            data = {**data, "custom_id": f"{self._spec.split}-{number}"}
        row = checked(data, self._spec.kind)
        if isinstance(row, list):
            for problem in row:
                self.problems.add(f"{self._place(number)} {problem}")
            return None
        if isinstance(data, dict) and len(data) > len(row.model_fields_set):
            self._ignore(name for name in data if name not in PromptRow.model_fields)
        return row

    def _ignore(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.ignored_columns and len(self.ignored_columns) < SHOWN:
                self.ignored_columns.append(name)

    def _remember(self, custom_id: str | None, number: int) -> None:
        called = str(len(self._hashes)) if custom_id is None else custom_id
        self._hashes.append(int.from_bytes(blake2b(called.encode(), digest_size=8).digest(), "big"))
        self._numbers.append(number)


def checked(data: Any, kind: str) -> PromptRow | list[str]:
    """The row, for a job of this kind, or what is wrong with it, a `field: message` each."""
    try:
        row = data if isinstance(data, PromptRow) else PromptRow.model_validate(data)
    except ValidationError as error:
        return problems(error)
    if kind == "score" and row.response is None and row.response_token_ids is None:
        return ["response: kind score needs response or response_token_ids"]
    return row


def _dataset_rows(spec: JobSpec) -> Iterator[tuple[int, dict[str, Any]]]:
    """All examples in their order, or `num_prompts` of them drawn by `prompt_seed`."""
    assert spec.dataset is not None
    external = rlp_datasets.is_external(spec.dataset)
    examples: Any
    try:
        if external:
            examples = rlp_datasets.open_dataset(spec.dataset, spec.split)
        else:
            examples = rlp_datasets.DATASET_REGISTRY[spec.dataset](split=spec.split)
    except rlp_datasets.DatasetError as error:
        raise SpecError([f"dataset: {error}"]) from None
    size = len(examples)
    if spec.num_prompts is not None and spec.num_prompts > size and not spec.replacement:
        raise SpecError(
            [f"num_prompts: {spec.dataset} has {size:,} prompts in split {spec.split}, not {spec.num_prompts:,}"]
        )
    chosen: Iterable[int] = range(size)
    chance = random.Random(spec.prompt_seed)
    if spec.num_prompts is not None and spec.replacement:
        chosen = chance.choices(range(size), k=spec.num_prompts) if size else ()
    elif spec.num_prompts is not None:
        chosen = chance.sample(range(size), spec.num_prompts)
    for index in chosen:
        example = examples[index]
        yield index, example if external else {"prompt": example.text, "answer": example.answer}


def _repeated(hashes: array[int]) -> set[int]:
    """Indices of all prompts whose hash another prompt has too."""
    values = np.frombuffer(hashes, dtype=np.uint64)
    order = np.argsort(values, kind="stable")
    same = np.flatnonzero(values[order][1:] == values[order][:-1])
    return set(order[same].tolist()) | set(order[same + 1].tolist())
