"""Looks up streams that routes read, for the routes that send to the same connection.

Each stream is looked up once per round, however many routes read it, and not again if it was looked up as the stream of
a destination.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf

from router_trio.errors import SourceError, reasons
from router_trio.link import Link, StreamState

LOOK_EVERY = 5.0
"""Seconds between two lookups of a stream."""

Seen = Callable[[StreamState | None], None]
"""Called with the state of a stream; None if there is none of that name."""


class SourceStreams:
    """Look up streams for the routes that read them, on one connection."""

    def __init__(self) -> None:
        self._readers: dict[str, dict[Seen, bool]] = {}
        self._denied: set[str] = set()

    def watch(self, stream: str, seen: Seen, *, ask: bool) -> None:
        """Call `seen` after each lookup of a stream of that name.

        With `ask` it is looked up for this purpose. Otherwise only lookups as a destination's stream are reported: the
        stream belongs to another connection, and this one may not have permission to look it up.
        """
        self._readers.setdefault(stream, {})[seen] = ask

    def unwatch(self, stream: str, seen: Seen) -> None:
        """Undo `watch`."""
        readers = self._readers[stream]
        del readers[seen]
        if not readers:
            del self._readers[stream]

    @property
    def pause(self) -> float:
        """Seconds until the next look is due."""
        return LOOK_EVERY if self._readers else inf

    def link_is_new(self) -> None:
        """Forget which streams this user may not look up: a new link may have other permissions."""
        self._denied.clear()

    async def look(self, link: Link, known: Mapping[str, StreamState] | None) -> None:
        """Look up each stream and report it. `known` are those just looked up for destinations; None if that failed."""
        for name, readers in list(self._readers.items()):
            state = None if known is None else known.get(name)
            if state is None and any(readers.values()):
                if name in self._denied:
                    continue
                try:
                    state = await link.stream_state(name)
                except SourceError as error:
                    if error.reason == reasons.PERMISSION_DENIED:
                        self._denied.add(name)
                    continue
            elif known is None:
                continue
            for seen in list(readers):
                seen(state)
