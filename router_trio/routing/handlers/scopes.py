"""Close cancel scopes that a handler has entered in its task and not left.

Everything that runs later in that task would be inside them: a deadline of the handler would cancel the route, and when
the route ends, Trio would find its stack of scopes out of order and end the router without naming the handler. An
asynchronous generator that a handler does not read to its end leaves such a scope open, if it yields within one.

Trio has no public interface to this stack, so private attributes are read, which is tested with the versions in
pyproject.toml.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import trio
from trio.lowlevel import current_root_task, current_task, reschedule, wait_task_rescheduled

from router_trio.errors import ScopeLeftOpenError, ScopesLostError

_CURE = (
    "leave it before that: enter it by a `with` statement, and put an asynchronous generator that is not read to its "
    "end into `async with contextlib.aclosing(...)`"
)

_WAITS = inspect.unwrap(wait_task_rescheduled).__code__


def scopes_of_task() -> Any:
    """Return an object that identifies the cancel scopes of the running task."""
    return current_task()._cancel_status


def left_open(before: Any) -> bool:
    """Return True if the running task is in other cancel scopes than `before`."""
    return current_task()._cancel_status is not before


async def close_left_open(before: Any) -> ScopeLeftOpenError:
    """Close the scopes that the running task has entered since `before`, innermost first; return the handler's error.

    Cancels the tasks of a nursery and waits for them. If cancelled itself, it continues. Raises `ScopesLostError` if
    the task is no longer within the scopes of `before`.
    """
    task, nurseries = current_task(), 0
    if not before.encloses(task._cancel_status):
        raise ScopesLostError("it left a cancel scope that it had not entered")
    while (status := task._cancel_status) is not before:
        scope: trio.CancelScope = status._scope
        if task.child_nurseries and task.child_nurseries[-1].cancel_scope is scope:
            nurseries += 1
            await _close_nursery(task.child_nurseries[-1])
        scope.__exit__(None, None, None)
    return ScopeLeftOpenError(f"it returned within a {'nursery' if nurseries else 'cancel scope'}; {_CURE}")


async def _close_nursery(nursery: Any) -> None:
    """Cancel the tasks of a nursery and wait for them, as leaving it does. Their errors are ignored."""
    nursery.cancel_scope.cancel()
    await nursery._nested_child_finished(None)
    # Trio closes an abandoned generator in a task of its own, which leaves the nursery as well. It must not find a
    # nursery of this task in its place, nor wait for this task's children forever.
    nursery._parent_task = SimpleNamespace(_child_nurseries=[nursery])
    for other in _leaving(nursery):
        reschedule(other)


def _leaving(nursery: Any) -> Iterator[trio.lowlevel.Task]:
    """Yield Trio's own tasks that wait for the tasks of a nursery."""
    root = current_root_task()
    for one in () if root is None else root.child_nurseries:
        for task in one.child_tasks:
            frames = [frame for frame, _ in task.iter_await_frames()]
            waits = any(frame.f_code is _WAITS for frame in frames)
            if waits and any(frame.f_locals.get("self") is nursery for frame in frames):
                yield task
