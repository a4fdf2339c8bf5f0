"""Chromium for the tests: found on this machine, and watched for all that its console complains of."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import Any

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page

from tests.browser.looks import DESKTOP

# The console itself keeps quiet of an eval whose refusal a script catches.
_TELL = """addEventListener("securitypolicyviolation", event =>
  console.error(`Content Security Policy: ${event.effectiveDirective} forbids ${event.blockedURI} ${event.sample}`))"""


def find() -> str | None:
    """The program: SEQPROC_TEST_CHROMIUM, or the first of the usual names on the path."""
    names = (os.environ.get("SEQPROC_TEST_CHROMIUM", ""), "chromium-headless-shell", "chromium", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


@dataclass
class Visitor:
    """One person's browser: its windows share their cookies, and their complaints go on one list."""

    context: BrowserContext
    complaints: list[str]

    @classmethod
    def arrive(cls, browser: Browser, site: str, complaints: list[str], **options: Any) -> Visitor:
        """Somebody who is about to open pages of `site`; `options` are those of Browser.new_context."""
        options = {"viewport": DESKTOP, "reduced_motion": "reduce"} | options
        visitor = cls(browser.new_context(base_url=site, **options), complaints)
        visitor.context.set_default_timeout(15_000)
        visitor.context.add_init_script(_TELL)
        visitor.context.on("console", visitor._hear)
        visitor.context.on("weberror", lambda error: complaints.append(f"uncaught: {error.error}"))
        return visitor

    def open(self, path: str) -> Page:
        """A new window on a path of the site."""
        page = self.context.new_page()
        page.goto(path)
        return page

    def _hear(self, message: ConsoleMessage) -> None:
        # An answer of 400 and more is an error on the console, too.
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type} at {message.location['url']}: {message.text}")
