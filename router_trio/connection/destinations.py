"""Tracks whether the destinations of one connection accept messages: by lookups, and by the results of publishes.

Each stream is looked up once per round, however many routes send to it. The result is plain state (`DestinationState`),
which `/readyz` reads. Messages cost nothing here: only refusals are looked at, and they are rare.

Where streams can't be looked up, the results of publishes decide alone. They also do where no stream here takes a
destination's subject and its messages are stored all the same, by a stream of another account or domain.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import inf

import trio

from router_trio.connection.advisories import Advisories, WatchedStreams
from router_trio.connection.duplicates import Duplicates
from router_trio.connection.latch import Latch
from router_trio.connection.source_streams import SourceStreams
from router_trio.connection.waiting_schedules import WaitingSchedules
from router_trio.errors import SourceError, reasons
from router_trio.errors.quotes import quoted
from router_trio.events import (
    DestinationNotStored,
    DestinationStored,
    DestinationsUnknown,
    DestinationUnconfirmed,
    Emit,
    StreamAcksEarly,
)
from router_trio.link import Link, StreamState
from router_trio.outbox.belief import does_not_count
from router_trio.outbox.operation import OperationWithAck
from router_trio.outbox.retry_lanes import Shut
from router_trio.protocol.framing import text
from router_trio.states import NO_STREAM, NOT_LOOKED_UP, DestinationState, RouteState
from router_trio.subjects.patterns import covers, matches, overlaps

LOOK_EVERY = 5.0
"""Seconds between two lookups of the streams of destinations."""

STREAMLESS_LOOK_EVERY = 1.0
"""Seconds between two lookups while messages wait because no stream takes them: nothing else shows that one does."""

DENIED_LOOK_EVERY = 60.0
"""Seconds between two lookups while this user has no permission for them: a server logs each of these."""

ASKED_TIMES = 3
"""Number of lookups of a stream that answered a publish, as long as the server does not reply to them."""

ASK_AGAIN_AFTER = 0.5
"""Seconds between them."""

_OF_ONE_LINK = frozenset({reasons.PERMISSION_DENIED, reasons.OTHER_STREAM})
"""Reasons that publishes found and no lookup can clear. The next link may have other permissions and mappings."""

_NO_LEADER = frozenset({reasons.TIMEOUT, reasons.JETSTREAM_UNAVAILABLE})
"""Errors of a request about a stream that only its leader answers."""

_NO_ANSWER = reasons.LOOKUP_FAILED - {reasons.PERMISSION_DENIED}

CUT_OFF = "stream_cut_off"
"""Why a stream without a leader refuses messages. What is not known about it can't be looked up yet."""

MOST_STREAMS = 64
"""Streams that are looked up for one destination, whose wildcards may overlap with any number of them."""

ASKED_AT_ONCE = 16
"""Streams that are looked up at the same time, so that one without a leader delays only a few of the others."""

MAX_SECRET = 1024
"""Streams that are remembered because this user may not look them up. Any others are requested again."""

MAX_REMEMBERED = 4096
"""Subjects of refused publishes whose destinations are remembered. Beyond that all are forgotten."""


class Destinations:
    """Track whether the destinations of a connection accept messages. A `session.Source`: `serve` looks them up.

    Also a `belief.Lookups`.
    """

    def __init__(
        self,
        connection: str,
        emit: Emit,
        learned: Callable[[dict[str, tuple[str, ...]], dict[str, set[Hashable]]], None] = lambda *_: None,
        found: Callable[[str, tuple[str, ...] | None], None] = lambda *_: None,
        change_shut: Callable[[Mapping[Hashable, Shut | None]], None] = lambda _: None,
        *,
        advisories: Advisories | None = None,
    ) -> None:
        """`learned` gets the subjects of streams (see `Belief.learn`), `found` the result of each `look_up`.

        `change_shut` gets the destinations to which nothing is sent for the time being: see `Outbox.change_shut`.
        `advisories` explain trouble of streams.
        """
        self._change_shut = change_shut
        self._shut: dict[Hashable, Shut] = {}
        """Destinations to which nothing is sent, by route and template."""
        self._by_template: dict[Hashable, list[DestinationState]] = {}
        """Destinations of streams by route and template: several while a reload replaces their route."""
        self._advisories = advisories or Advisories(connection, emit)
        self._advised = WatchedStreams(self._advisories, lambda _: self._look_early())
        self._learned = learned
        self._stream_found = found
        self._asked: deque[str] = deque()
        self._some_asked = trio.Event()
        self.first_look_over: trio.Event = trio.Event()
        self._duplicates = Duplicates(connection, emit)
        self.sources: SourceStreams = SourceStreams()
        """The streams read by routes that send to this connection."""
        self._waiting_schedules = WaitingSchedules()
        self._known_to_ack_early: set[str] = set()
        self._connection = connection
        self._emit = emit
        self._all: dict[DestinationState, None] = {}
        """In the order in which they were added. Each of thousands of routes adds and removes its own."""
        self._of_route: dict[RouteState, list[DestinationState]] = {}
        self._ended: dict[RouteState, None] = {}
        """Routes that have ended, and whose messages are perhaps not all settled."""
        self._reported: dict[DestinationState, str] = {}
        """Destinations that were reported as not storing messages, with the reason."""
        self._unknown = False
        self._streams: dict[str, StreamState] = {}
        self._denied: set[str] = set()
        """Streams that this user may not look up, as the server reported on this link."""
        self._may_not_list = False
        self._refusing: dict[DestinationState, dict[str, StreamState]] = {}
        self._elsewhere: set[DestinationState] = set()
        self._last_stream: dict[DestinationState, str] = {}
        """A stream that took the subject of a destination at its last lookup."""
        self._core_looked_up: set[DestinationState] = set()
        self._by_subject: dict[bytes, list[DestinationState]] = {}
        self._look_now = trio.Event()
        self._some_looked_up = trio.Event()
        self._early_at = -inf

    def add(self, destination: DestinationState) -> None:
        """Also track this destination, beginning with a lookup now."""
        self._all[destination] = None
        if destination.scheduled is not None and (known := _behind(destination.pattern, self._streams.values())):
            # As for the generation of its route before a reload: copies need not wait for the next lookup.
            self._find_schedules(destination, known)
        self._of_route.setdefault(destination.route, []).append(destination)
        self._by_subject.clear()
        self._look_now.set()
        if destination.waits_for_puback:
            self._by_template.setdefault(_key(destination), []).append(destination)
            self._shut_streamless([_key(destination)])

    def forget_route(self, route: RouteState) -> None:
        """Stop tracking the destinations of a route that has ended, once all its messages are settled.

        Until then nothing is sent to those that no stream takes.
        """
        if route in self._of_route:
            self._ended[route] = None
        self._forget_settled()

    def _forget_settled(self) -> None:
        for route in [one for one in self._ended if one.is_settled]:
            del self._ended[route]
            self._forget(route)

    def _forget(self, route: RouteState) -> None:
        gone = self._of_route.pop(route)
        for one in gone:
            del self._all[one]
            self._reported.pop(one, None)
            self._elsewhere.discard(one)
            self._refusing.pop(one, None)
            self._last_stream.pop(one, None)
            self._core_looked_up.discard(one)
            self._waiting_schedules.forget(one)
        self._by_subject.clear()
        of_streams = [one for one in gone if one.waits_for_puback]
        for one in of_streams:
            self._by_template[_key(one)].remove(one)
        keys = [_key(one) for one in of_streams]
        self._shut_streamless(keys)
        for key in keys:
            if not self._by_template.get(key, True):
                del self._by_template[key]

    def _shut_streamless(self, keys: Iterable[Hashable]) -> None:
        """Have nothing sent to those of these destinations that no stream takes, as long as that is known.

        Somebody else who subscribes there would get each message again and again, as long as no stream confirms it.
        Messages of a stream also wait for the first lookup, as they do for a link.
        """
        changes: dict[Hashable, Shut | None] = {}
        for key in keys:
            why = next(filter(None, map(self._why_shut, self._by_template[key])), None)
            if why != self._shut.get(key):
                changes[key] = why
                if why is None:
                    del self._shut[key]
                else:
                    self._shut[key] = why
        if changes:
            self._change_shut(changes)

    def _why_shut(self, one: DestinationState) -> Shut | None:
        """Return why nothing is sent to a destination for now; None if messages are sent."""
        if self._unknown or one.has_alternatives:
            return None
        if one.looked_up != NOT_LOOKED_UP:
            return Shut(reasons.NO_RESPONDERS, one.fails_streamless) if one.is_streamless else None
        # As for the generation of its route before a reload: messages need not wait for the next lookup.
        waits = one.route.redelivers and not _behind(one.pattern, self._streams.values())
        return Shut(reasons.UNANSWERED) if waits else None

    async def looked_up(self, destination: DestinationState) -> None:
        """Wait while it is not known whether the stream of a destination keeps schedules, and a lookup may show it."""
        while destination.awaits_lookup:
            await self._some_looked_up.wait()

    def _end_wait(self, destination: DestinationState) -> None:
        """Let messages for a destination be sent, or refused."""
        if destination.awaits_lookup:
            destination.awaits_lookup = False
            self._some_looked_up.set()
            self._some_looked_up = trio.Event()

    # --- results of publishes ---

    def publish_refused(self, subject: bytes, reason: str, detail: str, retriable: bool = False) -> None:
        """Record that a publish to this subject was refused. Ignores refusals that only concern the message itself."""
        if reason not in reasons.OF_ALL_ALIKE and not retriable:
            return
        for one in self._of(subject):
            fresh = one.refused_for is None or one.refused_for[0] != reason or one.got_through
            # The words of a stream contain the cure: see `errors.codes`.
            advice = "" if reason in reasons.FULL else reasons.advice(reason)
            message = detail + self._formerly(one) if reason == reasons.NO_RESPONDERS else detail
            message = f"{message}; {advice}" if advice else message
            one.mark_refused(reason, message)
            if fresh:
                self._refusing.pop(one, None)
                self._look_early()
                self._report(one)

    def _formerly(self, one: DestinationState) -> str:
        """Return the end of the error text of a destination: the stream that used to take its subject, if known."""
        name = self._last_stream.get(one)
        if name is None:
            return ""
        reported = self._advisories.explain("no_stream", name)
        return f" (stream {name!r} did, and was deleted or has other subjects now{reported})"

    def puback_passed_over(self, operation: OperationWithAck, stream: str) -> None:
        """Record for its destination that a publish only got a PubAck of a stream that does not take its subject."""
        for one in self._with_key(operation.capacity_key):
            if one.refused_for is None or one.refused_for[0] == reasons.OTHER_STREAM or one.got_through:
                one.mark_refused(reasons.OTHER_STREAM, does_not_count(stream, quoted(text(operation.subject))))
                self._report(one)

    def answered(self, key: Hashable) -> None:
        """Record that no publish with this `capacity_key` is left that only got such a PubAck."""
        for one in self._with_key(key):
            if one.refused_for is not None and one.refused_for[0] == reasons.OTHER_STREAM:
                one.refused_for = None
                self._report(one)

    def _with_key(self, key: Hashable) -> list[DestinationState]:
        return [one for one in self._all if one.waits_for_puback and (one.route_name, one.template) == key]

    def _look_early(self) -> None:
        """Look up at once, but not each time that a destination accepts one message and refuses the next."""
        now = trio.current_time()
        if now - self._early_at >= LOOK_EVERY:
            self._early_at = now
            self._look_now.set()

    def _of(self, subject: bytes) -> list[DestinationState]:
        found = self._by_subject.get(subject)
        if found is None:
            if len(self._by_subject) >= MAX_REMEMBERED:
                self._by_subject.clear()
            name = text(subject)
            found = self._by_subject[subject] = [one for one in self._all if matches(one.pattern, name)]
        return found

    # --- lookups ---

    def reconnected(self, outage: float, unanswered: Sequence[OperationWithAck]) -> None:
        """Record that the link was restored after `outage` seconds. Unanswered publishes may be stored twice."""
        self._duplicates.reconnected(trio.current_time(), outage, unanswered, self._streams.values())

    def matches(self, pattern: str, subject: str) -> bool:
        return matches(pattern, subject)

    def look_up(self, stream: str) -> None:
        """Look up the subjects of a stream whose answers are kept until then: see `Outbox.stream_found`."""
        if stream not in self._asked:
            self._asked.append(stream)
            self._some_asked.set()

    async def _answer(self, link: Link) -> None:
        """Carry out the lookups requested by `look_up`, for as long as the link lasts."""
        while True:
            while self._asked:
                stream = self._asked.popleft()
                try:
                    subjects = await self._subjects_of(link, stream)
                except BaseException:
                    self.look_up(stream)  # on another link
                    raise
                self._stream_found(stream, subjects)
            if self._some_asked.is_set():
                self._some_asked = trio.Event()
            await self._some_asked.wait()

    async def _subjects_of(self, link: Link, stream: str) -> tuple[str, ...] | None:
        """Return the subjects that a stream takes, `()` if there is no such stream, None if lookups are not answered.

        Returns any subject if lookups are not permitted: PubAcks of every stream count then, as described on the
        security page.
        """
        for _ in range(ASKED_TIMES):
            if stream in self._denied:
                return (">",)
            try:
                state = await link.stream_state(stream)
            except SourceError as error:
                if error.reason not in _NO_ANSWER:
                    self._note_denied(stream, error)
                    return (">",)
                await trio.sleep(ASK_AGAIN_AFTER)
                continue
            return () if state is None else state.subjects
        return None

    def _note_denied(self, stream: str, error: SourceError) -> None:
        """Stop looking up a stream on this link if that is not permitted: a server logs each such request."""
        if error.reason == reasons.PERMISSION_DENIED and len(self._denied) < MAX_SECRET:
            self._denied.add(stream)

    async def serve(self, link: Link, tried: Latch) -> None:
        """Look the destinations up now and every `LOOK_EVERY` seconds, for as long as the link lasts."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._answer, link)
            await self._look_often(link, tried)

    async def _look_often(self, link: Link, tried: Latch) -> None:
        tried.set()  # sending need not wait for this source
        self._denied.clear()
        self._may_not_list = False
        self.sources.link_is_new()
        self._waiting_schedules.link_is_new()
        for one in self._all:
            if one.refused_for is not None and one.refused_for[0] in _OF_ONE_LINK:
                one.refused_for = None
        if not any(one.waits_for_puback for one in self._all):
            self.first_look_over.set()
        while True:
            began = trio.current_time()
            self._look_now = trio.Event()
            self._forget_settled()
            pause = LOOK_EVERY if self._all else inf
            try:
                await self._look(link)
            except SourceError as error:
                self._not_known(error)
                if error.reason == reasons.PERMISSION_DENIED:
                    pause = DENIED_LOOK_EVERY
            self.first_look_over.set()
            self._shut_streamless(self._by_template)
            if self._shut:
                pause = min(pause, STREAMLESS_LOOK_EVERY)
            for one in tuple(self._all):
                self._report(one)
            await self._duplicates.warn(link, self._streams.values(), may_ask=not self._unknown)
            await self._find_unconfirmed(link)
            await self._waiting_schedules.look(link)
            await self._look_at_sources(link, until=began + pause)

    async def _look_at_sources(self, link: Link, until: float) -> None:
        """Look up the streams of sources until it is time to look up the destinations.

        They are looked up as often where this user may not look up the streams of destinations.
        """
        while True:
            await self.sources.look(link, None if self._unknown else self._streams)
            with trio.move_on_at(min(until, trio.current_time() + self.sources.pause)):
                await self._look_now.wait()
                return
            if trio.current_time() >= until:
                return

    async def _look(self, link: Link) -> None:
        """Look up the streams of all destinations. Raises `SourceError` (`reasons.LOOKUP_FAILED`)."""
        stored = [one for one in self._all if one.waits_for_puback]
        patterns = dict.fromkeys(one.pattern for one in stored if one.stream is None)
        named: dict[str, list[str]] = {}
        for one in stored:
            if one.stream is not None:
                named.setdefault(one.stream, []).append(one.pattern)
        streams: dict[str, StreamState] = {}
        try:
            answers = await _ask_for(link, self._streams)
            for name, answer in answers.items():
                if answer is not None:
                    await self._take(link, name, None, streams, answer)
            for name, its_patterns in named.items():
                for pattern in its_patterns:
                    await self._take(link, name, pattern, streams)
                    if name not in streams:
                        break
            for pattern in patterns:
                if not any(stream.refuses is None for stream in _behind(pattern, streams.values())):
                    for name in (await link.find_streams(pattern))[:MOST_STREAMS]:
                        await self._take(link, name, pattern, streams)
        except SourceError as error:
            if error.reason in reasons.LOOKUP_FAILED:
                raise
            for one in self._still_watched(stored):
                self._missing(one, (error.reason, str(error)))
            return
        stored = self._still_watched(stored)
        self._unknown = False
        self._streams = {
            name: stream
            for name, stream in streams.items()
            if name not in self._denied and (name in named or any(_behind(pattern, [stream]) for pattern in patterns))
        }
        self._note_early_acks()
        covered: dict[str, set[Hashable]] = {}
        for one in stored:
            if one.stream is None:
                behind = _behind(one.pattern, streams.values())
            else:
                behind = [streams[one.stream]] if one.stream in streams else []
            for stream in behind:
                if any(covers(subject, one.pattern) for subject in stream.subjects):
                    covered.setdefault(stream.name, set()).add((one.route_name, one.template))
            self._found(one, behind)
        self._advised.set({*self._streams, *self._last_stream.values()})
        self._learned({stream.name: stream.subjects for stream in streams.values()}, covered)

    def _still_watched(self, some: Iterable[DestinationState]) -> list[DestinationState]:
        """Return the destinations that were not forgotten in the meantime: nothing must be remembered of the others."""
        return [one for one in some if one in self._all]

    def _note_early_acks(self) -> None:
        """Warn about each stream that confirms messages that it may still lose: once, for as long as it does."""
        early = {name for name, stream in self._streams.items() if stream.acks_before_writing}
        for name in sorted(early - self._known_to_ack_early):
            self._emit(StreamAcksEarly(at=trio.current_time(), connection=self._connection, stream=name))
        self._known_to_ack_early = early

    async def _find_unconfirmed(self, link: Link) -> None:
        """Warn once of each core destination whose messages a stream stores.

        Only if streams are in use anyway: a router without any sends no requests to JetStream.
        """
        if not any(one.waits_for_puback or one.route.redelivers for one in self._all):
            return
        for one in [one for one in self._all if not one.waits_for_puback and one not in self._core_looked_up]:
            if not self._still_watched([one]):
                continue  # its route was removed while another one was looked up
            self._core_looked_up.add(one)
            try:
                streams = await link.find_streams(one.pattern)
            except SourceError:
                return  # as for any other lookup, only publishes show then whether they are accepted
            if streams and self._still_watched([one]):
                self._emit(
                    DestinationUnconfirmed(
                        at=trio.current_time(),
                        route=one.route_name,
                        connection=self._connection,
                        subject=one.template,
                        stream=streams[0],
                    )
                )

    async def _take(
        self,
        link: Link,
        name: str,
        pattern: str | None,
        streams: dict[str, StreamState],
        answer: StreamState | SourceError | None = None,
    ) -> None:
        """Look up a stream that was found by `pattern`, unless `answer` is its state already.

        A stream that this user may not look up counts as fine. Its known subjects, and those of a stream that was never
        looked up and has no leader, are the patterns that found it.
        """
        if name in streams:
            if not streams[name].created and pattern is not None:
                streams[name] = replace(streams[name], subjects=(*streams[name].subjects, pattern))
            return
        state = None
        if name not in self._denied:
            if answer is None:
                answer = (await _ask_for(link, [name]))[name]
            if not isinstance(answer, SourceError):
                state = answer
            elif answer.reason == reasons.PERMISSION_DENIED:
                self._denied.add(name)
            else:
                state = await self._without_leader(link, name, pattern, answer)
        if name in self._denied and pattern is not None:
            state = _unknown_stream(name, pattern)
        if state is not None:
            streams[name] = state

    async def _without_leader(
        self, link: Link, name: str, pattern: str | None, error: SourceError
    ) -> StreamState | None:
        """Return a stream that JetStream lists without a leader to answer for it. Raise `error` if it is not listed."""
        known = self._streams.get(name)
        if known is None and pattern is not None:
            known = _unknown_stream(name, pattern)
        if error.reason not in _NO_LEADER or self._may_not_list or known is None or not known.subjects:
            raise error
        try:
            names = await link.find_streams(known.subjects[0])
        except SourceError as of_all:
            self._may_not_list = of_all.reason == reasons.PERMISSION_DENIED
            raise error from None
        if name not in names:
            raise error
        detail = (
            f"the stream {name!r} is not available: JetStream lists it, but no server answers for it, as if it had no "
            "leader; check `nats server report jetstream`"
        )
        return replace(known, refuses=(CUT_OFF, detail))

    def _found(self, one: DestinationState, streams: list[StreamState]) -> None:
        if not streams:
            detail = (
                f"no stream takes {one.pattern!r}{self._formerly(one)}; create one for it, or correct the destination; "
                "set `jetstream = false` for it if its messages are for subscribers and not for a stream; if the "
                "server maps the subject to another one, set `stream` to the stream that takes that one"
            )
            if one.stream is not None:
                detail = (
                    f"the destination names stream {one.stream!r}, which does not exist; create it, or correct its name"
                )
                detail += self._advisories.explain("no_stream", one.stream)
            self._missing(one, (NO_STREAM, detail))
            return
        self._elsewhere.discard(one)
        self._last_stream[one] = streams[0].name
        one.has_one_stream = len(streams) == 1
        loses = self._find_schedules(one, streams)
        # If one of several streams takes messages, all messages may be for that one. Then publishes decide.
        refusals = [stream.refuses for stream in streams if stream.refuses is not None]
        trouble = refusals[0] if len(refusals) == len(streams) else None
        if trouble is None and loses is not None:
            trouble = reasons.SCHEDULES_REFUSED, loses
        if trouble is None:
            self._advisories.is_well(streams[0].name)
        else:
            trouble = trouble[0], trouble[1] + self._advisories.explain(trouble[0], streams[0].name)
        one.found(trouble)
        before = self._refusing.setdefault(one, {stream.name: stream for stream in streams})
        if one.refused_for is None or one.refused_for[0] in _OF_ONE_LINK or trouble is not None:
            return
        if one.refused_for[0] in reasons.FULL:
            # A stream without room for a message may be below its limit: it counts as full until it has more room. It
            # may have got that before this first look at it: where the server named the limit, that limit may be gone
            # by now.
            mended = any(s.name not in before or s.has_more_room_than(before[s.name]) for s in streams) or all(
                stream.takes_again(one.refused_for[1]) for stream in streams
            )
        else:
            # Messages that are not stored may have subjects that no stream takes.
            mended = one.stream is not None or any(
                covers(subject, one.pattern) for stream in streams for subject in stream.subjects
            )
        if mended:
            one.refused_for = None

    def _find_schedules(self, one: DestinationState, streams: Sequence[StreamState]) -> str | None:
        """Record and return why these streams of a destination would lose schedules; None if they would not."""
        if one.scheduled is None:
            return None
        # Any of the streams may get a schedule, so one that loses it is enough.
        loses = next(filter(None, (_loses_schedules(stream, one.scheduled or "") for stream in streams)), None)
        one.loses_schedules = loses
        if not any(stream.refuses is not None and stream.refuses[0] == CUT_OFF for stream in streams):
            self._end_wait(one)
        self._waiting_schedules.stored_in(one, (stream.name for stream in streams))
        return loses

    def _missing(self, one: DestinationState, trouble: tuple[str, str]) -> None:
        self._waiting_schedules.forget(one)
        self._end_wait(one)
        if one.looked_up == trouble and one.got_through:
            self._elsewhere.add(one)
        one.found(None if one in self._elsewhere else trouble)

    def _not_known(self, error: SourceError) -> None:
        for one in self._all:
            if one.waits_for_puback and one.looked_up is not None and one.looked_up[0] == "not_looked_up":
                one.found(None)
            if error.reason == reasons.PERMISSION_DENIED:
                self._end_wait(one)
        if not self._unknown:
            self._unknown = True
            explained = (self._advisories.explain(error.reason, name) for name in self._streams)
            detail = str(error) + next(filter(None, explained), "")
            self._emit(
                DestinationsUnknown(
                    at=trio.current_time(), connection=self._connection, reason=error.reason, detail=detail
                )
            )

    def _report(self, one: DestinationState) -> None:
        if one.refused_for is not None and one.got_through:
            one.refused_for = None
        trouble = one.trouble
        before = self._reported.get(one)
        # Report it once. But trouble that only a message can reveal is reported even after other trouble was.
        fresh = before is None or (trouble is not None and trouble[0] == reasons.OTHER_STREAM != before)
        if trouble is not None and fresh and trouble[0] != "not_looked_up":
            reason, detail = trouble
            self._reported[one] = reason
            self._emit(
                DestinationNotStored(
                    at=trio.current_time(),
                    route=one.route_name,
                    connection=self._connection,
                    subject=one.template,
                    reason=reason,
                    detail=detail,
                )
            )
        elif trouble is None and one in self._reported:
            del self._reported[one]
            self._emit(
                DestinationStored(
                    at=trio.current_time(), route=one.route_name, connection=self._connection, subject=one.template
                )
            )


async def _ask_for(link: Link, names: Iterable[str]) -> dict[str, StreamState | SourceError | None]:
    """Look up these streams. Returns for each its state, None if it does not exist, or the error of the lookup."""
    answers: dict[str, StreamState | SourceError | None] = dict.fromkeys(names)

    async def ask(name: str) -> None:
        try:
            answers[name] = await link.stream_state(name)
        except SourceError as error:
            answers[name] = error

    left = list(answers)
    while left:
        async with trio.open_nursery() as nursery:
            for name in left[:ASKED_AT_ONCE]:
                nursery.start_soon(ask, name)
        left = left[ASKED_AT_ONCE:]
    return answers


def _unknown_stream(name: str, pattern: str) -> StreamState:
    """Return the state of a stream that can't be looked up, with the only known pattern of its subjects."""
    unknown = f"whether stream {name!r} keeps schedules is not known, since it can't be looked up; allow this user to"
    return StreamState(name, (pattern,), None, (inf, inf), 0, (), None, loses_schedules=unknown)


def _loses_schedules(stream: StreamState, scheduled: str) -> str | None:
    """Return why a stream would lose or refuse schedules for subjects of this pattern; None if it would not."""
    if stream.loses_schedules is not None or any(overlaps(subject, scheduled) for subject in stream.subjects):
        return stream.loses_schedules
    return f"stream {stream.name!r} stores the schedules, and does not take {scheduled!r} itself; add the subject to it"


def _behind(pattern: str, streams: Iterable[StreamState]) -> list[StreamState]:
    return [stream for stream in streams if any(overlaps(subject, pattern) for subject in stream.subjects)]


def _key(destination: DestinationState) -> Hashable:
    """Return the key of the outbox for publishes to a destination."""
    return destination.route_name, destination.template
