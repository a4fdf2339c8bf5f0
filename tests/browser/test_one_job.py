"""One job in a browser: submitted by form, watched, steered, its files fetched."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Arrive
from tests.browser.gallery import Gallery, submit
from tests.browser.site import Site
from tests.cli.conftest import do_shard, row

SOON = 60_000  # milliseconds: a worker loads the model first


def state(page: Page, word: str) -> None:
    """Wait until the head of the job's page says this state."""
    expect(page.locator("#live > .head")).to_contain_text(word, timeout=SOON)


def steer(page: Page, verb: str) -> None:
    """Ask for it, and answer the question."""
    page.get_by_text(f"{verb}…").click()
    page.get_by_role("button", name=f"{verb} this job").click()


def test_submitted_by_form_and_watched_to_its_end(site: Site, arrive: Arrive) -> None:
    site.start_worker()
    page = arrive(site.url).open("/submit")
    page.get_by_label("Model").fill("tiny-arithmetic")
    page.get_by_label("Typed, one a line").fill("1+1=\n2+2=\n3+3=")
    page.get_by_label("G", exact=True).fill("4")
    page.get_by_role("button", name="Submit").click()
    page.wait_for_url(re.compile("/jobs/[0-9a-f]+$"))
    page.evaluate("window.stayed = true")
    state(page, "succeeded")
    expect(page.get_by_role("progressbar")).to_have_attribute("value", "12")
    assert page.evaluate("window.stayed"), "the page was not loaded again"
    [job] = site.client.jobs()
    assert (job.state, job.record.num_prompts, job.record.done_sequences) == ("succeeded", 3, 12)
    assert page.url.endswith(job.id)


def test_a_wrong_form_says_so_and_keeps_what_was_typed(site: Site, arrive: Arrive, complaints: list[str]) -> None:
    page = arrive(site.url).open("/submit")
    model, prompts = page.get_by_label("Model"), page.get_by_label("Typed, one a line")
    model.fill("no model at all")
    prompts.fill("1+1=\n2+2=")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("alert")).to_contain_text("is neither an existing folder nor a hub id like org/name")
    expect(model).to_have_attribute("aria-invalid", "true")
    expect(model).to_have_accessible_description(re.compile("is neither an existing folder nor a hub id"))
    expect(model).to_have_value("no model at all")
    expect(prompts).to_have_value("1+1=\n2+2=")
    assert site.client.jobs() == []
    assert "422" in complaints.pop()


def test_a_running_job_is_cancelled(site: Site, arrive: Arrive) -> None:
    site.start_worker()
    job = submit(site, ["1+1="] * 10_000, G=8, shard_size=64, ignore_eos=True, stop_strings=())
    page = arrive(site.url).open(f"/jobs/{job.id}")
    state(page, "running")
    steer(page, "Cancel")
    state(page, "cancelled")
    assert job.refresh().state == "cancelled"
    assert job.record.done_sequences < job.record.num_sequences


def test_a_question_stays_open_while_the_page_polls(site: Site, arrive: Arrive) -> None:
    job = submit(site, [f"{n}+1=" for n in range(4)])
    page = arrive(site.url).open(f"/jobs/{job.id}")
    page.get_by_text("Cancel…").click()
    do_shard(site.client, job.id, [row(p, g) for p in (0, 1) for g in (0, 1)])
    state(page, "running")
    expect(page.get_by_role("button", name="Cancel this job")).to_be_visible()


def test_without_javascript_a_job_is_cancelled_retried_and_deleted(site: Site, arrive: Arrive) -> None:
    job = submit(site, ["1+1="], name="by hand")
    page = arrive(site.url, java_script_enabled=False).open(f"/jobs/{job.id}")
    for verb, then in (("Cancel", "cancelled"), ("Retry", "queued"), ("Cancel", "cancelled")):
        steer(page, verb)
        state(page, then)
        assert job.state == then
    steer(page, "Delete")
    page.wait_for_url("**/jobs")
    assert site.client.jobs() == []


def test_a_shard_is_downloaded_and_read(gallery: Gallery, arrive: Arrive, tmp_path: Path) -> None:
    job = gallery.site.client.get(gallery.jobs["finished"])
    page = arrive(gallery.site.url).open(f"/jobs/{job.id}/files")
    for shard, file in enumerate(job.results.files()):
        with page.expect_download() as download:
            page.get_by_role("link", name=f"Parquet of shard {shard}", exact=True).click()
        downloaded = tmp_path / download.value.suggested_filename
        download.value.save_as(downloaded)
        assert pq.read_table(downloaded).equals(pq.read_table(file.path))


@pytest.mark.parametrize("what", ["as-command", "as-python"])
def test_the_same_job_again_is_copied(what: str, gallery: Gallery, arrive: Arrive) -> None:
    visitor = arrive(gallery.site.url)
    visitor.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = visitor.open(f"/jobs/{gallery.jobs['finished']}")
    page.locator(f"#{what} ~ button").click()
    expect(page.locator(f"#{what} ~ button")).to_have_text("Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.locator(f"#{what}").inner_text()
    assert "42" in copied and "arithmetic_r1_template" in copied
