"""The stylesheet's colours: every text can be read, and tints differ in lightness, for eyes that see no hue."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

import webui

CSS = (Path(webui.__file__).parent / "static" / "style.css").read_text()
LIGHT, DARK = (
    dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", block)) for block in re.findall(r":root \{(.*?)\}", CSS, re.S)
)
SCHEMES = pytest.mark.parametrize("colours", [LIGHT, LIGHT | DARK], ids=["light", "dark"])
TINTS = ("bg", "t1", "t2", "t3", "t4", "t5")  # t0 lets the background through


def luminance(colour: str) -> float:
    """Relative luminance, 0 to 1, as WCAG 2 defines it."""
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@SCHEMES
def test_texts_can_be_read(colours: dict[str, str]) -> None:
    for text in ("fg", "muted", "accent", "good", "warn", "bad"):
        for ground in ("bg", "panel"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for tint in TINTS:
        assert contrast(colours["fg"], colours[tint]) >= 4.5, tint


@SCHEMES
def test_tints_are_told_apart_without_their_hue(colours: dict[str, str]) -> None:
    lightness = [luminance(colours[tint]) for tint in TINTS]
    assert lightness in (sorted(lightness), sorted(lightness, reverse=True))
    for one, other in pairwise(TINTS):
        assert contrast(colours[one], colours[other]) >= 1.1, (one, other)
