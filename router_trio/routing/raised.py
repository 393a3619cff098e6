"""What a handler raised, and where: fit for a log line, since nothing of it quotes a payload."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path
from traceback import format_exception
from types import CodeType, TracebackType
from typing import Any

from router_trio import errors

MOST_LINES = 40
"""Lines of a traceback that are kept, from its end."""

_OURS = str(Path(errors.__file__).parent)
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


class Raised:
    """An error that came out of a handler."""

    def __init__(self, error: BaseException) -> None:
        self._error = error
        self.kind: str = type(error).__qualname__

    def fields(self, *, full: bool) -> dict[str, Any]:
        """Return what `MessageFailed` has of it. `full`: the traceback as well."""
        traceback = self.traceback() if full else None
        return {"error_type": self.kind, "place": self.place, "traceback": traceback}

    @property
    def place(self) -> str | None:
        """File, line and function of the innermost frame of the handler, and of what it called if that raised."""
        frames = list(_frames(_leaf(self._error).__traceback__))
        # Before the handler are frames of ours, and of Trio if it has a nursery.
        start = next((number for number, (code, _) in enumerate(frames) if not _is_library(code)), None)
        if start is None:
            start = next((n for n, (code, _) in enumerate(frames) if not code.co_filename.startswith(_OURS)), None)
        if start is None:
            return None
        folder = str(Path(frames[start][0].co_filename).parent)
        inside = [frame for frame in frames[start:] if _is_of(frame[0], folder)]
        place = _told(inside[-1])
        return place if inside[-1] == frames[-1] else f"{place}, by {_told(frames[-1])}"

    def traceback(self) -> tuple[str, ...]:
        """Return the lines of the whole traceback. They quote what the error says, and that may be the payload."""
        try:
            lines = "".join(format_exception(self._error)).splitlines()
        except Exception:  # foreign code may fail at telling of itself, too
            return ()
        return tuple(lines[-MOST_LINES:])


def _leaf(error: BaseException) -> BaseException:
    """Return the error itself, or the first one in a group of a nursery."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _frames(traceback: TracebackType | None) -> Iterator[tuple[CodeType, int]]:
    while traceback is not None:
        yield traceback.tb_frame.f_code, traceback.tb_lineno
        traceback = traceback.tb_next


def _is_library(code: CodeType) -> bool:
    return code.co_filename.startswith((_OURS, *_LIBRARIES)) or code.co_filename.startswith("<frozen")


def _is_of(code: CodeType, folder: str) -> bool:
    return code.co_filename.startswith(folder) and (not _is_library(code) or folder.startswith(_LIBRARIES))


def _told(frame: tuple[CodeType, int]) -> str:
    code, line = frame
    return f"{code.co_filename}:{line} in {code.co_name}"
