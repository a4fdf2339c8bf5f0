"""Ends of jobs that are to be told, and how telling them went. The rows are written where a job ends (`LockedJob`)."""

from __future__ import annotations

from sqlalchemy import ColumnElement, func, select, update

from jobs.records import Webhook
from jobs.store.part import Part, through
from jobs.store.rows import WEBHOOK_COLUMNS, webhook_record
from jobs.store.schema import now, webhooks


class Webhooks(Part):
    def claim_webhook(self, *, hold: float) -> Webhook | None:
        """Take the event that is due for longest, and keep it from others for `hold` seconds; None if none is due."""
        due = select(*WEBHOOK_COLUMNS).where(webhooks.c.next_try_at <= now())
        due = through(due.order_by(webhooks.c.next_try_at).limit(1), webhooks, "webhooks_due")
        with self.db.reading() as connection:  # an idle look takes no write lock
            if connection.execute(due).one_or_none() is None:
                return None
        with self.db.transaction() as connection:
            row = connection.execute(due.with_for_update(skip_locked=True)).one_or_none()
            if row is None:
                return None
            webhook = webhook_record(row)
            held = {"tries": webhook.tries + 1, "next_try_at": now() + hold}
            connection.execute(update(webhooks).where(*_event(webhook)).values(held))
            return webhook_record(connection.execute(select(*WEBHOOK_COLUMNS).where(*_event(webhook))).one())

    def webhook_delivered(self, webhook: Webhook) -> None:
        """It was taken; whoever tries as well need not go on."""
        told = {"delivered_at": now(), "next_try_at": None, "error": None}
        with self.db.transaction() as connection:
            connection.execute(update(webhooks).where(*_event(webhook)).values(told))

    def webhook_failed(self, webhook: Webhook, error: str, pause: float | None) -> None:
        """This try came to nothing: again after `pause` seconds, or given up. Says nothing over a later try."""
        again = None if pause is None else now() + pause
        with self.db.transaction() as connection:
            connection.execute(update(webhooks).where(*_this(webhook)).values(error=error, next_try_at=again))

    def webhooks_waiting(self) -> int:
        """How many events are still to be told."""
        query = select(func.count()).select_from(webhooks).where(webhooks.c.next_try_at.is_not(None))
        with self.db.reading() as connection:
            return connection.scalar(through(query, webhooks, "webhooks_due")) or 0

    def webhooks_of(self, job_id: str) -> list[Webhook]:
        """What was told of a job's ends, and is to be told, oldest first."""
        query = select(*WEBHOOK_COLUMNS).where(webhooks.c.job_id == job_id).order_by(webhooks.c.revision)
        with self.db.reading() as connection:
            return [webhook_record(row) for row in connection.execute(query)]


def _event(webhook: Webhook) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return webhooks.c.job_id == webhook.job_id, webhooks.c.revision == webhook.revision


def _this(webhook: Webhook) -> tuple[ColumnElement[bool], ...]:
    """The fence of one try."""
    return *_event(webhook), webhooks.c.tries == webhook.tries, webhooks.c.delivered_at.is_(None)
