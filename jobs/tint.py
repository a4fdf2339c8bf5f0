"""How surprising a token was, or how open the choice, in six steps of nats: one scale for the terminal and the page."""

from __future__ import annotations

from bisect import bisect_right

BOUNDS = (0.1, 0.5, 1.0, 2.0, 4.0)  # nats: of −log p, or of an entropy
NAMES = (f"< {BOUNDS[0]:g}", *(f"≥ {bound:g}" for bound in BOUNDS))
"""What each step says, from the least."""


def tint_of(nats: float) -> int:
    """The step, 0 to 5, of −log p of a token, or of the entropy of the distribution it was drawn from."""
    return bisect_right(BOUNDS, nats)
