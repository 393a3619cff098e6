"""Ends a forked child that returns from the handler that forked it.

A child that returns, or raises, for instance because the program that it should execute is missing, would be a second
router: it would connect again, receive each message once more, and use the parent's epoll. It is ended as soon as it
continues in code of the router.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import trio

from router_trio.forked import call_in_children

_OURS = str(Path(__file__).parents[1]) + os.sep
_MESSAGE = (
    b"router-trio: a child that a handler has forked came back from the handler, and ends: call os._exit() in it when "
    b"it has done its work\n"
)


class _Owner:
    pass


@contextmanager
def ending_children_that_return() -> Iterator[None]:
    """End children that are forked while this context is entered."""
    owner = _Owner()
    call_in_children(owner, _end_on_return)
    yield
    del owner


def _end_on_return() -> None:
    if not trio.lowlevel.in_trio_run():
        return  # forked in a thread, which does not exist for the event loop in the child
    frame: FrameType | None = sys._getframe(1).f_back  # where `os.fork` is called
    while frame is not None and not frame.f_code.co_filename.startswith(_OURS):
        frame = frame.f_back
    if frame is not None:
        # Tracing calls `_end` as soon as the frame continues: what follows the handler is the parent's job.
        frame.f_trace = _end
        sys.settrace(_trace_nothing_else)
    # There is no frame of ours between the loop and a task of the handler's own, nor if the package is compiled.
    trio.lowlevel.add_instrument(_EndsAfterTheStep())


class _EndsAfterTheStep(trio.abc.Instrument):
    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        _end()


def _trace_nothing_else(frame: FrameType, event: str, argument: Any) -> None:
    pass


def _end(*_: object) -> None:
    with suppress(OSError):
        os.write(2, _MESSAGE)
    os._exit(1)
