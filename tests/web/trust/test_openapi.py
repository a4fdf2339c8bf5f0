"""The HTTP API under what nobody would send: every answer is one that its description promises, and none is a crash."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import (
    ignored_auth,
    negative_data_rejection,
    positive_data_acceptance,
)

from jobs.settings import Settings
from jobs.store import Store
from tests.house import House
from tests.web.conftest import TOKEN
from webui.app import create_app

schemathesis.serializer.alias("application/x-ndjson", "text/plain")
SECRET = "secret-of-mallory"
NOT_ASKED = [
    positive_data_acceptance,  # a spec has rules that its schema cannot tell, such as one source of prompts
    ignored_auth,  # after ten wrong tokens the right one would be told to wait, and nothing else be seen
]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    home, tokens = tmp_path_factory.mktemp("openapi") / "home", f"mallory:{SECRET}"
    guarded = Settings(home=home, token=TOKEN, tokens=tokens)  # type: ignore[arg-type]
    store = Store.open(guarded)
    yield House(guarded, store)
    store.close()


@pytest.fixture(scope="module")
def job(house: House) -> str:
    """A job of ann's that has ended, with rows and an error."""
    return house.finish(house.submit(["a", "bad", "c"]).job).id


@pytest.fixture(scope="module")
def api(house: House) -> Any:
    # On loopback it would not answer to the name that the client in this process has for it.
    app = create_app(house.settings, loopback=False)
    return schemathesis.openapi.from_asgi("/openapi.json", app, headers={"Authorization": f"Bearer {TOKEN}"})


def ask_anything(api: Any, token: str, job: str | None = None) -> set[int]:
    """Each operation, with what fits its description and what does not, about `job` if given; the statuses seen."""
    operations = [found.ok() for found in api.get_all_operations()]
    asked = [operation for operation in operations if job is None or "{job}" in operation.path]
    not_asked = NOT_ASKED if job is None else [*NOT_ASKED, negative_data_rejection]  # the job makes good what was wrong
    seen: set[int] = set()
    for operation in asked:

        @settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy() | operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))
        def holds(case: Case) -> None:
            if job is not None:
                case.path_parameters["job"] = job
            answer = case.call_and_validate(headers={"Authorization": f"Bearer {token}"}, excluded_checks=not_asked)
            seen.add(answer.status_code)

        holds()
    return seen


def test_the_operator_asks_anything(api: Any) -> None:
    assert {200, 404, 422} <= ask_anything(api, TOKEN)


def test_somebody_asks_about_anothers_job(api: Any, house: House, job: str) -> None:
    assert {200, 403, 422} <= ask_anything(api, SECRET, job)
    assert house.store.job(job).state == "succeeded"
