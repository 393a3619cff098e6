"""Watching the files of a configuration: says when they have changed, and are whole.

Looking is enough: it works on every file system, whatever an editor does with the file. A file is taken to be written
when two looks in a row find the same, so that one which is half there, or just being replaced, changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import trio

LOOK_EVERY = 1.0
"""Seconds between two looks."""

Content = tuple[tuple[str, bytes], ...]
"""Each file with what it holds."""


def content_of(paths: Sequence[Path]) -> Content | None:
    """Return what these files hold; None if one can't be read, as when it is just being replaced. Blocks."""
    try:
        return tuple((str(path), path.read_bytes()) for path in paths)
    except OSError:
        return None


class Watched:
    """Content as it is looked at, again and again. `known` is what was loaded, or is about to be. Pure."""

    def __init__(self, known: Content | None) -> None:
        self._known = known
        self._last = known

    def has_changed(self, content: Content | None) -> bool:
        """Return True, once, if this is new and was found twice in a row."""
        whole, self._last = content == self._last, content
        if not whole or content is None or content == self._known:
            return False
        self._known = content
        return True


async def watch(look: Callable[[], Content | None], known: Content | None, changed: Callable[[], None]) -> None:
    """Call `changed` each time that `look`, which may block, has found something new; until cancelled."""
    watched, limiter = Watched(known), trio.CapacityLimiter(1)
    while True:
        await trio.sleep(LOOK_EVERY)
        # Left behind when the router ends: the file system may hang.
        if watched.has_changed(await trio.to_thread.run_sync(look, limiter=limiter, abandon_on_cancel=True)):
            changed()
