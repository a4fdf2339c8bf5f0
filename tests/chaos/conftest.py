"""The servers and sites of the outages' tests, for faults of all kinds at once."""

from tests.faults.outages.conftest import (  # noqa: F401
    database,
    new_database,
    new_site,
    proxy,
    reference,
    server,
)
