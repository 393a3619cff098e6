"""The evidence of a broken promise, which no replay may bring back: what a run prints, to be analysed afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

import trio

from tests.resilience.chaos import load
from tests.resilience.chaos.variants import DURABLE, SINK, SOURCE
from tests.support.raw_jetstream import JetStream

if TYPE_CHECKING:
    from tests.resilience.chaos.scene import Scene, Surroundings

ANSWERED_WITHIN = 5.0
"""Seconds for all answers of the server, which may be what hangs."""

SAME_TIME = 0.005
"""Seconds within which the same thing that happens to several messages is one line."""


LOOKS_EVERY, LATE = 0.1, 0.2
"""Seconds between two looks at the clock, and by how many one of them has to be late to be worth a line."""


@dataclass(slots=True)
class _Entry:
    at: float
    text: str
    messages: list[int] = field(default_factory=list)


class Journal:
    """The messages and answers between routers and their links, and the faults, each with its time."""

    def __init__(self) -> None:
        self._entries: list[_Entry] = []

    def note(self, text: str, messages: Iterable[int] = ()) -> None:
        """Record what happens now, and to which messages."""
        now, numbers = trio.current_time(), [*messages]
        last = self._entries[-1] if self._entries else None
        if last is not None and numbers and last.text == text and now < last.at + SAME_TIME:
            last.messages += numbers
        else:
            self._entries.append(_Entry(now, text, numbers))

    async def note_lateness(self) -> None:
        """Record when a busy machine runs this process late, until cancelled: then servers answer late as well."""
        while True:
            due = trio.current_time() + LOOKS_EVERY
            await trio.sleep_until(due)
            late = trio.current_time() - due
            if late > LATE:
                self.note(f"the machine is {late:.2f} s late")

    def lines(self, events: Iterable[tuple[float, str]] = ()) -> Iterator[str]:
        """Yield all entries and `events` as text, in order, each with the seconds since the first one."""
        entries = [(one.at, f"{one.text} {ranges(one.messages)}".rstrip()) for one in self._entries]
        lines = sorted([*entries, *events], key=lambda line: line[0])
        for at, text in lines:
            yield f"{at - lines[0][0]:9.3f} {text}"


def ranges(numbers: Iterable[int]) -> str:
    """Return numbers in the given order as text, those that follow each other as one range: "5-7 3"."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return " ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def story(scene: Scene, *more: str) -> str:
    """Return what happened in a scene as lines in order, the state that its routers report, and the lines `more`."""
    events = [(event.at, repr(event)) for watch in scene.runs for event in watch.events]
    return "\n".join([*scene.spy.journal.lines(events), f"routers: {scene.reports()}", *more])


async def state_of_server(scene: Surroundings) -> str:
    """Return the state of the streams and of the durable as the server reports it, or the error of asking for it."""
    found: list[object] = []
    try:
        with trio.fail_after(ANSWERED_WITHIN):
            async with load.client(scene.server.url) as client:
                stream = JetStream(client)
                for name in (SINK, SOURCE)[: 2 if scene.schedule.kind == "stream" else 1]:
                    found.append((await stream.stream_info(name))["state"])
                if scene.schedule.kind == "stream":
                    found.append(await stream.consumer_info(SOURCE, DURABLE))
    except load.TROUBLE as error:
        found.append(f"{type(error).__name__}: {error}")
    return f"server: {json.dumps(found, default=str)}"


def waits() -> Iterator[str]:
    """Yield each task of a router, and the calls in which it waits."""
    for task in router_tasks():
        calls = " > ".join(f"{frame.f_code.co_qualname}:{line}" for frame, line in task.iter_await_frames())
        yield f"{task.name}: {calls}"


def router_tasks() -> list[trio.lowlevel.Task]:
    """Return the tasks of routers, by name."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    found, tasks = [], [root]
    while tasks:
        task = tasks.pop()
        tasks += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
        if task.name.startswith("router_trio."):
            found.append(task)
    return sorted(found, key=lambda task: task.name)
