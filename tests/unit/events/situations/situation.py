"""Situations that make production code emit events, for the file with their sentences."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

import trio
from trio.testing import MockClock

from router_trio.events import Event

Run = Callable[[], Awaitable[Iterable[Event]]]

_FOLDER = re.compile(r"[^ (]*/(?=tests/unit/events/)")
_DRAWN = re.compile(
    r"(?<=\.py:)\d+|(?<=127\.0\.0\.1:)\d+|(?<=pid )\d+|(?<=blocked for )[\d.]+|(?<=no process leads partition )\d+"
    r"|(?<=of stream ORDERS, after )[\d.]+"
)

SITUATIONS: dict[str, Situation] = {}
"""All situations by their title."""


@dataclass(frozen=True, slots=True)
class Situation:
    """A situation, and the kinds of events that it is about, in the order in which they are shown."""

    run: Run
    kinds: tuple[type[Event], ...]
    real_time: bool

    def lines(self) -> list[str]:
        """Return code, level and sentence of each event, as the code that emits it has filled it."""
        clock = None if self.real_time else MockClock(autojump_threshold=0)
        found = trio.run(self._found, clock=clock)
        lines = [
            f"{one.code} {one.severity.name} {_anywhere(one.sentence())}"
            for kind in self.kinds
            for one in found
            if type(one) is kind
        ]
        return list(dict.fromkeys(lines))

    async def _found(self) -> list[Event]:
        with trio.fail_after(30.0 if self.real_time else 10_000.0):
            return [*await self.run()]


def _anywhere(text: str) -> str:
    """Return a text without what differs from one run to another: folders, lines, ports, processes, real seconds,
    which partition another member should lead, and how long a process waited for one.
    """
    return _DRAWN.sub("1", _FOLDER.sub("", text))


def about(*kinds: type[Event], real_time: bool = False) -> Callable[[Run], Run]:
    """Register a situation about these kinds of events. Its title is the first line of its docstring."""

    def register(run: Run) -> Run:
        title = (inspect.getdoc(run) or "").partition("\n")[0]
        assert title
        assert title not in SITUATIONS, title
        SITUATIONS[title] = Situation(run, kinds, real_time)
        return run

    return register
