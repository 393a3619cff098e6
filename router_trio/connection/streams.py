"""Creates the configured streams of a connection where they are missing, before its routes start.

A stream that exists is compared with the settings, and never changed. If creating it fails, it is tried again with
growing delays, and on each new link. A stream that is deleted later is created again.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from math import inf

import trio

from router_trio.connection.latch import Latch
from router_trio.errors import SourceError, reasons
from router_trio.events import Emit, StreamCreated, StreamDiffers, StreamNotMade
from router_trio.link import Link
from router_trio.protocol.metadata import Metadata
from router_trio.protocol.stream_config import StreamConfig
from router_trio.states import ConnectionState

FIRST_DELAY = 1.0
LONGEST_DELAY = 60.0
"""Seconds between two tries to create a stream on one link: doubled each time, up to `LONGEST_DELAY`."""

LOOK_EVERY = 5.0
"""Seconds between two lookups of a stream that existed."""

_CURES = {
    reasons.PERMISSION_DENIED: "allow this user to create it, or create it yourself and remove it from [[streams]]",
    reasons.NO_JETSTREAM: "enable JetStream there, or remove the stream from [[streams]]",
    reasons.SERVER_TOO_OLD: "upgrade it, or remove that key from [[streams]]",
}


@dataclass(frozen=True, slots=True)
class _NextTry:
    """When a stream is looked up next, and the delay after that if it fails."""

    at: float = -inf
    delay: float = FIRST_DELAY
    was_there: bool = False


class Streams:
    """The configured streams of one connection. A `session.Source`: `serve` creates them, on each link."""

    def __init__(self, state: ConnectionState, emit: Emit, metadata: Metadata) -> None:
        """`metadata` identifies the router on the streams that it creates."""
        self._state = state
        self._emit = emit
        self._metadata = metadata
        self._all: dict[str, StreamConfig] = {}
        self._reported: dict[str, object] = {}
        self._added = trio.Event()

    def add(self, stream: StreamConfig) -> None:
        """Also create this stream, now if `serve` runs."""
        self._all[stream.name] = replace(stream, metadata=self._metadata)
        self._added.set()

    def leave_alone(self, name: str) -> None:
        """Stop looking after this stream. It stays on the server as it is."""
        self._all.pop(name, None)
        self._reported.pop(name, None)
        self._state.missing_streams.pop(name, None)

    async def serve(self, link: Link, tried: Latch) -> None:
        """Create missing streams, now and whenever they are deleted. Sets `tried` when each has been tried once."""
        next_tries: defaultdict[str, _NextTry] = defaultdict(_NextTry)
        while True:
            self._added = trio.Event()
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
            with trio.move_on_at(min((next_tries[name].at for name in self._all), default=inf)):
                await self._added.wait()
            # A reload that has added streams starts this again, and a request of this pass would have its answer lost.
            await trio.lowlevel.checkpoint_if_cancelled()

    async def _ensure(self, link: Link, wanted: StreamConfig, *, was_there: bool) -> bool:
        name = wanted.name
        try:
            found, made = await link.ensure_stream(wanted)
        except SourceError as error:
            if self._all.get(name) is not wanted:
                return False  # a reload has removed or changed it meanwhile
            if was_there and error.reason in reasons.LOOKUP_FAILED:
                return True  # as far as is known: during an election, for example, lookups fail
            cure = _CURES.get(error.reason)
            detail = f"{error}; {cure}" if cure else str(error)
            self._state.missing_streams[name] = (
                f"stream {name!r} can't be looked up or created: {error.reason}: {detail}"
            )
            self._emit_once(
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
        if self._all.get(name) is not wanted:
            return False
        differences = wanted.differences(found)
        if differences:
            detail = "; ".join(differences)
            event = StreamDiffers(at=trio.current_time(), connection=self._state.name, stream=name, detail=detail)
            self._emit_once(name, detail, event)
        else:
            self._reported.pop(name, None)
        return True

    def _emit_once(self, name: str, what: object, event: StreamDiffers | StreamNotMade) -> None:
        """Emit an event, unless the last one for this stream was about the same."""
        if self._reported.get(name) != what:
            self._reported[name] = what
            self._emit(event)
