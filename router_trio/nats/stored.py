"""Reads and deletes the messages of one stream one by one: for commands, and for any kind of stream.

No consumer is created, because a consumer would take messages from a work-queue stream. Several messages are requested
at a time, as many as fit into a few MiB, so that a stream of millions takes no more memory than one of hundreds.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, TypeVar

from router_trio.errors import SourceError, codes, reasons
from router_trio.nats.jetstream.api import (
    MAX_ANSWER,
    NOT_FOUND,
    ApiError,
    ConsumerInfo,
    StoredMessage,
    StreamInfo,
    config_fields,
    consumer_info,
    consumer_list,
    done,
    nanoseconds,
    no_jetstream,
    stored_message,
    stream_info,
)
from router_trio.nats.requests import Request, Requests, all_answered
from router_trio.protocol import bounded_json, framing, headers
from router_trio.subjects.patterns import matches

T = TypeVar("T")

MOST_TOGETHER = 256
"""Messages requested at a time."""

MOST_CONSUMERS = 4096
"""Consumers of one stream that are listed."""

RARE = 16
"""If fewer than one in this many messages match, the next match is requested instead of the messages between."""

TOGETHER_BYTES = 8 * 1024 * 1024
"""Bytes that these messages may have, estimated from previous ones."""


class StoredMessages:
    """A stream as a command sees it. Every method raises `SourceError` if the server refuses a request.

    `api` is the prefix of the subjects of the JetStream API. `declared`: a router creates the stream if it is missing.
    """

    def __init__(self, stream: str, requests: Requests, api: str, *, declared: bool = False) -> None:
        self.stream = stream
        self._declared = declared
        self._requests = requests
        self._api = api

    async def info(self) -> StreamInfo:
        """Return the configuration and state of the stream."""
        return await self._answer(self._ask("STREAM.INFO"), stream_info)

    async def of_stream(self, what: str, read: Callable[[bytes], T], body: Mapping[str, object] | None = None) -> T:
        """Return the answer to a request about the stream, `STREAM.what`."""
        return await self._answer(self._ask(f"STREAM.{what}", body), read)

    async def clock(self) -> int | None:
        """Return the time of the stream's leader, in nanoseconds since 1970; None before nats-server 2.10."""
        return await self._answer(self._ask("STREAM.INFO"), server_time)

    async def get(self, sequence: int) -> StoredMessage | None:
        """Return one message; None if there is none with that sequence."""
        return await self.found(self.ask_for(sequence))

    async def get_each(self, sequences: Sequence[int]) -> list[StoredMessage | None]:
        """Return these messages in order, requested at the same time; None for each that does not exist."""
        asked = [self.ask_for(sequence) for sequence in sequences]
        await all_answered(asked)
        return [await self.found(one) for one in asked]

    def ask_for(self, sequence: int) -> Request:
        """Request one message. `found` returns it."""
        return self._ask("STREAM.MSG.GET", {"seq": sequence})

    async def last(self, subject: str) -> StoredMessage | None:
        """Return the newest message with this subject; None if there is none."""
        return await self.found(self._ask("STREAM.MSG.GET", {"last_by_subj": subject}))

    async def last_each(self, subjects: Sequence[str]) -> list[StoredMessage | None]:
        """Return the newest message with each of these subjects, in order; None for each without one."""
        found: list[StoredMessage | None] = []
        for start in range(0, len(subjects), MOST_TOGETHER):
            together = subjects[start : start + MOST_TOGETHER]
            asked = [self._ask("STREAM.MSG.GET", {"last_by_subj": one}) for one in together]
            await all_answered(asked)
            found += [await self.found(one) for one in asked]
        return found

    async def next(self, sequence: int, pattern: str = ">") -> StoredMessage | None:
        """Return the first message from `sequence` on whose subject matches; None if there is none."""
        return await self.found(self._ask("STREAM.MSG.GET", {"seq": sequence, "next_by_subj": pattern}))

    async def first_at(self, time_ns: int, info: StreamInfo) -> int:
        """Return the sequence of the first message stored at that time or later, in nanoseconds since 1970.

        There may be none with that sequence, but none before it is as new. If all are older, it is the one behind the
        last of `info`.
        """
        low, high = max(info.first_sequence, 1), info.last_sequence + 1
        while low < high:
            middle = (low + high) // 2
            found = await self.next(middle)
            if found is None or found.time_ns >= time_ns:
                high = middle
            else:
                low = found.sequence + 1
        return min(low, info.last_sequence + 1)

    async def consumer(self, name: str) -> ConsumerInfo | None:
        """Return a consumer of the stream; None if there is none with that name."""
        try:
            return await self.of_consumer("INFO", name, consumer_info)
        except _NotFound:
            return None

    async def consumer_each(self, names: Sequence[str]) -> list[ConsumerInfo | None]:
        """Return these consumers of the stream, in order; None for each that does not exist."""
        found: list[ConsumerInfo | None] = []
        for start in range(0, len(names), MOST_TOGETHER):
            together = names[start : start + MOST_TOGETHER]
            asked = [self._requests.send(self.subject_of("CONSUMER.INFO", one)) for one in together]
            await all_answered(asked)
            for one in asked:
                try:
                    found.append(await self._answer(one, consumer_info))
                except _NotFound:
                    found.append(None)
        return found

    async def of_consumer(
        self, what: str, name: str, read: Callable[[bytes], T], body: Mapping[str, object] | None = None
    ) -> T:
        """Return the answer to a request about a consumer, `CONSUMER.what`. The reason is `not_found` without one."""
        subject = self.subject_of(f"CONSUMER.{what}", name)
        sent = self._requests.send(subject, b"" if body is None else json.dumps(body).encode())
        return await self._answer(sent, read)

    def subject_of(self, request: str, consumer: str) -> bytes:
        """Return the subject of a request about a consumer of the stream."""
        return framing.wire(f"{self._api}.{request}.{self.stream}.{consumer}")

    async def consumer_fields(self, name: str) -> dict[str, Any]:
        """Return every field of the configuration of a consumer, as the server gives it."""
        return await self.of_consumer("INFO", name, config_fields)

    async def create_consumer(self, name: str, config: Mapping[str, object]) -> ConsumerInfo:
        """Create a durable consumer. It is refused if there is one with that name and another configuration."""
        body = {"stream_name": self.stream, "config": config, "action": "create"}
        return await self.of_consumer("DURABLE.CREATE", name, consumer_info, body)

    async def create_reader(
        self, name: str, first: int, patterns: Sequence[str], unused_for: float, *, headers_only: bool = False
    ) -> str:
        """Create a consumer that delivers the messages from `first` on whose subjects match, and expects no acks.

        Returns the name of the server that it is on, empty without a cluster. The server deletes it when it was unused
        for that many seconds. With `headers_only` it delivers no payloads.
        """
        config: dict[str, object] = {
            "name": name,
            "description": "router-trio",
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": first,
            "ack_policy": "none",
            "inactive_threshold": round(unused_for * 1e9),
            "mem_storage": True,
            "num_replicas": 1,
            "headers_only": headers_only,
        }
        if len(patterns) == 1:
            config["filter_subject"] = patterns[0]
        else:
            config["filter_subjects"] = list(patterns)
        body = {"stream_name": self.stream, "config": config}
        return (await self.of_consumer("CREATE", name, consumer_info, body)).group.leader

    async def delete_consumer(self, name: str) -> None:
        """Delete a consumer."""
        await self.of_consumer("DELETE", name, done)

    async def consumers(self) -> list[ConsumerInfo]:
        """Return the consumers of the stream, the first `MOST_CONSUMERS` of them."""
        consumers: list[ConsumerInfo] = []
        while len(consumers) < MOST_CONSUMERS:
            page, total = await self._answer(self._ask("CONSUMER.LIST", {"offset": len(consumers)}), consumer_list)
            consumers += page
            if not page or len(consumers) >= total:
                break
        return consumers

    async def batches(self, first: int, last: int, pattern: str) -> AsyncGenerator[Sequence[StoredMessage], None]:
        """Yield the messages from `first` to `last` whose subject matches, in order, several at a time.

        A batch may also contain messages with other subjects, and some that have been deleted since.
        """
        sequence, together = first, 1
        while sequence <= last:
            # Request the next matching message, then those right behind it, all at the same time.
            found = await self.next(sequence, pattern)
            if found is None or not sequence <= found.sequence <= last:
                return
            behind = range(found.sequence + 1, min(found.sequence + together, last + 1))
            asked = [self._ask("STREAM.MSG.GET", {"seq": one}) for one in behind]
            await all_answered(asked)
            answers = [await self.found(one) for one in asked]
            there = [found, *(one for one in answers if one is not None)]
            yield there
            sequence = found.sequence + 1 + len(behind)
            size = sum(len(one.payload) + len(one.headers) for one in there) // len(there)
            # Where many are missing or few match, go on one by one.
            matching = sum(matches(pattern, one.subject) for one in there)
            if RARE * matching < together:
                grown = matching
            else:
                grown = 2 * together if 2 * len(there) >= together else len(there)
            together = max(1, min(grown, MOST_TOGETHER, TOGETHER_BYTES // (size + 1)))

    def delete(self, sequence: int) -> Request:
        """Request the deletion of a message, without overwriting its data. `deleted` returns the result."""
        return self._ask("STREAM.MSG.DELETE", {"seq": sequence, "no_erase": True})

    async def deleted(self, request: Request) -> bool:
        """Return True if the message was deleted, False if there was none."""
        try:
            return await self._answer(request, done)
        except _NotFound:
            return False

    def _ask(self, what: str, body: Mapping[str, object] | None = None) -> Request:
        subject = framing.wire(f"{self._api}.{what}.{self.stream}")
        return self._requests.send(subject, b"" if body is None else json.dumps(body).encode())

    async def found(self, request: Request) -> StoredMessage | None:
        """Return the requested message; None if there is none."""
        try:
            return await self._answer(request, stored_message)
        except _NotFound:
            return None

    async def _answer(self, request: Request, read: Callable[[bytes], T]) -> T:
        raw = await request.answered()
        if headers.status(framing.header_block(raw))[0] == 503:
            detail = no_jetstream(self._api)
            raise SourceError(detail, reason=reasons.NO_JETSTREAM)
        try:
            return read(framing.payload(raw))
        except ApiError as error:
            if error.code == NOT_FOUND and error.error_code != codes.STREAM_NOT_FOUND:
                raise _NotFound(f"stream {self.stream!r} has no such message", reason=reasons.NOT_FOUND) from error
            if error.error_code == codes.STREAM_NOT_FOUND:
                cure = "create it, or correct its name in the configuration"
                if self._declared:
                    cure = "a router creates it at its first start, since [[streams]] has it"
                detail = f"there is no stream {self.stream!r}; {cure}"
                raise SourceError(detail, reason=reasons.STREAM_NOT_FOUND) from error
            detail = f"JetStream answered for the stream {self.stream!r}: {error.explained}"
            raise SourceError(detail, reason=reasons.JETSTREAM) from error
        except ValueError as error:
            detail = f"the answer to {framing.text(request.subject)} is not a valid JetStream answer: {error}"
            raise SourceError(detail, reason=reasons.BAD_ANSWER) from error


def server_time(body: bytes) -> int | None:
    """Return the time of the server that gave an answer of the API, in nanoseconds since 1970; None if not given."""
    time = bounded_json.read(body, MAX_ANSWER).text("ts", "")
    return nanoseconds(time) if time else None


class _NotFound(SourceError):
    """Raised if there is no such message."""
