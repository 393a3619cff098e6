"""Send copies of messages to their streams and subscribers, and read the stored copies back.

A PubAck alone is no proof: a stream with interest retention and no consumer acks a message that it does not keep, the
id of another message is acked as a duplicate, and anyone who knows an inbox can forge an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from router_trio.audit.letter import Letter, is_newer
from router_trio.errors import SourceError
from router_trio.errors.quotes import excerpt
from router_trio.nats.command_link import CommandLink
from router_trio.nats.jetstream.api import StoredMessage, StreamInfo
from router_trio.nats.jetstream.pubacks import Refused, read_puback
from router_trio.nats.jetstream.streams import is_name
from router_trio.nats.requests import Request
from router_trio.nats.stored import StoredMessages
from router_trio.protocol import framing, headers, message_ids
from router_trio.routing.rehearsal import Copy
from router_trio.subjects.patterns import matches

_TRACE_HEADERS = frozenset({"traceparent", "tracestate"})
"""Headers that may differ between two copies of one message."""


class Kept(Exception):
    """A dead letter stays in its stream; the text is the reason."""


@dataclass(slots=True)
class Sent:
    """A copy that was sent. `stream` is the stream that should store it, None for a core publish."""

    copy: Copy
    request: Request
    stream: StreamInfo | None
    sequence: int = 0
    duplicate: bool = False
    reading: Request | None = field(default=None, repr=False)


class Streams:
    """The streams behind the links of a command, and the copies that the command stores there."""

    def __init__(self, links: Mapping[str, CommandLink]) -> None:
        self._links = links
        self._known: dict[str, dict[str, StreamInfo]] = {name: {} for name in links}
        self._consumed: dict[tuple[str, str], int] = {}

    def stored(self, connection: str, stream: str) -> StoredMessages:
        """Return the messages of a stream."""
        return self._links[connection].stored(stream)

    async def info(self, connection: str, stream: str) -> StreamInfo:
        """Return the state of a stream, from the first request for it. Raises `SourceError`."""
        known = self._known[connection]
        if stream not in known:
            known[stream] = await self.stored(connection, stream).info()
        return known[stream]

    async def stream_taking(self, connection: str, subject: str) -> StreamInfo:
        """Return the stream that takes a subject. Raises `Kept` if there is none, and `SourceError`."""
        for info in self._known[connection].values():
            if any(matches(pattern, subject) for pattern in info.subjects):
                return info
        names = await self._links[connection].link.find_streams(subject)
        if not names or not is_name(names[0]):
            raise Kept(f"no stream takes {excerpt(subject)}; create one, or correct the destination of the route")
        return await self.info(connection, names[0])

    async def stream_for(self, copy: Copy, letter: Letter) -> StreamInfo | None:
        """Return the stream that will store a copy; None for a core publish. Raises `Kept` and `SourceError`.

        If the stream keeps one message per subject, a copy that would replace a newer message raises `Kept`.
        """
        if not copy.jetstream:
            return None
        if copy.stream is not None:
            info = await self.info(copy.connection, copy.stream)
        else:
            info = await self.stream_taking(copy.connection, copy.subject)
        if info.no_ack:
            raise Kept(
                f"stream {info.name} sends no PubAcks (no_ack), so no copy is known to be stored; enable its acks"
            )
        if keeps_the_last(info):
            if not any(matches(pattern, copy.subject) for pattern in info.subjects):
                raise Kept(
                    f"stream {info.name} keeps one message per subject but does not take {excerpt(copy.subject)}, so "
                    "it is not known whether it has a newer message"
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
        """Wait until the server has received everything that was sent."""
        await self._links[connection].link.fence()

    def check_delivered(self, sent: Sent) -> None:
        """Check after a fence that a core publish had a subscriber. Raises `Kept` if not."""
        request = sent.request
        request.forget()
        if request.refusal is not None:
            raise Kept(str(request.refusal))
        answer = request.answer
        if answer is not None and headers.status(framing.header_block(answer))[0] == 503:
            raise Kept(f"{excerpt(sent.copy.subject)} has no subscriber; start one, and try again")

    async def wait_for_puback(self, sent: Sent) -> None:
        """Wait for the PubAck of a copy, and request the message that it names. Raises `Kept`."""
        stream = sent.stream
        assert stream is not None
        try:
            (name, _), sent.sequence, sent.duplicate = read_puback(await sent.request.answered())
        except SourceError as error:
            raise Kept(f"it was not stored: {error}") from error
        except Refused as error:
            detail = f"stream {excerpt(error.stream)!r}: {error.detail}" if error.stream else error.detail
            raise Kept(f"it was not stored: {error.reason}: {detail}") from error
        if name != stream.name:
            subject = excerpt(sent.copy.subject)
            raise Kept(f"its PubAck names stream {excerpt(name)}, but {subject} belongs to stream {stream.name}")
        sent.reading = self.stored(sent.copy.connection, name).ask_for(sent.sequence)

    async def check_stored(self, sent: Sent) -> None:
        """Check that the stream has a copy, or that a consumer has received it. Raises `Kept` and `SourceError`."""
        stream, copy, reading = sent.stream, sent.copy, sent.reading
        assert stream is not None and reading is not None  # noqa: PT018
        found = await self.stored(copy.connection, stream.name).found(reading)
        if found is not None:
            if not is_copy(found, copy, stream):
                problem = "has another message with its Nats-Msg-Id" if sent.duplicate else "stored another message"
                raise Kept(f"stream {stream.name} {problem} (sequence {sent.sequence}); compare the two")
        elif not await self._was_consumed(sent, stream):
            problem = f"stream {stream.name} acked it as sequence {sent.sequence} but does not have it"
            if stream.retention == "interest":
                problem += ": it keeps only messages that match a consumer; create the consumer first"
            raise Kept(problem)

    async def _was_consumed(self, sent: Sent, stream: StreamInfo) -> bool:
        """Return True if the stream deletes acked messages, and a consumer has received this one."""
        if stream.retention not in ("interest", "workqueue"):
            return False
        copy, place = sent.copy, (sent.copy.connection, sent.copy.subject)
        if sent.sequence > self._consumed.get(place, 0):
            delivered = [
                consumer.delivered.sequence
                for consumer in await self.stored(copy.connection, stream.name).consumers()
                if not consumer.config.filter_subjects
                or any(matches(pattern, copy.subject) for pattern in consumer.config.filter_subjects)
            ]
            self._consumed = {place: max(delivered, default=0)}
        return sent.sequence <= self._consumed[place]


def keeps_the_last(info: StreamInfo) -> bool:
    """Return True if the last message of a subject is its value: in a KV bucket, or with one message per subject."""
    return info.max_messages_per_subject == 1 or info.name.startswith("KV_")


def is_copy(found: StoredMessage, copy: Copy, stream: StreamInfo) -> bool:
    """Return True if a stored message is the copy that was sent."""
    if stream.allow_counter:
        # The stream stores the sum instead of the payload.
        return message_ids.find(found.headers) == message_ids.find(copy.headers)
    # A stream with a subject transform stores another subject, and the server may map subjects before a named stream.
    same_subject = found.subject == copy.subject or stream.has_others or copy.stream is not None
    return same_subject and found.payload == copy.payload and _comparable(found.headers) == _comparable(copy.headers)


def _comparable(block: bytes) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers.decode(block).pairs() if name.lower() not in _TRACE_HEADERS]
