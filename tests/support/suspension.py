"""Suspension of some of the tasks of a Trio run, as SIGSTOP suspends a process: time passes, and they do nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import trio
from trio._core._run import GLOBAL_RUN_CONTEXT

_of: ContextVar[Suspendable | None] = ContextVar("suspendable", default=None)


class Suspendable:
    """The tasks that are started within `inside`, and those that they start.

    A suspended task takes no step, whatever it waits for. Its deadlines expire meanwhile, so that it may find many of
    them at once when it goes on.
    """

    def __init__(self) -> None:
        self.is_suspended = False
        self._held: list[trio.lowlevel.Task] = []

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Let the tasks that are started now belong to this."""
        token = _of.set(self)
        try:
            yield
        finally:
            _of.reset(token)

    def suspend(self) -> None:
        """Let no task go on. Those that Trio runs in the same turn as the caller may take one more step."""
        self.is_suspended = True
        queue = GLOBAL_RUN_CONTEXT.runner.runq
        for task in [*queue]:
            if task.context.get(_of) is self:
                queue.remove(task)
                self._held.append(task)

    def resume(self) -> None:
        """Let all tasks go on."""
        self.is_suspended = False
        held, self._held = self._held, []
        GLOBAL_RUN_CONTEXT.runner.runq.extend(held)

    def hold(self, task: trio.lowlevel.Task) -> None:
        """Keep a task that could go on."""
        self._held.append(task)


class Suspensions(trio.abc.Instrument):
    """The instrument of a Trio run that suspends tasks."""

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        """Keep a task that can go on, if it is suspended."""
        suspendable = task.context.get(_of)
        if suspendable is not None and suspendable.is_suspended:
            last = GLOBAL_RUN_CONTEXT.runner.runq.pop()
            assert last is task, "Trio appends a task before it reports it"
            suspendable.hold(task)
