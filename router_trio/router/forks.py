"""Ends a forked child that returns from the handler that forked it.

A child that returns, or raises, for instance because the program that it should execute is missing, would be a second
router: it would connect again, receive each message once more, and use the parent's epoll. It is ended as soon as it
continues in code of the router.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import trio

from router_trio.forked import call_in_children

_OURS = str(Path(__file__).parents[1]) + os.sep
_LOOP = f"{os.sep}asyncio_thread.py"
_HANDLES = f"{os.sep}asyncio{os.sep}events.py"
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
        # Forked in a thread, which does not exist for the event loop in the child. That of asyncio has a loop of its
        # own, which would go on there.
        _end_on_asyncio([*_frames(sys._getframe(1).f_back)])
        return
    frame: FrameType | None = sys._getframe(1).f_back  # where `os.fork` is called
    while frame is not None and not frame.f_code.co_filename.startswith(_OURS):
        frame = frame.f_back
    if frame is not None:
        # Tracing calls `_end` as soon as the frame continues: what follows the handler is the parent's job.
        frame.f_trace = _end
        sys.settrace(_trace_nothing_else)
    # There is no frame of ours between the loop and a task of the handler's own, nor if the package is compiled.
    trio.lowlevel.add_instrument(_EndsAfterTheStep())


def _end_on_asyncio(frames: Sequence[FrameType]) -> None:
    """End the child as soon as code continues that is not a handler's, if these are frames of their asyncio loop.

    `frames` are those of the thread, the innermost first, where `os.fork` is called.
    """
    outermost = next((frame for frame in frames if frame.f_code.co_filename.endswith(_LOOP)), None)
    if outermost is None:
        return
    for frame in frames:
        file = frame.f_code.co_filename
        if file.startswith(_OURS) or (file.endswith(_HANDLES) and frame.f_code.co_name == "_run"):
            frame.f_trace = _end
        elif frame.f_back is outermost:
            # A loop that is not written in Python has no frames between that one and those of a task. It must not
            # look at its epoll again: that is the parent's too, whose wake-up it would take.
            frame.f_trace = _end_when_left
    sys.settrace(_trace_nothing_else)
    outermost.f_locals["loop"].call_soon(_end)  # if the task has no frames, since it is compiled


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


class _EndsAfterTheStep(trio.abc.Instrument):
    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        _end()


def _end_when_left(frame: FrameType, event: str, argument: Any) -> Any:
    """End the child when a frame returns, raises or is suspended."""
    if event == "return":
        _end()
    return _end_when_left


def _trace_nothing_else(frame: FrameType, event: str, argument: Any) -> None:
    pass


def _end(*_: object) -> None:
    with suppress(OSError):
        os.write(2, _MESSAGE)
    os._exit(1)
