"""A job that is fed, in a browser: what is known so far, and from its seal on how much of all."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.browser.conftest import Arrive
from tests.browser.site import Site
from tests.cli.conftest import do_shard, row

SOON = 30_000  # milliseconds


def test_so_far_until_it_is_sealed(site: Site, arrive: Arrive) -> None:
    feed = site.client.feed(model="tiny-arithmetic", G=2, seed=1, shard_size=2, name="fed")
    job = feed.job
    head, listed = arrive(site.url).open(f"/jobs/{job.id}"), arrive(site.url).open("/jobs")
    expect(head.locator("#live")).to_contain_text("0 of 0 sequences so far, more may come")
    for prompt in ("1+1=", "2+2=", "3+3=", "4+4="):
        feed.add(prompt)
    site.until(lambda: job.refresh().num_prompts == 4)
    do_shard(site.client, job.id, [row(p, g) for p in range(2) for g in range(2)])
    expect(head.locator("#live")).to_contain_text("4 of 8 sequences so far, more may come", timeout=SOON)
    expect(listed.locator("#live")).to_contain_text("4 / 8 so far", timeout=SOON)
    for page in (head, listed):
        bar = page.get_by_role("progressbar")
        expect(bar).to_have_accessible_name("Sequences done of job fed, to which more come")
        assert bar.get_attribute("value") is None, "nobody knows how much is left"
        assert "%" not in page.locator("#live").inner_text() and " left" not in page.locator("#live").inner_text()
    feed.end()
    expect(head.locator("#live")).to_contain_text("4 of 8 sequences, 50 %", timeout=SOON)
    expect(head.get_by_role("progressbar")).to_have_attribute("value", "4")
    expect(listed.locator("#live")).not_to_contain_text("so far", timeout=SOON)
