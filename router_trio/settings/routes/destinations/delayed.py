"""A delayed JetStream publish: the stream stores the copy as a schedule, and publishes it itself when it is due."""

from __future__ import annotations

import re
from collections.abc import Iterator

from router_trio.errors import Problem
from router_trio.settings.patterns import check_own_subject
from router_trio.settings.routes.destinations.jetstream import JetStream
from router_trio.settings.routes.destinations.keys import DestinationKeys
from router_trio.settings.routes.destinations.kind import DestinationKind
from router_trio.settings.units import parse_duration

_LIKE_A_DURATION = re.compile(r"[0-9][0-9a-z.]*")


def constant_delay(delay: str) -> float | None:
    """Return the seconds of a `delay` that is a duration, None for an expression. Raises ValueError for a bad one."""
    return parse_duration(delay) if _LIKE_A_DURATION.fullmatch(delay) else None


class _Delayed(JetStream):
    described = "JetStream, stored as a schedule that the stream publishes later"

    def shown(self, to: DestinationKeys) -> dict[str, str | bool]:
        assert to.delay is not None
        return {**super().shown(to), "delay": to.delay, "schedule_prefix": to.schedule_prefix or ""}

    def stored_under(self, to: DestinationKeys, pattern: str) -> str:
        return f"{to.schedule_prefix}.*"

    def other_templates(self, to: DestinationKeys) -> tuple[str, ...]:
        # The last token is a digest; this one stands for all.
        prefix = to.schedule_prefix
        if prefix is None or any(check_own_subject("schedule_prefix", prefix)):
            return ()
        return (f"{prefix}.digest",)

    def check(self, path: str, to: DestinationKeys) -> Iterator[Problem]:
        yield from super().check(path, to)
        for index, name in enumerate(to.headers.keep):
            text = f"{name!r} would steer how the schedule is stored, and not the delayed copy; remove it"
            yield Problem(f"{path}.headers.keep[{index}]", f"{text}; for the time to live of the copy there is `ttl`")
        prefix = f"{path}.schedule_prefix"
        if to.schedule_prefix is None:
            text = "missing; with `delay`, copies are stored below this subject until they are due, such as 'later'"
            yield Problem(prefix, text)
            return
        yield from check_own_subject(prefix, to.schedule_prefix)
        if f"{to.subject}.".startswith(f"{to.schedule_prefix}."):
            text = f"{to.schedule_prefix!r} is a part of the destination {to.subject!r}, whose readers would receive "
            yield Problem(prefix, f"{text}the schedules as well; choose another name")


DELAYED: DestinationKind = _Delayed()
"""The kind of a destination with `delay`."""
