"""What must hold for several processes to share the messages of a route, and what of its settings each of them gets."""

from __future__ import annotations

from collections.abc import Iterator

from router_trio.errors import Problem
from router_trio.settings.routes import LimitSettings, SourceSettings
from router_trio.settings.units import MOST_MESSAGES, Rate

_UNITS = (1, 60, 3600)
"""Seconds in which rates are written."""


def check_shared(
    path: str, source: SourceSettings | None, limit: LimitSettings | None, workers: int
) -> Iterator[Problem]:
    """Give everything about a route that so many workers can't share. What is None is not judged."""
    if workers == 1:
        return
    if source is not None and source.subject is not None and source.queue is None:
        yield Problem(
            f"{path}.from.queue",
            f"missing; each of {workers} workers would route every message of {source.subject!r}: name a queue group, "
            "which gives each message to one of them, such as queue = 'routers', or run one worker",
        )
    if source is not None and source.standby:
        yield Problem(
            f"{path}.from.standby",
            f"gives all messages to one process, so {workers} workers can't share them; remove it, or run one worker",
        )
    if limit is not None and (limit.most_at_once < workers or share_of(limit.rate, workers) is None):
        key = "burst" if limit.most_at_once < workers else "rate"
        told = f"can't be divided among {workers} workers, each of which gets a part of it"
        cure = f"give at least {workers}" if key == "burst" else "raise it"
        yield Problem(f"{path}.limit.{key}", f"{told}; {cure}, or run fewer workers")


def share_of(rate: Rate, workers: int) -> Rate | None:
    """Return what each worker gets of a rate: together never more than all of it. None if that is nothing."""
    share: Rate | None = None
    for unit in _UNITS:
        messages, rest = divmod(rate.messages * unit, rate.seconds * workers)
        if 1 <= messages <= MOST_MESSAGES:
            share = Rate(messages, unit)  # the longer the unit, the less is lost by rounding
            if not rest:
                break
    return share


def limit_of_worker(limit: LimitSettings, workers: int) -> LimitSettings:
    """Return the limit that each of so many workers keeps, so that together they keep this one."""
    share = share_of(limit.rate, workers)
    assert share is not None  # `check_shared` has refused it
    return limit.model_copy(update={"rate": share, "burst": limit.most_at_once // workers})
