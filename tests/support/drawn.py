"""The number of examples that property tests draw."""

from __future__ import annotations

from hypothesis import settings

DEFAULT = 100


def examples(count: int) -> int:
    """Return `count` scaled by the profile, for which 100 is the standard: fewer in `make quick`."""
    return max(1, count * settings().max_examples // DEFAULT)
