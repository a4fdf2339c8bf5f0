"""The watcher itself: whatever is wrong with a page is heard, and nothing else."""

from __future__ import annotations

import pytest
from playwright.sync_api import Route

from tests.browser.conftest import Arrive

POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'"
SCRIPTS = {
    "says.js": "console.log('hello'); document.querySelector('p').style.color = 'red'",
    "throws.js": "throw new Error('thrown')",
    "rejects.js": "Promise.reject(new Error('rejected'))",
    "warns.js": "console.warn('warned')",
    "fetches.js": "fetch('/missing')",
    "evaluates.js": "try { eval('1') } catch {}",
}


def answer(route: Route) -> None:
    """A site without a server: the scripts above, and nothing else."""
    script = SCRIPTS.get(route.request.url.rpartition("/")[2])
    route.fulfill(status=200 if script else 404, body=script, content_type="text/javascript")


@pytest.mark.parametrize(
    ("body", "heard"),
    [
        ("<script src='/says.js'></script>", ""),
        ("<script>document.title = 'ran'</script>", "script-src-elem forbids inline"),
        ("<p style='color: red'>", "style-src-attr forbids inline"),
        ("<p onclick='go()'>", "script-src-attr forbids inline"),
        ("<script src='https://cdn.example/htmx.js'></script>", "script-src-elem forbids https://cdn.example/htmx.js"),
        ("<script src='/evaluates.js'></script>", "script-src forbids eval"),
        ("<img src='/missing.png' alt=''>", "missing.png: Failed to load"),
        ("<script src='/fetches.js'></script>", "missing: Failed to load"),
        ("<script src='/throws.js'></script>", "uncaught: thrown"),
        ("<script src='/rejects.js'></script>", "uncaught: rejected"),
        ("<script src='/warns.js'></script>", "warned"),
    ],
)
def test_what_is_heard(body: str, heard: str, arrive: Arrive, complaints: list[str]) -> None:
    visitor = arrive("http://page.test")
    visitor.context.route("**/*", answer)
    visitor.context.route(
        "http://page.test/",
        lambda route: route.fulfill(
            body=f"<!doctype html><p>a page</p>{body}",
            content_type="text/html",
            headers={"Content-Security-Policy": POLICY},
        ),
    )
    visitor.open("/").wait_for_load_state("networkidle")
    assert heard in "\n".join(complaints)
    assert bool(complaints) == bool(heard)
    complaints.clear()
