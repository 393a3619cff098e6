"""How the streams are now that routes read, for those routes that send to the same connection.

Each stream is looked at once a time, however many routes read it, and not if it is looked at as that of a destination.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf

from router_trio.errors import SourceError, reasons
from router_trio.link import Link, StreamState

LOOK_EVERY = 5.0
"""Seconds between two looks at a stream."""

Seen = Callable[[StreamState | None], None]
"""Takes a stream as it was found; None if there is none of that name."""


class SourceStreams:
    """Look at streams for the routes that read them, on one connection."""

    def __init__(self) -> None:
        self._readers: dict[str, dict[Seen, bool]] = {}
        self._secret: set[str] = set()

    def watch(self, stream: str, seen: Seen, *, ask: bool) -> None:
        """Call `seen` after each look at a stream of that name.

        `ask` looks at it by itself. Without, only a look at the stream of a destination tells: the stream is another
        connection's, and this one may not be allowed to ask for it.
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
        """Forget which streams this user may not look at: the new link may have other permissions."""
        self._secret.clear()

    async def look(self, link: Link, known: Mapping[str, StreamState] | None) -> None:
        """Look at each stream, and tell. `known` are those of destinations, just looked at; None if that failed."""
        for name, readers in list(self._readers.items()):
            state = None if known is None else known.get(name)
            if state is None and any(readers.values()):
                if name in self._secret:
                    continue
                try:
                    state = await link.stream_state(name)
                except SourceError as error:
                    if error.reason == reasons.PERMISSION_DENIED:
                        self._secret.add(name)
                    continue
            elif known is None:
                continue
            for seen in list(readers):
                seen(state)
