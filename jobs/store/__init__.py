"""The database: jobs, shards, attempts and workers, with every transaction that changes them."""

from jobs.store.store import Store

__all__ = ["Store"]
