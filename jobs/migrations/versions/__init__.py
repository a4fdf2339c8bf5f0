"""One module a revision, numbered; the newest number is `jobs.store.schema.REVISION`."""
