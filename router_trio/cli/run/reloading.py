"""Reloads that are asked for while a router runs: by a signal, or by a file that has changed.

Looking at files is enough: it works on every file system, whatever an editor does with the file. A file is taken to be
written when two looks in a row find the same. One that has lost something, or is no TOML, may be half there, since
whoever writes it may pause between two tables: it has to stay as it is for longer.
"""

from __future__ import annotations

import tomllib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio

from router_trio.errors import ConfigurationError
from router_trio.settings import Settings
from router_trio.settings.reading.load import files_of

Watch = Callable[[Callable[[], None]], Awaitable[None]]
"""Calls what it is given each time that the configuration has changed, until cancelled."""

LOOK_EVERY = 1.0
"""Seconds between two looks."""

LOOKS = 2
"""Looks in a row that find the same before a change counts."""

LOOKS_IF_LESS = 6
"""Seconds to wait if a file is missing that was there before, or the files can't be read."""

Content = tuple[tuple[str, bytes], ...]
"""Each file with what it holds."""


class Wanted:
    """That a reload is wanted, said at any time: once, however often it was said since the last one began."""

    def __init__(self) -> None:
        self._said = trio.Event()

    def say(self) -> None:
        """Reload, as soon as may be."""
        self._said.set()

    async def until_said(self) -> None:
        """Return when it was said, and forget that."""
        await self._said.wait()
        self._said = trio.Event()


async def reload_when_wanted(
    reload: Callable[[Callable[[], Settings]], Awaitable[object]],
    load: Callable[[], Settings],
    wanted: Wanted,
    watch: Watch | None,
    early: Sequence[int],
) -> None:
    """Reload, one at a time, what `load` reads: when it is wanted, and when `watch` says so. Until cancelled.

    `early` are the SIGHUPs that came before anybody could reload.
    """
    if early:
        wanted.say()
    async with trio.open_nursery() as nursery:
        if watch is not None:
            nursery.start_soon(watch, wanted.say)
        while True:
            await wanted.until_said()
            with suppress(ConfigurationError):  # it is logged, and nothing has changed
                await reload(load)


# --- the files of a configuration ---


def content_of(paths: Sequence[Path]) -> Content | None:
    """Return what these files hold, and those in these folders; None if one can't be read. Blocks."""
    try:
        return tuple((str(path), path.read_bytes()) for path in files_of(paths))
    except (OSError, ValueError, ConfigurationError):
        return None


class Watched:
    """Content as it is looked at, again and again. `known` is what was loaded, or is about to be. Pure."""

    def __init__(self, known: Content | None) -> None:
        self._known = known
        self._last = known
        self._looks = 0
        self._needed = LOOKS

    def has_changed(self, content: Content | None) -> bool:
        """Return True, once, if this is new and was found often enough in a row."""
        if content != self._last:
            self._last, self._looks = content, 0
            if content != self._known:
                self._needed = LOOKS if _has_all_of(content, self._known) else LOOKS_IF_LESS
        self._looks += 1
        if content == self._known or self._looks < self._needed:
            return False
        self._known = content
        return True


def _has_all_of(content: Content | None, before: Content | None) -> bool:
    """Return True if no key of the configuration before is missing: this is not the first half of it."""
    keys = _keys(content)
    return keys is not None and keys >= (_keys(before) or set())


def _keys(content: Content | None) -> set[tuple[str, ...]] | None:
    """Return the paths of all keys, whatever file they are in; None if one of the files is no TOML."""
    if content is None:
        return None
    found = set[tuple[str, ...]]()
    try:
        for _, text in content:
            found.update(_paths((), tomllib.loads(text.decode())))
    except (ValueError, RecursionError):
        return None
    return found


def _paths(at: tuple[str, ...], value: Any) -> Iterator[tuple[str, ...]]:
    if isinstance(value, dict):
        named = [(key, one) for key, one in value.items()]
    elif isinstance(value, list):
        # By its name if it has one: routes may be in another order, or another file.
        named = [
            (str(one.get("name", number) if isinstance(one, dict) else number), one) for number, one in enumerate(value)
        ]
    else:
        return
    for key, one in named:
        yield (*at, key)
        yield from _paths((*at, key), one)


async def watch_files(look: Callable[[], Content | None], known: Content | None, changed: Callable[[], None]) -> None:
    """Call `changed` each time that `look`, which may block, has found something new; until cancelled."""
    watched, limiter = Watched(known), trio.CapacityLimiter(1)
    while True:
        await trio.sleep(LOOK_EVERY)
        # Left behind when the router ends: the file system may hang.
        found = await trio.to_thread.run_sync(
            lambda: watched.has_changed(look()), limiter=limiter, abandon_on_cancel=True
        )
        if found:
            changed()
