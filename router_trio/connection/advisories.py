"""Receive the advisories about the streams and durables of one connection, and quote them beside trouble.

An advisory decides nothing. It only makes a lookup that would take place anyway take place at once, at most once a
second. Its text is quoted where a lookup or the silence of a server shows trouble that it explains, until the server
answers that all is well. So neither a lost advisory nor a forged one does harm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from math import inf
from typing import Final

import trio

from router_trio.connection.latch import Latch
from router_trio.errors import SubjectError, reasons
from router_trio.events import AdvisoriesRefused, Emit, QuorumLost
from router_trio.link import Link
from router_trio.protocol.advisories import (
    ANY,
    DELETED,
    LEADER_ELECTED,
    QUORUM_LOST,
    UPDATED,
    Advisory,
    read_advisory,
    subjects_of,
)
from router_trio.protocol.framing import RawMessage
from router_trio.subjects.patterns import validate_subject

EXPLAINS_FOR: Final = 60.0
"""Seconds for which an advisory explains trouble. A lost quorum explains it until the server contradicts it."""

MOST_A_SECOND: Final = 100
"""Maximum number of advisories read per second, since any client with the permission can send them."""

MOST_SUBSCRIBED: Final = 256
"""Maximum number of streams and durables of a connection that are subscribed to, with five subjects each."""

_NO_LEADER = (QUORUM_LOST, DELETED, LEADER_ELECTED)
_DELETED = (DELETED,)

_EXPLAINS: Final[dict[str, tuple[str, ...]]] = {
    reasons.CONSUMER_SILENT: _NO_LEADER,
    reasons.CONSUMER_LOST: _NO_LEADER,
    reasons.TIMEOUT: _NO_LEADER,
    reasons.JETSTREAM_UNAVAILABLE: _NO_LEADER,
    "stream_cut_off": _NO_LEADER,
    reasons.CONSUMER_DELETED: _DELETED,
    reasons.CONSUMER_NOT_FOUND: _DELETED,
    reasons.STREAM_NOT_FOUND: _DELETED,
    "no_stream": (DELETED, UPDATED),
}
"""The kinds of advisories that explain trouble, by its reason. The first kind that was received is quoted."""

_NOT_LOOKED_UP = (reasons.CONSUMER_SILENT, reasons.CONSUMER_LOST)
"""Reasons of trouble that no lookup has shown."""

Name = tuple[str, str]
"""A stream and one of its durables, `""` for the stream itself."""

Listener = Callable[[Advisory], None]


@dataclass(slots=True)
class _Latest:
    """The latest advisory of one kind, and when it was received."""

    advisory: Advisory
    at: float
    logged: bool = False


class Advisories:
    """The advisories of one connection, which is a `session.Source`: `serve` subscribes to them on each link."""

    def __init__(self, connection: str, emit: Emit) -> None:
        self._connection = connection
        self._emit = emit
        self._watched: dict[Name, dict[Listener, None]] = {}
        self._groups: dict[Name, dict[Name, None]] = {}
        """Watched streams and durables, by the name under which they are subscribed to."""
        self._latest: dict[Name, dict[str, _Latest]] = {}
        self._changed = trio.Event()
        self._is_refused = False
        self._read_since = -inf
        self._read_count = 0

    def watch(self, stream: str, durable: str, listener: Listener, *, with_others: bool = False) -> None:
        """Call `listener` with each advisory about a stream, or, unless `durable` is empty, about that durable.

        With `with_others` the user may read advisories about every durable of the stream, so all durables share their
        subscriptions.
        """
        try:
            for subject in subjects_of(stream, durable):
                validate_subject(subject)
        except SubjectError:
            return  # no stream has such a name, which is reported elsewhere
        self._watched.setdefault((stream, durable), {})[listener] = None
        self._groups.setdefault(_group_of(stream, durable, with_others), {})[stream, durable] = None
        self._changed.set()

    def unwatch(self, stream: str, durable: str, listener: Listener, *, with_others: bool = False) -> None:
        """Undo a call of `watch` with the same arguments."""
        listeners = self._watched.get((stream, durable), {})
        listeners.pop(listener, None)
        if listeners:
            return
        self._watched.pop((stream, durable), None)
        self._latest.pop((stream, durable), None)
        group = _group_of(stream, durable, with_others)
        members = self._groups.get(group, {})
        members.pop((stream, durable), None)
        if not members:
            self._groups.pop(group, None)
        self._changed.set()

    async def serve(self, link: Link, tried: Latch) -> None:
        """Subscribe to the watched streams and durables, and follow changes of these, until cancelled."""
        tried.set()  # nothing waits for advisories
        subscribed: dict[Name, None] = {}
        refused: list[tuple[str, str]] = []
        while True:
            self._changed = trio.Event()
            wanted = dict.fromkeys(islice(self._groups, MOST_SUBSCRIBED))
            for name in [one for one in subscribed if one not in wanted]:
                del subscribed[name]
                link.stop_listening([*subjects_of(*name)])
            new = [name for name in wanted if name not in subscribed]
            if new:
                subscribed |= dict.fromkeys(new)
                refused += await link.listen([one for name in new for one in subjects_of(*name)], self._receive)
                self._report(refused)
            await self._changed.wait()

    def _report(self, refused: Sequence[tuple[str, str]]) -> None:
        """Log that the server refuses subscriptions, each given as a subject and the server's words.

        Logs nothing more until a link on which none is refused.
        """
        if refused and not self._is_refused:
            subject, words = refused[0]
            self._emit(
                AdvisoriesRefused(
                    at=trio.current_time(),
                    connection=self._connection,
                    reason=reasons.PERMISSION_DENIED,
                    subject=subject,
                    count=len(refused),
                    detail=words,
                )
            )
        self._is_refused = bool(refused)

    # --- received ---

    def _receive(self, batch: Sequence[RawMessage]) -> None:
        now = trio.current_time()
        if now >= self._read_since + 1.0:
            self._read_since, self._read_count = now, 0
        for raw in batch:
            if self._read_count >= MOST_A_SECOND:
                return
            self._read_count += 1
            advisory = read_advisory(raw)
            if advisory is not None:
                self._received(advisory, now)

    def _received(self, advisory: Advisory, now: float) -> None:
        name = advisory.stream, advisory.durable
        listeners = self._watched.get(name)
        if listeners is None:
            return
        latest = self._latest.setdefault(name, {})
        if advisory.kind == LEADER_ELECTED:
            latest.pop(QUORUM_LOST, None)
        latest[advisory.kind] = _Latest(advisory, now)
        for listener in tuple(listeners):
            listener(advisory)

    # --- quoted ---

    def explain(self, reason: str, stream: str, durable: str = "") -> str:
        """Return the advisory that explains current trouble, as the end of a text; `""` if there is none.

        A lost quorum is logged when it first explains trouble that a lookup has shown. Silence alone has other causes,
        and any client may have sent the advisory.
        """
        now = trio.current_time()
        for kind in _EXPLAINS.get(reason, ()):
            for name in dict.fromkeys([(stream, ""), (stream, durable)]):
                found = self._latest.get(name, {}).get(kind)
                if found is None:
                    continue
                if kind == QUORUM_LOST:
                    if reason not in _NOT_LOOKED_UP:
                        self._log_lost_quorum(found)
                    return f"; the server reports that {found.advisory.text}"
                if now <= found.at + EXPLAINS_FOR:
                    return f"; {now - found.at:.1f} s before, the server reported that {found.advisory.text}"
        return ""

    def _log_lost_quorum(self, found: _Latest) -> None:
        if found.logged:
            return
        found.logged = True
        about = found.advisory
        self._emit(
            QuorumLost(
                at=trio.current_time(),
                connection=self._connection,
                stream=about.stream,
                durable=about.durable or None,
                detail=about.text,
            )
        )

    def is_well(self, stream: str, durable: str = "") -> None:
        """Forget a lost quorum. Call it when the server reports that stream or durable have a leader and a quorum."""
        for name in ((stream, ""), (stream, durable)):
            if name in self._latest:
                self._latest[name].pop(QUORUM_LOST, None)

    def about(self, stream: str, durable: str, *, with_others: bool = False) -> AdvisoriesOfDurable:
        """Return the advisories about a durable and its stream. `with_others`: see `watch`."""
        return AdvisoriesOfDurable(self, stream, durable, with_others=with_others)


def _group_of(stream: str, durable: str, with_others: bool) -> Name:
    """Return the name under which the advisories about a stream or a durable are subscribed to."""
    return (stream, ANY) if durable and with_others else (stream, durable)


class AdvisoriesOfDurable:
    """The advisories about one durable and its stream."""

    __slots__ = ("_advisories", "_durable", "_stream", "_with_others")

    def __init__(self, advisories: Advisories, stream: str, durable: str, *, with_others: bool) -> None:
        self._advisories = advisories
        self._stream = stream
        self._durable = durable
        self._with_others = with_others

    def watch(self, listener: Listener) -> None:
        """Call `listener` with each advisory from now on."""
        for durable in ("", self._durable):
            self._advisories.watch(self._stream, durable, listener, with_others=self._with_others)

    def unwatch(self, listener: Listener) -> None:
        """Undo `watch`."""
        for durable in ("", self._durable):
            self._advisories.unwatch(self._stream, durable, listener, with_others=self._with_others)

    def explain(self, reason: str) -> str:
        """Return the advisory that explains this trouble: see `Advisories.explain`."""
        return self._advisories.explain(reason, self._stream, self._durable)

    def is_well(self) -> None:
        """Forget a lost quorum: see `Advisories.is_well`."""
        self._advisories.is_well(self._stream, self._durable)


class WatchedStreams:
    """The streams that one part of a connection watches: those that its last lookup found."""

    def __init__(self, advisories: Advisories, listener: Listener) -> None:
        self._advisories = advisories
        self._listener = listener
        self._names: frozenset[str] = frozenset()

    def set(self, names: Iterable[str]) -> None:
        """Watch these streams, and no others."""
        wanted = frozenset(names)
        for name in self._names - wanted:
            self._advisories.unwatch(name, "", self._listener)
        for name in sorted(wanted - self._names):
            self._advisories.watch(name, "", self._listener)
        self._names = wanted
