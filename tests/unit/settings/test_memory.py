"""The memory that sections take: a configuration may have thousands."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

from router_trio.settings.sections import Section

MANY = 200

PART = 0.6
"""Largest part of the memory of a plain copy: a third with Python 3.11 and 3.12, 0.53 with 3.13. Without a shared table
of names it is 0.69."""


class SomeSection(Section, init=False):
    """A section with as many keys as a route."""

    k01: int = 0
    k02: int = 0
    k03: int = 0
    k04: int = 0
    k05: int = 0
    k06: int = 0
    k07: int = 0
    k08: int = 0
    k09: int = 0
    k10: int = 0
    k11: int = 0
    k12: int = 0
    k13: int = 0
    k14: int = 0
    k15: int = 0
    k16: int = 0
    k17: int = 0


def taken(make: Callable[[SomeSection], Any], sections: list[SomeSection]) -> int:
    """Return the bytes of what `make` makes of the sections."""
    tracemalloc.start(1)
    try:
        made = [make(one) for one in sections]
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
        del made


def test_compact_sections_take_much_less_memory_than_copies() -> None:
    # All of them are read before the first compact one is made, as those of a file are.
    sections = [SomeSection.model_validate({"k01": number}) for number in range(MANY)]
    copies, compact = taken(SomeSection.model_copy, sections), taken(SomeSection.compact, sections)
    assert compact < PART * copies, f"{compact / MANY:.0f} bytes, {copies / MANY:.0f} of a copy"
    assert [vars(one.compact()) for one in sections] == [vars(one) for one in sections]
