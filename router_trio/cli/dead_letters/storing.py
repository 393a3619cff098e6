"""Sends copies of messages to their streams and subscribers, and reads back what is stored.

A PubAck alone is not believed: a stream with interest retention and no consumer acks what it does not keep, an id that
another message has is acked as a duplicate, and anyone who knows an inbox can make up an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from router_trio.cli.dead_letters.letter import Letter, is_newer
from router_trio.cli.dead_letters.links import CommandLink
from router_trio.errors import SourceError
from router_trio.errors.quotes import excerpt
from router_trio.nats.jetstream.api import StoredMessage, StreamInfo
from router_trio.nats.jetstream.pubacks import Refused, read_puback
from router_trio.nats.jetstream.streams import is_name
from router_trio.nats.requests import Request
from router_trio.nats.stored import StoredMessages
from router_trio.protocol import framing, headers, message_ids
from router_trio.routing.rehearsal import Copy
from router_trio.subjects.patterns import matches

_OF_TRACES = frozenset({"traceparent", "tracestate"})
"""Headers that may differ between two copies of one message."""


class Kept(Exception):
    """A dead letter stays where it is; the text says why."""


@dataclass(slots=True)
class Sent:
    """A copy that was sent. `stream` is where it should be stored, None for a core publish."""

    copy: Copy
    request: Request
    stream: StreamInfo | None
    sequence: int = 0
    duplicate: bool = False
    reading: Request | None = field(default=None, repr=False)


class Streams:
    """The streams of the connections that a command has links to, and what it stores there."""

    def __init__(self, links: Mapping[str, CommandLink]) -> None:
        self._links = links
        self._known: dict[str, dict[str, StreamInfo]] = {name: {} for name in links}
        self._consumed: dict[tuple[str, str], int] = {}

    def stored(self, connection: str, stream: str) -> StoredMessages:
        """Return the messages of a stream."""
        link = self._links[connection]
        return StoredMessages(stream, link.requests, link.link.api.prefix)

    async def info(self, connection: str, stream: str) -> StreamInfo:
        """Return what a stream is, as it was when it was first asked for. Raises `SourceError`."""
        known = self._known[connection]
        if stream not in known:
            known[stream] = await self.stored(connection, stream).info()
        return known[stream]

    async def taking(self, connection: str, subject: str) -> StreamInfo:
        """Return the stream that takes a subject. Raises `Kept` if there is none, and `SourceError`."""
        for info in self._known[connection].values():
            if any(matches(one, subject) for one in info.subjects):
                return info
        names = await self._links[connection].link.find_streams(subject)
        if not names or not is_name(names[0]):
            raise Kept(f"no stream takes {excerpt(subject)}; make one, or correct the destination of the route")
        return await self.info(connection, names[0])

    async def stream_for(self, copy: Copy, letter: Letter) -> StreamInfo | None:
        """Return the stream that will store a copy, None for a core publish. Raises `Kept` and `SourceError`.

        Where a stream keeps one message of each subject, an old one would replace a newer one: that is not done.
        """
        if not copy.jetstream:
            return None
        if copy.stream is not None:
            info = await self.info(copy.connection, copy.stream)
        else:
            info = await self.taking(copy.connection, copy.subject)
        if info.no_ack:
            raise Kept(f"stream {info.name} confirms nothing (no_ack), so nothing counts as stored; switch its acks on")
        if keeps_the_last(info):
            if not any(matches(one, copy.subject) for one in info.subjects):
                raise Kept(
                    f"stream {info.name} keeps one message of each subject, and {excerpt(copy.subject)} is none that "
                    "it takes: whether it has a newer one is not known"
                )
            last = await self.stored(copy.connection, info.name).last(copy.subject)
            at_source = info.name == letter.stream
            if last is not None and is_newer(last, letter, message_ids.find(copy.headers), at_source=at_source):
                raise Kept(
                    f"stream {info.name} has a newer message on {excerpt(copy.subject)} (sequence {last.sequence}), "
                    "which this one would replace; purge this one if it is out of date"
                )
        return info

    def send(self, copy: Copy, stream: StreamInfo | None) -> Sent:
        """Send a copy. Does not wait."""
        requests = self._links[copy.connection].requests
        return Sent(copy, requests.send(framing.wire(copy.subject), copy.payload, copy.headers), stream)

    async def fence(self, connection: str) -> None:
        """Wait until the server has received all that was sent."""
        await self._links[connection].link.fence()

    def heard(self, sent: Sent) -> None:
        """Make sure that a core publish behind a fence had a subscriber. Raises `Kept`."""
        request = sent.request
        request.forget()
        if request.denied is not None:
            raise Kept(request.denied)
        answer = request.answer
        if answer is not None and headers.status(framing.header_block(answer))[0] == 503:
            raise Kept(f"nobody subscribes to {excerpt(sent.copy.subject)}; start who does, and try again")

    async def acked(self, sent: Sent) -> None:
        """Wait for the PubAck of a copy, and ask for the message that it names. Raises `Kept`."""
        stream = sent.stream
        assert stream is not None
        try:
            (name, _), sent.sequence, sent.duplicate = read_puback(await sent.request.answered())
        except SourceError as error:
            raise Kept(f"it was not stored: {error}") from error
        except Refused as error:
            told = f"stream {excerpt(error.stream)!r}: {error.detail}" if error.stream else error.detail
            raise Kept(f"it was not stored: {error.reason}: {told}") from error
        if name != stream.name:
            named = excerpt(name)
            raise Kept(f"its PubAck names the stream {named}, and {excerpt(sent.copy.subject)} is of {stream.name}")
        sent.reading = self.stored(sent.copy.connection, name).ask_for(sent.sequence)

    async def is_there(self, sent: Sent) -> None:
        """Make sure that the stream has a copy, or a consumer got it from there. Raises `Kept` and `SourceError`."""
        stream, copy, reading = sent.stream, sent.copy, sent.reading
        assert stream is not None and reading is not None  # noqa: PT018
        found = await self.stored(copy.connection, stream.name).found(reading)
        if found is not None:
            if not is_copy(found, copy, stream):
                told = "has another message with its Nats-Msg-Id" if sent.duplicate else "stored something else"
                raise Kept(f"stream {stream.name} {told} (sequence {sent.sequence}); compare the two")
        elif not await self._was_consumed(sent, stream):
            told = f"stream {stream.name} acked it as {sent.sequence} and does not have it"
            if stream.retention == "interest":
                told += ": it keeps nothing that no consumer wants; make the consumer first"
            raise Kept(told)

    async def _was_consumed(self, sent: Sent, stream: StreamInfo) -> bool:
        """Return True if a consumer of a stream that deletes what is settled has passed the message."""
        if stream.retention not in ("interest", "workqueue"):
            return False
        copy, place = sent.copy, (sent.copy.connection, sent.copy.subject)
        if sent.sequence > self._consumed.get(place, 0):
            delivered = [
                one.delivered.sequence
                for one in await self.stored(copy.connection, stream.name).consumers()
                if not one.config.filter_subjects
                or any(matches(pattern, copy.subject) for pattern in one.config.filter_subjects)
            ]
            self._consumed = {place: max(delivered, default=0)}
        return sent.sequence <= self._consumed[place]


def keeps_the_last(info: StreamInfo) -> bool:
    """Return True for a stream in which the last message of a subject is its value: a bucket, or one for each."""
    return info.max_messages_per_subject == 1 or info.name.startswith("KV_")


def is_copy(found: StoredMessage, copy: Copy, stream: StreamInfo) -> bool:
    """Return True if a stored message is what was sent."""
    if stream.allow_counter:
        # The stream stores a sum in its place.
        return message_ids.find(found.headers) == message_ids.find(copy.headers)
    # A stream with a transform changes subjects, and so may the server on the way to one that is named.
    same_subject = found.subject == copy.subject or stream.has_others or copy.stream is not None
    return same_subject and found.payload == copy.payload and _compared(found.headers) == _compared(copy.headers)


def _compared(block: bytes) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers.decode(block).pairs() if name.lower() not in _OF_TRACES]
