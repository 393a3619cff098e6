"""End a forked child that returns from the handler that has forked it.

One that returns, or raises, as where the program that it should execute is missing, would be a second router: it would
connect again, receive each message once more, and take the parent's epoll for its own. It ends as soon as code of the
router goes on in it.
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
_TOLD = (
    b"router-trio: a child that a handler has forked came back from the handler, and ends: call os._exit() in it when "
    b"it has done its work\n"
)


class _Owner:
    pass


@contextmanager
def ending_children_that_come_back() -> Iterator[None]:
    """End those that are forked while this is entered."""
    owner = _Owner()
    call_in_children(owner, _end_when_back)
    yield
    del owner


def _end_when_back() -> None:
    if not trio.lowlevel.in_trio_run():
        return  # in a thread, of which the loop knows nothing in the child
    frame: FrameType | None = sys._getframe(1).f_back  # where `os.fork` is called
    while frame is not None and not frame.f_code.co_filename.startswith(_OURS):
        frame = frame.f_back
    if frame is not None:
        # Traced, it calls `_end` as soon as it goes on: what is to be done after the handler is the parent's to do.
        frame.f_trace = _end
        sys.settrace(_trace_nothing_else)
    # None of ours is between the loop and a task of the handler's own, nor if the package is compiled.
    trio.lowlevel.add_instrument(_EndsAfterTheStep())


class _EndsAfterTheStep(trio.abc.Instrument):
    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        _end()


def _trace_nothing_else(frame: FrameType, event: str, argument: Any) -> None:
    pass


def _end(*_: object) -> None:
    with suppress(OSError):
        os.write(2, _TOLD)
    os._exit(1)
