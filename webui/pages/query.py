"""Which jobs a list shows, as its URL says it: the whole state of the view, so that it can be sent and gone back to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any
from urllib.parse import urlencode

from starlette.datastructures import QueryParams

from jobs.errors import UsageError
from jobs.labels import label_of
from jobs.paging import JOB_PLACE, place_of
from jobs.records import Moment
from jobs.states import JobState


@dataclass(frozen=True, slots=True)
class Query:
    """Empty texts ask for nothing. `label` is KEY or KEY=VALUE; `before` is where a page begins, a cursor."""

    state: tuple[JobState, ...] = ()
    q: str = ""
    label: str = ""
    model: str = ""
    owner: str = ""
    queue: str = ""
    before: str = ""

    @classmethod
    def of(cls, params: QueryParams) -> Query:
        """Raises UsageError for a state that there is none of, or a page that begins nowhere."""
        texts = {name: params.get(name, "").strip() for name in cls.__dataclass_fields__ if name != "state"}
        query = cls(state=tuple(dict.fromkeys(map(_state, params.getlist("state")))), **texts)
        try:
            _ = query.place
        except UsageError:
            raise UsageError(f"before: {query.before!r} is where no page begins; start again at /jobs") from None
        return query

    @property
    def filters(self) -> dict[str, Any]:
        """What `Store.job_counts` takes: everything but the states and the page."""
        return {
            "text": self.q or None,
            "label": label_of(self.label),
            **{name: getattr(self, name) or None for name in ("model", "owner", "queue")},
        }

    @property
    def place(self) -> Moment | None:
        """What `Store.jobs` takes as `before`."""
        place: Moment | None = place_of(self.before or None, JOB_PLACE)
        return place

    @property
    def narrows(self) -> bool:
        """Whether anything but the page is asked for."""
        return self != Query(before=self.before)

    def url(self, **changes: Any) -> str:
        """The list with some fields changed; another page begins anew unless `before` is among them."""
        fields = asdict(replace(self, **{"before": "", **changes}))
        query = urlencode({name: value for name, value in fields.items() if value}, doseq=True)
        return f"/jobs?{query}" if query else "/jobs"

    def toggled(self, state: JobState) -> str:
        """The list with this state asked for if it is not, and the other way round."""
        rest = tuple(other for other in self.state if other is not state)
        return self.url(state=rest if state in self.state else (*rest, state))


def _state(word: str) -> JobState:
    try:
        return JobState(word)
    except ValueError:
        raise UsageError(f"state: there is no {word!r}; states are {', '.join(JobState)}") from None
