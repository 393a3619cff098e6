"""Whether the destinations of one connection take messages: looked up, and told by what publishes meet.

Each stream is looked up once a time, however many routes send to it. What is found is plain state (`DestinationState`),
which `/readyz` reads. A message costs nothing here: only refusals are looked at, and they are rare.

Where streams can't be looked up, what publishes meet decides alone. The same where no stream takes a destination's
subject here and its messages are stored all the same, by a stream of another account or domain.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from math import inf

import trio

from router_trio.connection.duplicates import Duplicates
from router_trio.connection.source_streams import SourceStreams
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
from router_trio.protocol.framing import text
from router_trio.states import DestinationState, RouteState
from router_trio.subjects.patterns import matches, matches_tokens, overlaps

LOOK_EVERY = 5.0
"""Seconds between two lookups of the streams behind the destinations."""

DENIED_LOOK_EVERY = 60.0
"""Seconds between two lookups while this user may not ask: a server logs each of these."""

ASKED_TIMES = 3
"""Times that a stream is looked up whose answer to a publish is in doubt, while the server does not say."""

ASK_AGAIN_AFTER = 0.5
"""Seconds between them."""

_OF_ONE_LINK = frozenset({reasons.PERMISSION_DENIED, reasons.OTHER_STREAM})
"""Reasons that publishes met and no lookup can clear. The next link may have other rights and mappings."""

_NO_LEADER = frozenset({reasons.TIMEOUT, reasons.JETSTREAM_UNAVAILABLE})
"""The errors of a question about a stream that only its leader would answer."""

_NO_ANSWER = reasons.LOOKUP_FAILED - {reasons.PERMISSION_DENIED}

MOST_STREAMS = 64
"""Streams that are looked at for one destination, whose wildcards may take in any number of them."""

ASKED_AT_ONCE = 16
"""Streams that are looked up at the same time: one that has no leader holds up no more of the others than this."""

MAX_SECRET = 1024
"""Streams of which is remembered that this user may not look at them. Others are asked about again."""

MAX_REMEMBERED = 4096
"""Subjects of refused publishes of which is remembered whose they are. Then the memory starts anew."""


class Destinations:
    """Watch whether the destinations of a connection take messages. A `session.Source`: `serve` looks them up."""

    def __init__(
        self,
        connection: str,
        emit: Emit,
        learned: Callable[[dict[str, tuple[str, ...]], dict[str, set[Hashable]]], None] = lambda *_: None,
        found: Callable[[str, tuple[str, ...] | None], None] = lambda *_: None,
    ) -> None:
        """`learned` is told what takes which subjects: see `Belief.learn`; `found` the answer to `look_up`."""
        self._learned = learned
        self._stream_found = found
        self._asked: deque[str] = deque()
        self._some_asked = trio.Event()
        self.first_look_over: trio.Event = trio.Event()
        self._duplicates = Duplicates(connection, emit)
        self.sources: SourceStreams = SourceStreams()
        """The streams that routes read which send to this connection."""
        self._known_to_ack_early: set[str] = set()
        self._connection = connection
        self._emit = emit
        self._all: list[DestinationState] = []
        self._told: dict[DestinationState, str] = {}
        """Destinations that were reported to be in trouble, with the reason."""
        self._unknown = False
        self._streams: dict[str, StreamState] = {}
        self._secret: set[str] = set()
        """Streams that this user may not look at, by what the server said on this link."""
        self._may_not_list = False
        self._refusing: dict[DestinationState, dict[str, StreamState]] = {}
        self._elsewhere: set[DestinationState] = set()
        self._last_stream: dict[DestinationState, str] = {}
        """A stream that took the subject of a destination when it was last looked up."""
        self._core_looked_up: set[DestinationState] = set()
        self._by_subject: dict[bytes, list[DestinationState]] = {}
        self._look_now = trio.Event()
        self._early_at = -inf

    def add(self, destination: DestinationState) -> None:
        """Watch this one too, from the next look on, which is now."""
        self._all.append(destination)
        self._by_subject.clear()
        self._look_now.set()

    def forget_route(self, route: RouteState) -> None:
        """Watch those of this route no more."""
        for one in [one for one in self._all if one.route is route]:
            self._all.remove(one)
            self._told.pop(one, None)
            self._elsewhere.discard(one)
            self._refusing.pop(one, None)
            self._last_stream.pop(one, None)
            self._core_looked_up.discard(one)
        self._by_subject.clear()

    # --- what publishes meet ---

    def publish_refused(self, subject: bytes, reason: str, detail: str, retriable: bool = False) -> None:
        """Note that a publish to this subject was refused. Passes over what was the message's own fault."""
        if reason not in reasons.OF_ALL_ALIKE and not retriable:
            return
        for one in self._of(subject):
            fresh = one.met is None or one.met[0] != reason or one.got_through
            advice = reasons.advice(reason)
            told = detail + self._gone(one) if reason == reasons.NO_RESPONDERS else detail
            told = f"{told}; {advice}" if advice else told
            one.mark_refused(reason, told)
            if fresh:
                self._refusing.pop(one, None)
                self._look_early()
                self._tell(one)

    def _gone(self, one: DestinationState) -> str:
        """Name the stream that took the subject of a destination before, for the end of a text that says none does."""
        name = self._last_stream.get(one)
        return "" if name is None else f": stream {name!r}, which did, is gone or has other subjects"

    def puback_passed_over(self, operation: OperationWithAck, stream: str) -> None:
        """Note for its destination that a publish has only had a PubAck of a stream that does not take its subject."""
        for one in self._with(operation.capacity_key):
            if one.met is None or one.met[0] == reasons.OTHER_STREAM or one.got_through:
                one.mark_refused(reasons.OTHER_STREAM, does_not_count(stream, quoted(text(operation.subject))))
                self._tell(one)

    def answered(self, key: Hashable) -> None:
        """Note that no publish with this `capacity_key` is left that has only had such a PubAck."""
        for one in self._with(key):
            if one.met is not None and one.met[0] == reasons.OTHER_STREAM:
                one.met = None
                self._tell(one)

    def _with(self, key: Hashable) -> list[DestinationState]:
        return [one for one in self._all if one.waits_for_puback and (one.route_name, one.template) == key]

    def _look_early(self) -> None:
        """Look at once, but not each time that a destination takes one message and refuses the next."""
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

    # --- what lookups find ---

    def reconnected(self, outage: float, unanswered: Sequence[OperationWithAck]) -> None:
        """Note that the link is back after `outage` seconds. What was unanswered is sent again: see `Duplicates`."""
        self._duplicates.reconnected(trio.current_time(), outage, unanswered, self._streams.values())

    def matches(self, pattern: str, subject: str) -> bool:
        """See `belief.Lookups`."""
        return matches(pattern, subject)

    def look_up(self, stream: str) -> None:
        """Find out which subjects a stream takes, whose answers wait for that: see `Outbox.stream_found`."""
        if stream not in self._asked:
            self._asked.append(stream)
            self._some_asked.set()

    async def _answer(self, link: Link) -> None:
        """Look up streams that are asked about, for as long as the link lives."""
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
        """Return the subjects that a stream takes, none if there is no such stream, None if nobody has answered.

        Any subject where nobody may ask: then the answers of each stream are believed, as the security page says.
        """
        for _ in range(ASKED_TIMES):
            if stream in self._secret:
                return (">",)
            try:
                state = await link.stream_state(stream)
            except SourceError as error:
                if error.reason not in _NO_ANSWER:
                    self._note_secret(stream, error)
                    return (">",)
                await trio.sleep(ASK_AGAIN_AFTER)
                continue
            return () if state is None else state.subjects
        return None

    def _note_secret(self, stream: str, error: SourceError) -> None:
        """Ask no more about a stream on this link if that is not permitted: a server logs each such request."""
        if error.reason == reasons.PERMISSION_DENIED and len(self._secret) < MAX_SECRET:
            self._secret.add(stream)

    async def serve(self, link: Link, tried: trio.Event) -> None:
        """Look the destinations up at once and every `LOOK_EVERY` seconds, for as long as the link lives."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._answer, link)
            await self._look_often(link, tried)

    async def _look_often(self, link: Link, tried: trio.Event) -> None:
        tried.set()  # nothing has to wait for it
        self._secret.clear()
        self._may_not_list = False
        self.sources.link_is_new()
        for one in self._all:
            if one.met is not None and one.met[0] in _OF_ONE_LINK:
                one.met = None
        if not any(one.waits_for_puback for one in self._all):
            self.first_look_over.set()
        while True:
            began = trio.current_time()
            self._look_now = trio.Event()
            pause = LOOK_EVERY if self._all else inf
            try:
                await self._look(link)
            except SourceError as error:
                self._not_known(error)
                if error.reason == reasons.PERMISSION_DENIED:
                    pause = DENIED_LOOK_EVERY
            self.first_look_over.set()
            for one in self._all:
                self._tell(one)
            await self._duplicates.warn(link, self._streams.values(), may_ask=not self._unknown)
            await self._find_unconfirmed(link)
            await self._look_at_sources(link, until=began + pause)

    async def _look_at_sources(self, link: Link, until: float) -> None:
        """Look at the streams that are read until it is time to look at the destinations.

        They are looked at as often where this user may not look up those of destinations.
        """
        while True:
            await self.sources.look(link, None if self._unknown else self._streams)
            with trio.move_on_at(min(until, trio.current_time() + self.sources.pause)):
                await self._look_now.wait()
                return
            if trio.current_time() >= until:
                return

    async def _look(self, link: Link) -> None:
        """Look up the streams behind all destinations. Raises `SourceError` (`reasons.LOOKUP_FAILED`)."""
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
            if name not in self._secret and (name in named or any(_behind(pattern, [stream]) for pattern in patterns))
        }
        self._note_early_acks()
        covered: dict[str, set[Hashable]] = {}
        for one in stored:
            if one.stream is None:
                behind = _behind(one.pattern, streams.values())
            else:
                behind = [streams[one.stream]] if one.stream in streams else []
            for stream in behind:
                if any(_covers(subject, one.pattern) for subject in stream.subjects):
                    covered.setdefault(stream.name, set()).add((one.route_name, one.template))
            self._found(one, behind)
        self._learned({stream.name: stream.subjects for stream in streams.values()}, covered)

    def _still_watched(self, some: Iterable[DestinationState]) -> list[DestinationState]:
        """Return those that were not forgotten meanwhile, and of which nothing is to be remembered then."""
        watched = set(self._all)
        return [one for one in some if one in watched]

    def _note_early_acks(self) -> None:
        """Warn once of each stream that confirms what it may still lose, as long as it does."""
        early = {name for name, stream in self._streams.items() if stream.acks_before_writing}
        for name in sorted(early - self._known_to_ack_early):
            self._emit(StreamAcksEarly(at=trio.current_time(), connection=self._connection, stream=name))
        self._known_to_ack_early = early

    async def _find_unconfirmed(self, link: Link) -> None:
        """Warn once of each core destination whose messages a stream stores.

        Only where streams matter already: a router without any asks nothing of JetStream.
        """
        if not any(one.waits_for_puback or one.route.redelivers for one in self._all):
            return
        for one in [one for one in self._all if not one.waits_for_puback and one not in self._core_looked_up]:
            self._core_looked_up.add(one)
            try:
                streams = await link.find_streams(one.pattern)
            except SourceError:
                return  # as for any other look-up: only publishes show whether they are accepted
            if streams:
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
        """Look at a stream, which was found by `pattern`, unless `answer` says how it is.

        One that we may not look at counts as fine. Of its subjects the patterns that it was found by are known.
        """
        if name in streams:
            if name in self._secret and pattern is not None:
                streams[name] = replace(streams[name], subjects=(*streams[name].subjects, pattern))
            return
        state = None
        if name not in self._secret:
            if answer is None:
                answer = (await _ask_for(link, [name]))[name]
            if not isinstance(answer, SourceError):
                state = answer
            elif answer.reason == reasons.PERMISSION_DENIED:
                self._secret.add(name)
            else:
                state = await self._without_leader(link, name, pattern, answer)
        if name in self._secret and pattern is not None:
            state = StreamState(name, (pattern,), None, (inf, inf), 0, (), None)
        if state is not None:
            streams[name] = state

    async def _without_leader(
        self, link: Link, name: str, pattern: str | None, error: SourceError
    ) -> StreamState | None:
        """Return a stream that JetStream lists without a leader to answer for it. Raise `error` if it does not."""
        known = self._streams.get(name)
        if known is None and pattern is not None:
            known = StreamState(name, (pattern,), None, (inf, inf), 0, (), None)
        if error.reason not in _NO_LEADER or self._may_not_list or known is None or not known.subjects:
            raise error
        try:
            names = await link.find_streams(known.subjects[0])
        except SourceError as of_all:
            self._may_not_list = of_all.reason == reasons.PERMISSION_DENIED
            raise error from None
        if name not in names:
            raise error
        told = (
            f"the stream {name!r} is not available: JetStream has it, and nobody answers for it, as if it had no "
            "leader; look at `nats server report jetstream`"
        )
        return replace(known, refuses=("stream_cut_off", told))

    def _found(self, one: DestinationState, streams: list[StreamState]) -> None:
        if not streams:
            told = (
                f"no stream takes {one.pattern!r}{self._gone(one)}; create one for it, or correct the destination; "
                "where the server maps the subject to another one, name the stream that takes that in `stream`"
            )
            if one.stream is not None:
                told = f"there is no stream {one.stream!r} here, which the destination names; create or correct it"
            self._missing(one, ("no_stream", told))
            return
        self._elsewhere.discard(one)
        self._last_stream[one] = streams[0].name
        # Its messages may all be for one of several that does take them: else, publishes tell.
        refusals = [stream.refuses for stream in streams if stream.refuses is not None]
        trouble = refusals[0] if len(refusals) == len(streams) else None
        one.found(trouble)
        before = self._refusing.setdefault(one, {stream.name: stream for stream in streams})
        if one.met is None or one.met[0] in _OF_ONE_LINK or trouble is not None:
            return
        if one.met[0] == reasons.LIMIT:
            # One without room for a message may be short of its limit: it counts as full until it has got more room.
            # That may have been before this first look at it: where the server named the limit, there may be none now.
            mended = any(s.name not in before or s.has_more_room_than(before[s.name]) for s in streams) or all(
                stream.takes_again(one.met[1]) for stream in streams
            )
        else:
            # What is not stored may be for those subjects that no stream takes.
            mended = one.stream is not None or any(
                _covers(subject, one.pattern) for stream in streams for subject in stream.subjects
            )
        if mended:
            one.met = None

    def _missing(self, one: DestinationState, trouble: tuple[str, str]) -> None:
        if one.looked_up == trouble and one.got_through:
            self._elsewhere.add(one)
        one.found(None if one in self._elsewhere else trouble)

    def _not_known(self, error: SourceError) -> None:
        for one in self._all:
            if one.waits_for_puback and one.looked_up is not None and one.looked_up[0] == "not_looked_up":
                one.found(None)
        if not self._unknown:
            self._unknown = True
            self._emit(
                DestinationsUnknown(
                    at=trio.current_time(), connection=self._connection, reason=error.reason, detail=str(error)
                )
            )

    def _tell(self, one: DestinationState) -> None:
        if one.got_through:
            one.met = None
        trouble = one.trouble
        before = self._told.get(one)
        # Once: but what shows only with a message is told besides what was told before any.
        fresh = before is None or (trouble is not None and trouble[0] == reasons.OTHER_STREAM != before)
        if trouble is not None and fresh and trouble[0] != "not_looked_up":
            reason, detail = trouble
            self._told[one] = reason
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
        elif trouble is None and one in self._told:
            del self._told[one]
            self._emit(
                DestinationStored(
                    at=trio.current_time(), route=one.route_name, connection=self._connection, subject=one.template
                )
            )


async def _ask_for(link: Link, names: Iterable[str]) -> dict[str, StreamState | SourceError | None]:
    """Look these up. Returns for each what was found, None if there is no such stream, or why it is not known."""
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


def _behind(pattern: str, streams: Iterable[StreamState]) -> list[StreamState]:
    return [stream for stream in streams if any(overlaps(subject, pattern) for subject in stream.subjects)]


def _covers(subject: str, pattern: str) -> bool:
    """Return True if whatever matches `pattern` matches `subject`, which may have wildcards too."""
    return matches_tokens(subject.split("."), pattern.split(".")) and (subject[-1] == ">" or pattern[-1] != ">")
