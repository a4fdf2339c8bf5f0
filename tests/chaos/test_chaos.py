"""`make chaos`: faults at random for `CHAOS_MINUTES`, from `CHAOS_SEED` on. In the normal suite a few seconds of it."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.chaos.chaos import Chaos
from tests.chaos.embedded import EmbeddedChaos
from tests.chaos.servers import Servers, ServersChaos
from tests.faults.outages.disk import small_disk
from tests.faults.outages.site import Reference, Site

_MINUTES = os.environ.get("CHAOS_MINUTES")
_SMOKE = 6.0  # seconds
_POLL = 1.0  # seconds: where there is Redis, what wakes a worker is mostly a ring
_SEED = int(os.environ.get("CHAOS_SEED") or (random.randrange(10**6) if _MINUTES else 1))


@pytest.mark.timeout(600 + 60 * float(_MINUTES or 0))
@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_nothing_is_lost(
    dialect: str,
    new_site: Callable[..., Site],
    reference: Reference,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    with ExitStack() as stack:
        disk = stack.enter_context(small_disk(tmp_path / "disk", 64)) if os.geteuid() == 0 else None
        results = (disk.path if disk else tmp_path) / "results"
        if dialect == "sqlite":
            chaos: Chaos = EmbeddedChaos(new_site(results_dir=results), _SEED, disk=disk)
        else:
            servers: Servers = request.getfixturevalue("servers")
            site = new_site(results_dir=results, **servers.settings, poll_seconds=_POLL)
            chaos = ServersChaos(site, _SEED, servers, disk=disk)
        try:
            chaos.run(60 * float(_MINUTES) if _MINUTES else _SMOKE)
            chaos.settle()
            chaos.check(reference)
        except BaseException:
            print(chaos.story())
            raise
        finally:
            chaos.close()
        print(chaos.summary())
