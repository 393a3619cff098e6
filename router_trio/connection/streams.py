"""The streams that a connection is to have: made on a link where they are absent, before its routes begin.

One that is there is compared with the settings, and never changed. What could not be made is tried again, more and more
seldom, and on each new link. One that is deleted later is made again.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from math import inf

import trio

from router_trio.errors import SourceError, reasons
from router_trio.events import Emit, StreamCreated, StreamDiffers, StreamNotMade
from router_trio.link import Link
from router_trio.protocol.stream_config import StreamConfig
from router_trio.states import ConnectionState

FIRST_DELAY = 1.0
LONGEST_DELAY = 60.0
"""Seconds between two tries to make what could not be made, on one link: doubled each time."""

LOOK_EVERY = 5.0
"""Seconds between two looks at streams that were there."""

_CURES = {
    reasons.PERMISSION_DENIED: "let this user do so, or make the stream yourself and remove it from [[streams]]",
    reasons.NO_JETSTREAM: "enable JetStream there, or remove the stream from [[streams]]",
    reasons.STREAM_REFUSED: "change it in [[streams]], or the server",
}


@dataclass(frozen=True, slots=True)
class _NextTry:
    """When a stream is looked at next, and how much later again if that fails."""

    at: float = -inf
    delay: float = FIRST_DELAY
    was_there: bool = False


class Streams:
    """The streams of one connection. `serve` makes them, on each link: see `session.Source`."""

    def __init__(self, state: ConnectionState, emit: Emit) -> None:
        self._state = state
        self._emit = emit
        self._all: dict[str, StreamConfig] = {}
        self._told: dict[str, object] = {}

    def add(self, stream: StreamConfig) -> None:
        """Make this one too, when they are served next."""
        self._all[stream.name] = stream

    def leave_alone(self, name: str) -> None:
        """Stop looking after this stream. On the server it stays as it is."""
        self._all.pop(name, None)
        self._told.pop(name, None)
        self._state.missing_streams.pop(name, None)

    def __bool__(self) -> bool:
        return bool(self._all)

    async def serve(self, link: Link, tried: trio.Event) -> None:
        """Make what is absent, now and whenever it is deleted. `tried` is set when each was tried once.

        Returns when there is none to look after.
        """
        next_tries: defaultdict[str, _NextTry] = defaultdict(_NextTry)
        while self._all:
            for name, stream in list(self._all.items()):
                last = next_tries[name]
                now = trio.current_time()
                if last.at > now:
                    continue
                if await self._ensure(link, stream, was_there=last.was_there):
                    next_tries[name] = _NextTry(now + LOOK_EVERY, was_there=True)
                else:
                    next_tries[name] = _NextTry(now + last.delay, min(2 * last.delay, LONGEST_DELAY))
            tried.set()
            await trio.sleep_until(min((next_tries[name].at for name in self._all), default=-inf))
        tried.set()

    async def _ensure(self, link: Link, wanted: StreamConfig, *, was_there: bool) -> bool:
        name = wanted.name
        try:
            found, made = await link.ensure_stream(wanted)
        except SourceError as error:
            if was_there and error.reason in reasons.LOOKUP_FAILED:
                return True  # as far as is known: an election, for example, says nothing of it
            cure = _CURES.get(error.reason)
            detail = f"{error}; {cure}" if cure else str(error)
            self._state.missing_streams[name] = f"stream {name!r} can't be made or looked up: {error.reason}: {detail}"
            self._tell(
                name,
                (error.reason, detail),
                StreamNotMade(
                    at=trio.current_time(),
                    connection=self._state.name,
                    stream=name,
                    reason=error.reason,
                    detail=detail,
                ),
            )
            return False
        self._state.missing_streams.pop(name, None)
        if made:
            self._emit(StreamCreated(at=trio.current_time(), connection=self._state.name, stream=name))
        differences = wanted.differences(found)
        if differences:
            detail = "; ".join(differences)
            told = StreamDiffers(at=trio.current_time(), connection=self._state.name, stream=name, detail=detail)
            self._tell(name, detail, told)
        else:
            self._told.pop(name, None)
        return True

    def _tell(self, name: str, what: object, event: StreamDiffers | StreamNotMade) -> None:
        """Tell it once, and again when it is something else."""
        if self._told.get(name) != what:
            self._told[name] = what
            self._emit(event)
