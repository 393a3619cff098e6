"""Warns at a reconnect of publishes that a stream may store twice.

A publish that was sent and got no PubAck before the link was lost is sent again on the next one, with the same id. The
stream drops the copy if it still remembers that id, which it does for its duplicate window. Whether it had stored one
of the older publishes can't be found out later, so possible duplicates are reported when the connection is restored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf

from router_trio.errors import SourceError, reasons
from router_trio.events import DuplicatesPossible, Emit
from router_trio.link import Link, StreamState
from router_trio.outbox.operation import OperationWithAck
from router_trio.protocol.framing import text
from router_trio.subjects.patterns import matches

DEFAULT_WINDOW = 120.0
"""Seconds for which a stream of nats-server remembers ids, unless it is configured otherwise."""

MOST_LOOKED_UP = 64
"""Subjects without a known stream that are looked up after one outage. The streams of any others count as unknown."""


@dataclass(slots=True)
class _Outage:
    """An outage that is over, and the publishes that were unanswered in it."""

    ended_at: float
    seconds: float
    unanswered: Sequence[OperationWithAck]


@dataclass(slots=True)
class _Doubled:
    """Publishes to one stream: how many were unanswered for longer than its window, and for how long at most."""

    count: int = 0
    seconds: float = 0.0
    operations: list[OperationWithAck] = field(default_factory=list)


class Duplicates:
    """Warn of possible duplicates on one connection."""

    def __init__(self, connection: str, emit: Emit) -> None:
        self._connection = connection
        self._emit = emit
        self._outage: _Outage | None = None

    def reconnected(
        self, now: float, outage: float, unanswered: Sequence[OperationWithAck], known: Iterable[StreamState]
    ) -> None:
        """Record what is about to be sent again, until `warn` is called. `known` are the streams of the last lookup."""
        self._warn(known, {})  # the link was lost again before its streams were looked up
        self._outage = _Outage(now, outage, unanswered) if unanswered else None

    async def warn(self, link: Link, known: Iterable[StreamState], *, may_ask: bool) -> None:
        """Emit one event for each stream that may store messages twice. Look up streams that are not `known`.

        Without `may_ask` these count as unknown. Returns at once if there is nothing to warn about. Blocks while
        streams are looked up; if it is cancelled, nothing has been emitted yet.
        """
        if self._outage is None:
            return
        known = [*known]
        subjects = dict.fromkeys(one.subject for one in self._outage.unanswered if _named_by(one) is None)
        found: dict[bytes, StreamState] = {}
        missing = [subject for subject in subjects if _stream_of(subject, known) is None]
        for subject in missing[:MOST_LOOKED_UP] if may_ask else ():
            stream = _stream_of(subject, found.values())
            try:
                stream = stream or await _look_up(link, text(subject))
            except SourceError:
                break  # each of the others would wait as long
            if stream is not None:
                found[subject] = stream
        self._warn(known, found)

    def _warn(self, known: Iterable[StreamState], found: dict[bytes, StreamState]) -> None:
        if self._outage is None:
            return
        outage, self._outage = self._outage, None
        known = [*known]
        streams: dict[bytes, StreamState | None] = {}
        doubled: dict[tuple[str | None, float | None], _Doubled] = {}
        for operation in outage.unanswered:
            subject, named = operation.subject, _named_by(operation)
            if named is not None:
                stream = next((one for one in known if one.name == named), None)
            else:
                if subject not in streams:
                    streams[subject] = found.get(subject) or _stream_of(subject, known)
                stream = streams[subject]
            key = (None, None) if stream is None else (stream.name, stream.duplicate_window)
            assert operation.unanswered_since is not None
            seconds = outage.ended_at - operation.unanswered_since
            if seconds > (DEFAULT_WINDOW if key[1] is None else key[1]):
                of_stream = doubled.setdefault(key, _Doubled())
                of_stream.count += 1
                of_stream.seconds = max(of_stream.seconds, seconds)
                of_stream.operations.append(operation)
        for (name, window), of_stream in doubled.items():
            for operation in of_stream.operations:
                # This is reported now. If the next link is lost too, only a further window makes it worth reporting
                # again.
                operation.unanswered_since = outage.ended_at
            self._emit(
                DuplicatesPossible(
                    at=outage.ended_at,
                    connection=self._connection,
                    stream=name,
                    count=of_stream.count,
                    outage_seconds=round(outage.seconds, 3),
                    unanswered_seconds=round(of_stream.seconds, 3),
                    window_seconds=DEFAULT_WINDOW if window is None else window,
                    window_assumed=window is None,
                )
            )


def _named_by(operation: OperationWithAck) -> str | None:
    """Return the stream that a publish names, which may not take its subject; None if it names none."""
    return operation.puback_from if isinstance(operation.puback_from, str) else None


def _stream_of(subject: bytes, streams: Iterable[StreamState]) -> StreamState | None:
    name = text(subject)
    return next((one for one in streams if any(matches(pattern, name) for pattern in one.subjects)), None)


async def _look_up(link: Link, subject: str) -> StreamState | None:
    """Return the stream that takes a subject; None if there is none here. Raises `SourceError`."""
    for name in await link.find_streams(subject):
        try:
            return await link.stream_state(name)
        except SourceError as error:
            if error.reason != reasons.PERMISSION_DENIED:
                raise
            return StreamState(name, (subject,), None, (inf, inf), 0, (), None)
    return None
