"""Request a reload of a running router: on a signal, or when a file of its configuration has changed.

Files are polled, which works on every file system and with every way in which an editor saves a file. A changed file
counts when two polls in a row have found the same content. If a key is missing that was there before, or if the file is
not valid TOML, it may be incomplete, since its writer may pause between two tables. Then it must be unchanged for
longer.
"""

from __future__ import annotations

import tomllib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio

from router_trio.errors import ConfigurationError
from router_trio.router.reload_queue import lacks_thread
from router_trio.settings import Settings
from router_trio.settings.reading.load import files_of, in_folder

Watch = Callable[[Callable[[], None]], Awaitable[None]]
"""A function that calls its argument each time that the configuration has changed, until cancelled."""

POLL_EVERY = 1.0
"""Seconds between two polls of the files."""

POLLS = 2
"""Polls in a row that must find the same content before a change counts."""

POLLS_IF_INCOMPLETE = 6
"""Polls in a row if a key or a file is missing that was there before, or if the files can't be read or parsed."""

Content = tuple[tuple[str, bytes], ...]
"""The path and the content of each file; before the path of a schema file is a mark."""


class ReloadRequest:
    """A flag that requests a reload. Requests since the last reload began count as one."""

    def __init__(self) -> None:
        self._requested = trio.Event()

    def set(self) -> None:
        """Request a reload as soon as possible."""
        self._requested.set()

    async def wait(self) -> None:
        """Wait for a request, and clear it."""
        await self._requested.wait()
        self._requested = trio.Event()


async def reload_on_request(
    reload: Callable[[Callable[[], Settings]], Awaitable[object]],
    load: Callable[[], Settings],
    request: ReloadRequest,
    watch: Watch | None,
    early_hangups: Sequence[int],
) -> None:
    """Reload the settings that `load` reads, on each request and each change that `watch` reports, until cancelled.

    Reloads run one at a time. `early_hangups` has the SIGHUPs that were received before a reload was possible.
    """
    if early_hangups:
        request.set()
    async with trio.open_nursery() as nursery:
        if watch is not None:
            nursery.start_soon(watch, request.set)
        while True:
            await request.wait()
            with suppress(ConfigurationError):  # it is already logged, and nothing has changed
                await reload(load)


# --- the files of a configuration ---


def content_of(paths: Sequence[Path]) -> Content | None:
    """Return the content of these files, of the files in these folders, and of the schema files that they name.

    None if one can't be read. Blocks.
    """
    try:
        found = [(path, path.read_bytes()) for path in files_of(paths)]
        schemas = dict.fromkeys(one for path, text in found for one in _schemas_of(path, text))
        return (
            *((str(path), text) for path, text in found),
            *((f"{_SCHEMA}{path}", path.read_bytes()) for path in schemas),
        )
    except (OSError, ValueError, MemoryError, ConfigurationError):
        return None


_SCHEMA = "\0"
"""The first character of the name of a schema file in a `Content`: no path has it."""


def _schemas_of(file: Path, text: bytes) -> Iterator[Path]:
    """Yield the schema files that a file names, as far as it is valid."""
    try:
        routes = tomllib.loads(text.decode()).get("routes")
    except (ValueError, RecursionError):
        return
    for route in routes if isinstance(routes, list) else []:
        name = route.get("schema") if isinstance(route, dict) else None
        if isinstance(name, str) and name:
            yield in_folder(file.resolve().parent, name)


class ChangeDetector:
    """Decides when polled content counts as changed. `known` is the content that was, or is being, loaded. Pure."""

    def __init__(self, known: Content | None) -> None:
        self._known = known
        self._last = known
        self._polls = 0
        self._needed = POLLS

    def has_changed(self, content: Content | None) -> bool:
        """Return True, once for each change, if the content is new and was found often enough in a row."""
        if content != self._last:
            self._last, self._polls = content, 0
            if content != self._known:
                self._needed = POLLS if _has_all_keys_of(content, self._known) else POLLS_IF_INCOMPLETE
        self._polls += 1
        if content == self._known or self._polls < self._needed:
            return False
        self._known = content
        return True


def _has_all_keys_of(content: Content | None, before: Content | None) -> bool:
    """Return True if no key of the previous configuration is missing: then the content is not just its first part."""
    keys = _keys(content)
    return keys is not None and keys >= (_keys(before) or set())


def _keys(content: Content | None) -> set[tuple[str, ...]] | None:
    """Return the paths of all keys, regardless of their file; None if one of the files is not valid TOML."""
    if content is None:
        return None
    found = set[tuple[str, ...]]()
    try:
        for text in [text for name, text in content if not name.startswith(_SCHEMA)]:
            found.update(_paths((), tomllib.loads(text.decode())))
    except (ValueError, RecursionError):
        return None
    return found


def _paths(at: tuple[str, ...], value: Any) -> Iterator[tuple[str, ...]]:
    if isinstance(value, dict):
        named = [(key, item) for key, item in value.items()]
    elif isinstance(value, list):
        # A named item is identified by its name: routes may move to another position or another file.
        named = [
            (str(item.get("name", number) if isinstance(item, dict) else number), item)
            for number, item in enumerate(value)
        ]
    else:
        return
    for key, item in named:
        yield (*at, key)
        yield from _paths((*at, key), item)


async def watch_files(read: Callable[[], Content | None], known: Content | None, changed: Callable[[], None]) -> None:
    """Call `changed` each time that `read`, which may block, returns changed content; until cancelled."""
    detector, limiter = ChangeDetector(known), trio.CapacityLimiter(1)
    while True:
        await trio.sleep(POLL_EVERY)
        # The thread is abandoned when the router ends, since the file system may hang.
        try:
            has_changed = await trio.to_thread.run_sync(
                lambda: detector.has_changed(read()), limiter=limiter, abandon_on_cancel=True
            )
        except RuntimeError as error:
            if not lacks_thread(error):
                raise
            continue
        if has_changed:
            changed()
