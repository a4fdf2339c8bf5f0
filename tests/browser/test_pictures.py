"""Sequences as pictures: the figures of a token by mouse and by keyboard, links, and what grows while a job runs."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import Arrive
from tests.browser.gallery import Gallery, submit
from tests.browser.looks import SCREENSHOTS
from tests.browser.site import Site
from tests.cli.conftest import do_shard, row

PROMPT, SAMPLE, POSITION = 3, 1, 5
NAMES = {
    "sampling log q": "sampling_logprobs",
    "sampling entropy": "sampling_entropies",
    "log p": "logprobs",
    "entropy": "entropies",
}


def tokens(page: Page) -> Locator:
    """The tokens of the response SAMPLE: each holds its figures."""
    return page.locator(f"#sample-{SAMPLE} :has(> [role=tooltip])")


def go(page: Page, key: str) -> None:
    """By keyboard from the response's heading to its token POSITION, the first by Tab and the others by this key."""
    page.locator(f"#sample-{SAMPLE}").get_by_role("heading").get_by_role("link").focus()
    page.keyboard.press("Tab")
    for _ in range(POSITION):
        page.keyboard.press(key)
    expect(tokens(page).nth(POSITION)).to_be_focused()


@pytest.mark.parametrize("way", ["mouse", "keyboard", "keyboard without JavaScript"])
def test_a_token_tells_its_figures(way: str, gallery: Gallery, arrive: Arrive) -> None:
    job = gallery.site.client.get(gallery.jobs["finished"])
    measured = next(row for row in job.rows() if (row["prompt_index"], row["sample_index"]) == (PROMPT, SAMPLE))
    scripts = "without" not in way
    page = arrive(gallery.site.url, java_script_enabled=scripts).open(f"/jobs/{job.id}/sequences?prompt={PROMPT}")
    expect(tokens(page)).to_have_count(len(measured["response_ids"]))
    figures = tokens(page).nth(POSITION).get_by_role("tooltip", include_hidden=True)
    expect(figures).to_be_hidden()
    if way == "mouse":
        tokens(page).nth(POSITION).hover()
    else:
        go(page, "ArrowRight" if scripts else "Tab")
    expect(figures).to_be_in_viewport()
    page.screenshot(path=SCREENSHOTS / f"token-by-{way.replace(' ', '-')}.png")
    text = figures.inner_text()
    start, end = measured["token_ends"][POSITION - 1 : POSITION + 1]
    assert (
        f'"{measured["response"][start:end]}" · id {measured["response_ids"][POSITION]} · position {POSITION} ·' in text
    )
    shown = dict(re.findall(rf"({'|'.join(NAMES)}) (\S+)", text))
    expected = {name: measured[column][POSITION] for name, column in NAMES.items()}
    assert {name: float(value.replace("−", "-")) for name, value in shown.items()} == pytest.approx(expected, abs=6e-4)


def test_a_link_shows_exactly_this_view(gallery: Gallery, arrive: Arrive) -> None:
    page = arrive(gallery.site.url).open(f"/jobs/{gallery.jobs['finished']}/sequences")
    page.get_by_role("spinbutton", name="Prompt").fill(str(PROMPT))
    page.get_by_label("Tint by").select_option("entropy")
    page.get_by_label("Sort by").select_option("length")
    page.get_by_label("Order").select_option("falling")
    page.get_by_role("button", name="Show").click()
    page.wait_for_url("**prompt=3**")
    lengths = [int(re.search(r"([\d,]+) token", text)[1]) for text in page.get_by_role("article").all_inner_texts()]
    assert len(lengths) == 8 and lengths == sorted(lengths, reverse=True)
    colleague = arrive(gallery.site.url).open(page.url)
    assert colleague.locator("#main").inner_html() == page.locator("#main").inner_html()
    page.get_by_role("link", name="Next").first.click()
    page.wait_for_url("**prompt=4**")
    assert "by=entropy" in page.url and "sort=tokens" in page.url
    page.go_back()
    assert page.url == colleague.url


def test_hostile_text_stays_text(gallery: Gallery, arrive: Arrive) -> None:
    page = arrive(gallery.site.url).open(f"/jobs/{gallery.jobs['flawed']}/sequences?prompt=0")
    main = page.locator("#main")
    expect(main).to_contain_text("<script>alert(1)</script><img src=x onerror=alert(2)>")
    expect(main).to_contain_text("{{ 7*7 }}")
    assert main.locator("img, script").count() == 0
    assert not set("\u202e\u202c\x1b") & set(page.content())


def test_pictures_grow_with_the_job(site: Site, arrive: Arrive) -> None:
    job = submit(site, [f"{n}+1=" for n in range(4)])
    visitor = arrive(site.url)
    sequences, charts = visitor.open(f"/jobs/{job.id}/sequences?prompt=2"), visitor.open(f"/jobs/{job.id}/charts")
    assert sequences.get_by_role("article").count() == charts.get_by_role("figure").count() == 0
    do_shard(site.client, job.id, [row(p, g) for p in (0, 1) for g in (0, 1)])
    expect(charts.get_by_role("figure").first).to_be_visible(timeout=15_000)
    expect(charts.locator("#main")).to_contain_text("the 1 of 2 shards that are done")
    assert sequences.get_by_role("article").count() == 0
    do_shard(site.client, job.id, [row(p, g) for p in (2, 3) for g in (0, 1)])
    expect(sequences.get_by_role("article")).to_have_count(2, timeout=15_000)
    expect(charts.locator("#main")).to_contain_text("all 2 shards", timeout=15_000)
