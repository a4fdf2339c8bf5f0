"""One run of a benchmark that has servers: what it measures, each thing once, and the report on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from benchmarks.lanes import Servers
from benchmarks.table import Row, in_own_process

Sizes = TypeVar("Sizes")


@dataclass
class Run(Generic[Sizes]):
    """Its sizes, its servers, and what was measured so far."""

    sizes: Sizes
    servers: Servers = field(default_factory=Servers)
    measured: dict[str, Any] = field(default_factory=dict)

    def measure(self, name: str, function: Callable[..., Any], *args: Any, lanes: str = "", **options: Any) -> Any:
        """`function(*args, **options)` in a process of its own, on a new lane for each named one; what it raises."""
        if name not in self.measured:
            on = [self.servers.lane(lane) for lane in lanes.split()]
            self.measured[name] = in_own_process(name, function, *on, *args, **options)
        return self.measured[name]

    def report(self, rows: dict[str, Row], only: list[str], quick: bool) -> dict[str, Any]:
        """Everything that was measured, and the rows of the table. Ends the servers."""
        from benchmarks import machine  # not above: it loads torch, and every process here imports this module

        chosen = {name: row for name, row in rows.items() if not only or name in only}
        try:
            lines = [row.line(name, self, judged=not quick) for name, row in chosen.items()]
        finally:
            self.servers.close()
        return {"quick": quick, "machine": machine.described(), "rows": lines, "measured": self.measured}
