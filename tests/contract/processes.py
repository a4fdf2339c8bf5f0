"""What the suite runs in processes of their own. Imports nothing heavy: every child imports this module anew."""

from __future__ import annotations

from typing import Any

from jobs.settings import Settings
from jobs.store import Store
from tests.contract.helpers import result, try_claim


def open_together(settings: Settings, start: Any, opened: Any) -> None:
    """Migrates and opens once all have come; puts the store's id, or what went wrong."""
    start.wait(60)
    try:
        Store.migrate(settings)
        store = Store.open(settings)
        opened.put(store.store_id)
        store.close()
    except Exception as error:
        opened.put(repr(error))


def claim_all(settings: Settings, worker: str, together: Any, claimed: Any) -> None:
    """Claims and commits until nothing is left, each claim at the same moment as the others'; puts their keys."""
    store = Store.open(settings)
    keys = []
    together.wait(60)
    while (mine := try_claim(store, worker)) is not None:
        keys.append(mine.key)
        assert store.commit(mine, result())
        together.wait(60)
    claimed.put(keys)
    store.close()
