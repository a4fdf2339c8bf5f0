"""How a page looks: its pictures, light and dark, on a desk and on a phone, and what is wrong with it for some eyes."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

SCREENSHOTS = Path(__file__).parent / "screenshots"
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}

# A page that nobody sees does not poll: no look differs, and htmx meets no style that axe tries out on an element.
_STILL = """Object.defineProperty(document, "hidden", {value: true})
document.dispatchEvent(new Event("visibilitychange"))"""
_SIDEWAYS = """[...document.querySelectorAll(".scroll")]
    .filter(region => region.scrollWidth > region.clientWidth).map(region => region.ariaLabel)"""


def look_at(page: Page, name: str) -> list[str]:
    """Take the page's pictures; returns what axe finds in each look, and what is wider than there is room for."""
    found = []
    page.evaluate(_STILL)
    page.wait_for_load_state("networkidle")
    for scheme, (device, size) in product(("light", "dark"), (("desktop", DESKTOP), ("phone", PHONE))):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size(size)
        width, height = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
        problems = violations(page)
        if width > size["width"]:
            problems.append(f"is {width} px wide")
        problems += [f"{label} scrolls sideways" for label in page.evaluate(_SIDEWAYS)]
        found += [f"{scheme}, {device}: {problem}" for problem in problems]
        # As high as the page: what sticks to the window's edge would else stand in the middle of the picture.
        page.set_viewport_size(size | {"height": max(height, size["height"])})
        page.screenshot(path=SCREENSHOTS / f"{name}-{device}-{scheme}.png")
    return found


def violations(page: Page) -> list[str]:
    """What axe has to say against the page: a line a rule, with the first element that breaks it."""
    return [f"{rule['id']}: {rule['help']}: {first(rule)}" for rule in Axe().run(page).response["violations"]]


def first(rule: dict[str, Any]) -> str:
    node = rule["nodes"][0]
    return f"{node['html'][:300]} ({node['failureSummary']})"
