"""Ask the servers of a configuration what findings need to know. Nothing is changed, published or delivered.

Only requests that read are sent to JetStream. A permission to publish is tested by a message with `Nats-Trace-Only`,
which servers check and neither deliver nor store (2.11 or newer; ADR-41). JetStream gets requests all the same, and
refuses those of such tests because their bodies are invalid. A permission to subscribe is tested by a subscription to
an example of a subject, with a token that no other client uses.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any, TypeVar

from router_trio.errors import SourceError, codes, reasons
from router_trio.nats.command_link import CommandLink
from router_trio.nats.jetstream import members
from router_trio.nats.jetstream.api import (
    NOT_FOUND,
    ApiError,
    ConsumerInfo,
    StreamInfo,
    consumer_info,
    consumer_list,
    nanoseconds,
    no_jetstream,
    stream_info,
    stream_names,
)
from router_trio.nats.jetstream.flows import StreamFlow, stream_flows
from router_trio.nats.jetstream.sourced_stream import Partitioned, read_partitioned
from router_trio.nats.requests import Request, all_answered
from router_trio.online.facts import Facts, Key, ServerFacts, UnaskedError, Unknown
from router_trio.online.parts import Destination, declared_in, destinations_of, partitioned_in, sent_by, sources_of
from router_trio.protocol import framing, headers
from router_trio.settings import Settings
from router_trio.settings.permissions import permissions_of

T = TypeVar("T")

TRACES_SINCE = (2, 11)
"""The version of nats-server since which a permission to publish can be tested without a message."""

TOO_OLD = "nats-server before 2.11 has no test without a message"

NO_SUBJECT = "the test needs a subject to which this user may publish without effect; let it publish to its own inbox"

AT_A_TIME = 256
"""Requests that are sent at a time."""

MOST_TAKERS = 256
"""Streams of one destination that are looked up."""

INVALID = b"{"
"""A body that JetStream refuses as invalid JSON in every request, pulls included.

`Nats-Trace-Only` does not keep requests from JetStream, and a pull whose body does not begin like JSON gets a message.
"""


@dataclass
class _Asked:
    """The answers of one connection so far."""

    link: CommandLink
    api: str
    streams: dict[str, StreamInfo | Unknown | None] = field(default_factory=dict)
    consumers: dict[tuple[str, str], ConsumerInfo | Unknown | None] = field(default_factory=dict)
    takers: dict[str, tuple[str, ...] | Unknown] = field(default_factory=dict)
    permissions: dict[Key, str | Unknown | None] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    """The subjects of requests that were denied, with the server's words."""
    answered: str | None = None
    """The subject of a request that reads and was answered."""
    no_jetstream: str | None = None
    skew: float | None = None
    untested: str | None = None
    partitioned: dict[str, Partitioned] = field(default_factory=dict)
    flows: dict[str, StreamFlow] | Unknown = field(default_factory=dict)

    async def each(self, asked: Sequence[tuple[str, bytes]], read: Callable[[bytes], T]) -> list[T | Unknown | None]:
        """Send requests, and return their answers; None for what does not exist."""
        found: list[T | Unknown | None] = []
        for first in range(0, len(asked), AT_A_TIME):
            subjects = [f"{self.api}.{request}" for request, _ in asked[first : first + AT_A_TIME]]
            bodies = [body for _, body in asked[first : first + AT_A_TIME]]
            pairs = zip(subjects, bodies, strict=True)
            sent = [self.link.requests.send(framing.wire(subject), body) for subject, body in pairs]
            await all_answered(sent)
            found += [await self._answer(one, subject, read) for one, subject in zip(sent, subjects, strict=True)]
        return found

    async def _answer(self, request: Request, subject: str, read: Callable[[bytes], T]) -> T | Unknown | None:
        try:
            raw = await request.answered()
        except SourceError as error:
            if error.reason == reasons.PERMISSION_DENIED:
                self.refused[subject] = str(error)
            return Unknown(str(error))
        if headers.status(framing.header_block(raw))[0] == 503:
            self.no_jetstream = no_jetstream(self.api)
            return Unknown(self.no_jetstream, reported=True)
        self.answered = subject
        try:
            return read(framing.payload(raw))
        except ApiError as error:
            if error.error_code in codes.NO_JETSTREAM:
                self.no_jetstream = no_jetstream(self.api)
                return Unknown(self.no_jetstream, reported=True)
            if error.code == NOT_FOUND:
                return None
            return Unknown(f"JetStream answered to {subject}: {error.explained}")
        except ValueError as error:
            return Unknown(f"the answer to {subject} is not a valid JetStream answer: {error}")

    async def look_up(self, names: Iterable[str]) -> None:
        """Look up these streams, and their partitions."""
        new = [name for name in dict.fromkeys(names) if name not in self.streams]
        answers = await self.each([(f"STREAM.INFO.{one}", b"") for one in new], read_partitioned)
        for name, answer in zip(new, answers, strict=True):
            found = answer if answer is None or isinstance(answer, Unknown) else answer[0]
            self.streams[name] = found
            if isinstance(answer, tuple) and answer[1] is not None:
                self.partitioned[name] = answer[1]

    async def look_up_consumers(self, names: Iterable[tuple[str, str]]) -> None:
        """Look up these consumers of streams."""
        new = list(dict.fromkeys(names))
        asked = [(f"CONSUMER.INFO.{stream}.{durable}", b"") for stream, durable in new]
        self.consumers.update(zip(new, await self.each(asked, consumer_info), strict=True))

    async def find(self, path: str, subjects: Iterable[str]) -> None:
        """Find the streams that take some of these subjects."""
        asked = [("STREAM.NAMES", json.dumps({"subject": one}).encode()) for one in subjects]
        names: list[str] = []
        for answer in await self.each(asked, stream_names):
            if isinstance(answer, Unknown):
                self.takers[path] = answer
                return
            names += answer or ()
        self.takers[path] = tuple(dict.fromkeys(names))[:MOST_TAKERS]

    async def look_around(self) -> None:
        """Look up what all streams of the account do with messages, and the routes that read them."""
        [page] = await self.each([("STREAM.LIST", b"")], stream_flows)
        if isinstance(page, Unknown) or page is None:
            self.flows = page or Unknown("there is no list of streams")
            return
        read = [one for one in page if one.consumers]
        listed = await self.each([(f"CONSUMER.LIST.{one.name}", b"") for one in read], consumer_list)
        self.flows = {one.name: one for one in page}
        for flow, answer in zip(read, listed, strict=True):
            if isinstance(answer, tuple):
                self.flows[flow.name] = flow.read_by(answer[0])

    async def measure_clock(self) -> None:
        """Compare the clock of a server that answered with ours."""
        there = next((name for name, info in self.streams.items() if isinstance(info, StreamInfo) and info.now), None)
        if there is not None:
            before = time.time()
            [info] = await self.each([(f"STREAM.INFO.{there}", b"")], stream_info)
            after = time.time()
            if isinstance(info, StreamInfo):
                self.skew = _skew(before, nanoseconds(info.now) / 1e9, after)

    def facts(self) -> ServerFacts:
        """Return the answers."""
        info = self.link.link.info
        return ServerFacts(
            version=info.version,
            major_minor=info.major_minor,
            max_payload=info.max_payload,
            no_jetstream=self.no_jetstream,
            skew=self.skew,
            streams=self.streams,
            consumers=self.consumers,
            takers=self.takers,
            permissions=self.permissions,
            untested=self.untested,
            partitioned=self.partitioned,
            flows=self.flows,
        )


def _skew(before: float, server: float, after: float) -> float:
    """Return by how much a clock is ahead, at least, of one that was read before and after: 0 if it was between."""
    return min(server - before, 0.0) + max(server - after, 0.0)


async def ask(
    settings: Settings, links: Mapping[str, CommandLink], unreachable: Mapping[str, Unknown], outage: float | None
) -> Facts:
    """Ask the servers over these links. Raises `LinkError` if a link is lost. Can be cancelled."""
    asked = {name: _Asked(link, settings.connections[name].api) for name, link in links.items()}
    sources, destinations = list(sources_of(settings)), list(destinations_of(settings))
    for name, here in asked.items():
        own = [one for one in sources if one.connection == name]
        declared = [one.stream.name for one in declared_in(settings) if one.connection == name]
        named = [to.stream for to in destinations if to.connection == name and to.stream is not None]
        partitioned = [one for one in partitioned_in(settings) if one.connection == name]
        buckets = [members.STREAM] if partitioned else []
        await here.look_up([*(one.stream for one in own), *declared, *named, *buckets])
        known = Facts(settings, {name: here.facts()})
        # A stream with partitions has no copy, and the permissions of its route contain none.
        copied = [one for one in partitioned if not known.has_partitions(one)]
        await here.look_up(one.copy for one in copied)
        plain = ((one.stream, one.durable) for one in own if one not in partitioned or one in copied)
        await here.look_up_consumers([*plain, *_durables(settings, name, here)])
    for to in destinations:
        if to.stream is None and to.connection in asked:
            await asked[to.connection].find(to.path, map(".".join, sent_by(to, _read(settings, asked, to))))
    for one in declared_in(settings):
        if one.connection in asked and asked[one.connection].streams[one.stream.name] is None:
            await asked[one.connection].find(one.path, one.stream.subjects)
    for name, here in asked.items():
        await here.look_up(one for taken in here.takers.values() if not isinstance(taken, Unknown) for one in taken)
        await here.measure_clock()
        await here.look_around()
        await _test_permissions(settings, name, here)
    return Facts(
        settings,
        {name: asked[name].facts() if name in asked else unreachable[name] for name in settings.connections},
        outage,
    )


def _durables(settings: Settings, connection: str, here: _Asked) -> Iterator[tuple[str, str]]:
    """Yield the stream and the durable of each partition of the routes from a connection, as far as they are known."""
    known = Facts(settings, {connection: here.facts()})
    for source in partitioned_in(settings):
        if source.connection == connection:
            with contextlib.suppress(UnaskedError):
                yield from ((one.stream, one.durable) for one in known.durables(source))


def _read(settings: Settings, asked: Mapping[str, _Asked], to: Destination) -> Any:
    """Return the subjects of the stream that a route reads, None if they are not known."""
    source = to.route.source
    stream = source.kind.stream(source)
    if stream is None or source.connection not in asked:
        return None
    info = asked[source.connection].streams.get(stream)
    return info.stores if isinstance(info, StreamInfo) else None


# --- permissions ---


async def _test_permissions(settings: Settings, connection: str, here: _Asked) -> None:
    """Find out which of the permissions of a connection its user lacks."""
    token = f"router-trio-check-{token_hex(6)}"
    publish: list[tuple[Key, str]] = []
    for grant in permissions_of(settings, connection):
        key = (grant.kind, grant.subject)
        if grant.kind == "publish":
            publish.append((key, _example(grant.subject, token)))
        else:
            here.permissions[key] = await _test_subscribe(here.link, grant.subject, token)
    here.permissions.update(await _test_publish(here, publish))


async def _test_subscribe(link: CommandLink, granted: str, token: str) -> str | Unknown | None:
    subject, _, queue = granted.partition(" ")
    example = _example(subject, token)
    if queue and example == subject:
        # A member of the group would take messages from it.
        return Unknown("it can't be tested without taking messages from the queue group", reported=True)
    try:
        subscription = await link.link.subscribe(example, lambda batch: None, queue=queue or None)
    except SourceError as error:
        why = str(error).removesuffix("; grant the permission")
        return why if error.reason == reasons.PERMISSION_DENIED else Unknown(why)
    subscription.close()
    return None


async def _test_publish(here: _Asked, tested: Sequence[tuple[Key, str]]) -> dict[Key, str | Unknown | None]:
    version = here.link.link.info.major_minor
    destination = None
    if version is None or version < TRACES_SINCE:
        here.untested = TOO_OLD
    elif (destination := await _trace_destination(here)) is None:
        here.untested = NO_SUBJECT
    if destination is None:
        # Requests that were denied while asking are known all the same.
        return {key: here.refused.get(example, Unknown(here.untested or "", reported=True)) for key, example in tested}
    found: dict[Key, str | Unknown | None] = {}
    sent = [(key, _trace(here, example, destination)) for key, example in tested]
    await here.link.link.fence()
    for key, request in sent:
        request.forget()
        found[key] = None if request.refusal is None else str(request.refusal)
    return found


async def _trace_destination(here: _Asked) -> str | None:
    """Return a subject that the reports of tests may be sent to without any effect; None if none is known.

    Since 2.12.6 the user must be allowed to publish there: to the own inbox, or else to a request that only reads.
    """
    inbox = framing.text(here.link.requests.inbox) + ".trace"
    test = _trace(here, inbox, inbox)
    await here.link.link.fence()
    test.forget()
    return inbox if test.refusal is None else here.answered


def _trace(here: _Asked, subject: str, destination: str) -> Request:
    block = f"NATS/1.0\r\nNats-Trace-Dest: {destination}\r\nNats-Trace-Only: true\r\n\r\n"
    return here.link.requests.send(framing.wire(subject), INVALID, framing.wire(block))


def _example(subject: str, token: str) -> str:
    """Return a subject that matches a pattern, and that nothing is subscribed to if it has a wildcard."""
    return ".".join(token if one in ("*", ">") else one for one in subject.split("."))
