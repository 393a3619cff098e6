"""Describes what a handler raised, and where, for a log line: without any quotes of a payload."""

from __future__ import annotations

import os
import site
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from traceback import TracebackException
from types import CodeType, TracebackType
from typing import Any

import trio

from router_trio.events import MessageFailed
from router_trio.protocol.framing import text

MOST_LINES = 40
"""Lines of a traceback that are kept, from its end."""

MOST_WRAPPERS = 100
"""Wrappers around a handler that are unwrapped to find its code."""

_NOWHERE: Mapping[str, Any] = {}
_PACKAGE = Path(__file__).parents[2]
OURS = (str(_PACKAGE), f"{_PACKAGE.name}{os.sep}")
"""Beginnings of the file names of this package. In compiled modules they are relative to the folder of the build."""
_LIBRARIES = tuple(
    {*(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")), *site.getsitepackages()}
)
"""Folders of libraries. Debian has its own folder for packages, which only `site` knows."""


class Raised:
    """An error that a handler raised, or that the router raised because of what a handler did."""

    def __init__(self, error: BaseException, handler: object = None) -> None:
        self._error = error
        self._handler = handler
        self.kind: str = type(error).__qualname__

    @property
    def place(self) -> str | None:
        """File, line and function of the innermost frame of the handler, and of its callee if that raised.

        If the handler has returned, the place where it begins.
        """
        return self._place_of_error() or place_of(self._handler)

    def _place_of_error(self) -> str | None:
        frames = list(_frames(_leaf(self._error).__traceback__))
        start = _start([code.co_filename for code, _ in frames])
        return None if start is None else place_in(frames, start)

    def traceback(self) -> tuple[str, ...]:
        """Return the last lines of the traceback, without the router's own frames before those of the handler.

        They contain the text of the error, which may quote the payload.
        """
        try:
            shown = TracebackException.from_exception(self._error, compact=True)
            for one in _parts(shown):
                # A cause may begin in a library that called the handler: only what the router added is of no use.
                if one.stack and one.stack[0].filename.startswith(OURS):
                    del one.stack[: _start([frame.filename for frame in one.stack]) or 0]
            lines = "".join(shown.format()).splitlines()
        except Exception:  # foreign code may raise when it formats its error
            return ()
        return tuple(lines[-MOST_LINES:])


def code_of(handler: object) -> CodeType | None:
    """Return the code of a handler, inside its wrappers; None if it has none."""
    try:
        for _ in range(MOST_WRAPPERS):
            inner = handler.func if isinstance(handler, partial) else getattr(handler, "__wrapped__", None)
            inner = inner or getattr(getattr(handler, "__self__", None), "__wrapped__", None)
            if inner is None:
                break
            handler = inner
        found = getattr(handler, "__code__", None)
        if found is None:
            found = getattr(type(handler).__call__, "__code__", None) if callable(handler) else None
    except Exception:  # an object of foreign code may raise when it is inspected
        return None
    return found if isinstance(found, CodeType) else None


def place_of(handler: object) -> str | None:
    """Return file, line and function of the beginning of a handler; None if that is unknown."""
    code = code_of(handler)
    return None if code is None else _described((code, code.co_firstlineno))


def place_in(frames: Sequence[tuple[CodeType, int]], start: int) -> str:
    """Return file, line and function of the innermost frame of a handler, which begins with the frame at `start`.

    If a callee is innermost, its place is added. The outermost frame comes first.
    """
    folder = str(Path(frames[start][0].co_filename).parent)
    inside = [frame for frame in frames[start:] if _is_of(frame[0], folder)] or [frames[start]]
    place = _described(inside[-1])
    return place if inside[-1] == frames[-1] else f"{place}, by {_described(frames[-1])}"


def message_failed(
    route: str,
    reason: str,
    detail: str,
    *,
    subject: bytes | None = None,
    origin: Mapping[str, Any] = _NOWHERE,
    raised: Raised | None = None,
    is_public: bool = False,
    full: bool = False,
    count: int = 1,
) -> MessageFailed:
    """Return the event for a message that failed in a route: see `Routing.emit_failure`. `full` adds the traceback."""
    return MessageFailed(
        at=trio.current_time(),
        route=route,
        reason=reason,
        count=count,
        subject=None if subject is None else text(subject),
        stream=origin.get("stream"),
        sequence=origin.get("sequence"),
        error_type=None if raised is None else raised.kind,
        place=None if raised is None else raised.place,
        detail=detail,
        traceback=raised.traceback() if raised is not None and full else None,
        is_public=is_public,
    )


def _leaf(error: BaseException) -> BaseException:
    """Return the error itself, or the first one in the group of a nursery."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _frames(traceback: TracebackType | None) -> Iterator[tuple[CodeType, int]]:
    while traceback is not None:
        yield traceback.tb_frame.f_code, traceback.tb_lineno
        traceback = traceback.tb_next


def _start(files: Sequence[str]) -> int | None:
    """Return the number of the first frame of the handler, by the file names of all; None if all are the router's."""
    # Outside of the handler are frames of ours, and of Trio if it has a nursery.
    start = next((number for number, file in enumerate(files) if not _is_library(file)), None)
    if start is None:
        start = next((number for number, file in enumerate(files) if not file.startswith(OURS)), None)
    return start


def _parts(shown: TracebackException) -> Iterator[TracebackException]:
    """Yield an error, its causes, the errors during which it was raised, and those in its groups."""
    left = [shown]
    while left:
        one = left.pop()
        yield one
        left += [other for other in (one.__cause__, one.__context__, *(one.exceptions or ())) if other is not None]


def _is_library(file: str) -> bool:
    # Code generated at run time, as by attrs and dataclasses, has a file name in angle brackets.
    return file.startswith((*OURS, *_LIBRARIES, "<"))


def _is_of(code: CodeType, folder: str) -> bool:
    file = code.co_filename
    return file.startswith(folder) and (not _is_library(file) or folder.startswith(_LIBRARIES))


def _described(frame: tuple[CodeType, int]) -> str:
    code, line = frame
    return f"{code.co_filename}:{line} in {code.co_name}"
