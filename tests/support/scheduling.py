"""The order in which Trio runs tasks that are runnable at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from trio._core import _run


@contextmanager
def deterministic(seed: str) -> Iterator[None]:
    """Run tasks that are runnable at the same time in an order that the seed determines."""
    before = _run._ALLOW_DETERMINISTIC_SCHEDULING
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    _run._r.seed(seed)
    try:
        yield
    finally:
        _run._ALLOW_DETERMINISTIC_SCHEDULING = before  # type: ignore[misc]
