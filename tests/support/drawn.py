"""How many examples tests draw."""

from __future__ import annotations

from hypothesis import settings

DEFAULT = 100


def examples(count: int) -> int:
    """Return `count` in proportion to what the profile draws instead of 100: fewer in `make quick`."""
    return max(1, count * settings().max_examples // DEFAULT)
