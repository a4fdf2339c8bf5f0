"""Access to the jobs of a server, over its HTTP API."""

from __future__ import annotations

from jobs.remote.access import Remote

__all__ = ["Remote"]
