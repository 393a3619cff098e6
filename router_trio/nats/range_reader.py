"""Reads a range of a stream by a consumer of its own, which exists only as long as it is read.

That is about ten times as fast as requests for single messages. The consumer acks nothing, so it is only for streams
that keep their messages, whatever their consumers have acked. It is on the server that leads the stream, as the others
may be behind: they may lack messages, or still have deleted ones.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from secrets import token_hex

import trio

from router_trio.errors import LinkError, SourceError, reasons
from router_trio.nats.jetstream.api import StoredMessage
from router_trio.nats.requests import ANSWER_WITHIN, Request, Requests
from router_trio.nats.stored import StoredMessages
from router_trio.protocol import ack_reply, framing, headers

MOST_PULLED = 512
"""Messages of one pull request. The next ones are requested while these are used."""

MOST_CREATED = 16
"""Consumers that are created until one of them is on the server that leads the stream. The servers place them."""

PULLED_BYTES = 4 * 1024 * 1024
"""Bytes that these messages may have, estimated from previous ones."""

UNUSED_FOR = 60.0
"""Seconds after which the server deletes the consumer of a process that was killed."""

DELETED_WITHIN = 2.0
"""Seconds to wait until the consumer is deleted."""

HEARTBEAT, NO_MESSAGES = 100, 404
"""The status that means nothing, and the one with which a server ends a request if the consumer has no more messages.
"""


@dataclass(frozen=True, slots=True)
class StreamRange:
    """The messages of a stream from `first` to `last` whose subjects match one of `patterns`, and how they are read.

    Names of consumers begin with `owner`. With `headers_only` they deliver no payloads. `most` limits the messages of
    one pull request.
    """

    first: int
    last: int
    patterns: Sequence[str]
    owner: str
    headers_only: bool = False
    most: int = MOST_PULLED


async def read_stream(
    stored: StoredMessages, requests: Requests, wanted: StreamRange, *, by_consumer: bool
) -> AsyncGenerator[Sequence[StoredMessage], None]:
    """Yield the messages of a range in order, several at a time.

    They are read as the stream's leader has them: by consumers as far as that is possible, if `by_consumer`, and the
    rest by requests for single messages. The latter may also yield messages with other subjects, and some that have
    been deleted since. Raises `SourceError`.
    """
    position, last, patterns = wanted.first - 1, wanted.last, wanted.patterns
    while by_consumer and position < last:
        begin = position
        try:
            async with aclosing(read_range(stored, requests, replace(wanted, first=begin + 1))) as batches:
                async for batch in batches:
                    yield batch
                    position = batch[-1].sequence
            break
        except SourceError:  # not permitted, or no room for another consumer, or it was deleted or unused for too long
            by_consumer = position > begin
    pattern = patterns[0] if len(patterns) == 1 else ">"
    async with aclosing(stored.batches(position + 1, last, pattern)) as rest:
        async for batch in rest:
            yield batch


async def read_range(
    stored: StoredMessages, requests: Requests, wanted: StreamRange
) -> AsyncGenerator[Sequence[StoredMessage], None]:
    """Yield the messages of a range in order, several at a time.

    The consumer is deleted at the end, and when this is closed or cancelled while the link is open.

    When the consumer was created, its server had all messages of the stream's leader, unless it had just become the
    leader: ask the leader whether there is more behind the last message that was yielded. Raises `SourceError` if the
    servers refuse the consumer, place it nowhere else than behind the leader, or stop to deliver; everything up to
    there was yielded.
    """
    name, position, last, count = await _created(stored, wanted), wanted.first - 1, wanted.last, 1
    pull = _Pull(requests, stored.subject_of("CONSUMER.MSG.NEXT", name), stored.stream, name)
    try:
        pull.send(count)
        while not pull.is_done and position < last:
            messages = await pull.received()
            if not messages:
                break
            position = messages[-1].sequence
            size = sum(len(one.payload) + len(one.headers) for one in messages) // len(messages)
            count = max(1, min(2 * count, wanted.most, PULLED_BYTES // (size + 1)))
            if not pull.is_done and position < last:
                pull.send(count)  # arrives while these are used
            if batch := [one for one in messages if one.sequence <= last]:
                yield batch
    finally:
        pull.close()
        await _delete(stored, name)


async def _created(stored: StoredMessages, wanted: StreamRange) -> str:
    """Create a consumer on the server that leads the stream, and return its name. Raises `SourceError`."""
    for _ in range(MOST_CREATED):
        name, is_there, is_wanted = f"{wanted.owner}-{token_hex(8)}", True, False
        try:
            try:
                server = await stored.create_reader(
                    name, wanted.first, wanted.patterns, UNUSED_FOR, headers_only=wanted.headers_only
                )
            except SourceError:
                is_there = False
                raise
            # Only a server that leads the stream when the consumer exists already has what the leader had before.
            info = await stored.info()
            # Without a cluster, a consumer reports no server.
            is_wanted = server == info.group.leader or (not server and info.replicas == 1)
        finally:
            if is_there and not is_wanted:
                await _delete(stored, name)
        if is_wanted:
            return name
    detail = f"no consumer of stream {stored.stream} was placed on the server that leads it"
    raise SourceError(detail, reason=reasons.JETSTREAM)


async def _delete(stored: StoredMessages, name: str) -> None:
    """Delete the consumer, also if cancelled. If that fails, the server deletes it when it was unused for a while."""
    within = trio.CancelScope(deadline=trio.current_time() + DELETED_WITHIN, shield=True)
    with within, suppress(SourceError, LinkError):
        await stored.delete_consumer(name)


class _Pull:
    """The pull requests of one consumer, one at a time, and what arrived for the last one."""

    def __init__(self, requests: Requests, subject: bytes, stream: str, consumer: str) -> None:
        self.is_done: bool = False
        """True if the consumer has no more messages."""
        self._requests = requests
        self._stream = stream
        self._subject = subject
        self._inbox = b"%b-%b" % (requests.inbox, consumer.encode())
        self._replies = ack_reply.pattern(framing.wire(stream), consumer.encode())
        self._subscription = requests.subscribe(self._inbox, self._arrived)
        self._watched: Request | None = None
        self._wanted = 0
        self._number = 0
        self._sequence = 0
        self._messages: list[StoredMessage] = []
        self._is_complete = False
        self._failure: SourceError | None = None

    def send(self, count: int) -> None:
        """Request the next `count` messages."""
        self._wanted, self._messages, self._is_complete = count, [], False
        body = json.dumps({"batch": count, "no_wait": True}).encode()
        self._watched = self._requests.send(self._subject, body, reply=self._inbox)

    async def received(self) -> Sequence[StoredMessage]:
        """Return what was requested, and less at the end of the stream. Raises `SourceError`; can be cancelled."""
        watched = self._watched
        assert watched is not None, "something was requested"
        with trio.move_on_after(ANSWER_WITHIN) as scope:
            while not self._is_complete and self._failure is None and watched.refusal is None:
                known = len(self._messages)
                await watched.arrived.wait()
                watched.arrived = trio.Event()
                if len(self._messages) > known:
                    scope.deadline = trio.current_time() + ANSWER_WITHIN
        watched.forget()
        if watched.refusal is not None:
            raise watched.refusal
        if self._failure is not None:
            raise self._failure
        if not self._is_complete:
            detail = f"a consumer of stream {self._stream} delivered nothing within {ANSWER_WITHIN:g} s"
            raise SourceError(detail, reason=reasons.TIMEOUT)
        return self._messages

    def close(self) -> None:
        """Stop to listen."""
        if self._watched is not None:
            self._watched.forget()
        self._requests.unsubscribe(self._subscription)

    def _arrived(self, batch: Sequence[framing.RawMessage]) -> None:
        for raw in batch:
            if self._is_complete or self._failure is not None:
                break
            if self._replies.fullmatch(raw[1]) is not None:
                self._add(raw)
            elif status := headers.status(framing.header_block(raw))[0]:
                self._end(raw, status)
        if self._watched is not None:
            self._watched.arrived.set()

    def _add(self, raw: framing.RawMessage) -> None:
        tokens = ack_reply.tokens(raw[1])
        sequence, number, time_ns, pending = (
            int(tokens[place] or b"0")
            for place in (ack_reply.SEQUENCE, ack_reply.NUMBER, ack_reply.TIME, ack_reply.PENDING)
        )
        if raw[0] == self._inbox:
            # An import between accounts may deliver under the subject of the reply.
            detail = f"a consumer of stream {self._stream} delivers without the subjects of the messages"
            self._failure = SourceError(detail, reason=reasons.BAD_ANSWER)
            return
        if number != self._number + 1 or sequence <= self._sequence:
            detail = f"a consumer of stream {self._stream} delivered message {sequence:,} as number {number:,}, after "
            detail += f"{self._sequence:,} as number {self._number:,}"
            self._failure = SourceError(detail, reason=reasons.BAD_ANSWER)
            return
        self._number, self._sequence = number, sequence
        block = headers.without_status(framing.header_block(raw))
        self._messages.append(StoredMessage(sequence, time_ns, framing.text(raw[0]), block, framing.payload(raw)))
        self.is_done = not pending
        self._is_complete = self.is_done or len(self._messages) == self._wanted

    def _end(self, raw: framing.RawMessage, status: int) -> None:
        if status == NO_MESSAGES:
            self.is_done = self._is_complete = True
        elif status != HEARTBEAT:
            description = headers.status(framing.header_block(raw))[1]
            detail = f"a consumer of stream {self._stream} ended: {status} {description}".rstrip()
            self._failure = SourceError(detail, reason=reasons.JETSTREAM)
