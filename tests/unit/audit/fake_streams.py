"""Streams in memory, with the interface of `StoredMessages`, and links to them."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

from router_trio.audit.audit import Audit
from router_trio.audit.find import Finder
from router_trio.errors import SourceError, reasons
from router_trio.nats.command_link import CommandLink
from router_trio.nats.jetstream.api import (
    ConsumerInfo,
    StoredMessage,
    StreamInfo,
    consumer_info,
    stream_info,
)
from router_trio.nats.range_reader import StreamRange
from router_trio.nats.stored import StoredMessages
from router_trio.settings import RouteSettings, Settings
from router_trio.subjects.patterns import matches

SECOND = 10**9


def timestamp(time_ns: int) -> str:
    """Return a time as a server writes it."""
    seconds, rest = divmod(time_ns, SECOND)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def block(*lines: tuple[str, str]) -> bytes:
    """Return a header block."""
    return b"NATS/1.0\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines).encode() + b"\r\n"


def letter_headers(route: str, stream: str, message: StoredMessage, time_ns: int) -> bytes:
    """Return the headers of the dead letter of a message, which was stored at this time."""
    fields = {
        "Route": route,
        "Reason": "expression",
        "Detail": "divided by zero",
        "Attempts": "1",
        "Subject": message.subject,
        "Stream": stream,
        "Sequence": str(message.sequence),
        "Time": timestamp(message.time_ns),
    }
    lines = [(f"Router-Dead-Letter-{name}", value) for name, value in fields.items()]
    return block(("Nats-Msg-Id", f"{stream}:{message.sequence}:{time_ns}:dead:{'d' * 16}"), *lines)


class FakeStream:
    """A stream whose server's clock shows `now`."""

    def __init__(self, stream: str, subjects: Sequence[str], now: int, **config: Any) -> None:
        self.stream = stream
        self.subjects = subjects
        self.config = config
        self.now = now
        self.messages: dict[int, StoredMessage] = {}
        self.newest = 0
        self.durables: dict[str, ConsumerInfo] = {}
        self.failure = ""
        """Why each request is refused, if it is."""
        self.durable_failure = ""

    def add(self, subject: str, payload: bytes, time_ns: int, headers: bytes = b"", sequence: int | None = None) -> int:
        self.newest = sequence or self.newest + 1
        self.messages[self.newest] = StoredMessage(self.newest, time_ns, subject, headers, payload)
        return self.newest

    def consume(self, name: str, floor: int, *, delivered: int = 0, paused: bool = False, **config: Any) -> None:
        delivered = max(floor, delivered)
        answer = {
            "stream_name": self.stream,
            "name": name,
            "created": timestamp(self.now),
            "config": config,
            "delivered": {"consumer_seq": delivered, "stream_seq": delivered},
            "ack_floor": {"consumer_seq": floor, "stream_seq": floor},
            "paused": paused,
        }
        self.durables[name] = consumer_info(json.dumps(answer).encode())

    def _asked(self, failure: str = "") -> None:
        if self.failure or failure:
            raise SourceError(self.failure or failure, reason=reasons.PERMISSION_DENIED)

    async def info(self) -> StreamInfo:
        self._asked()
        first = min(self.messages, default=self.newest + 1)
        state = {"messages": len(self.messages), "bytes": 0, "first_seq": first, "last_seq": self.newest}
        if self.messages:
            state["first_ts"] = timestamp(self.messages[first].time_ns)  # type: ignore[assignment]
        config = {"name": self.stream, "subjects": list(self.subjects), **self.config}
        answer = {"config": config, "created": timestamp(0), "state": state}
        return stream_info(json.dumps(answer).encode())

    async def clock(self) -> int | None:
        return self.now

    async def consumer(self, name: str) -> ConsumerInfo | None:
        self._asked(self.durable_failure)
        return self.durables.get(name)

    async def get(self, sequence: int) -> StoredMessage | None:
        return self.messages.get(sequence)

    async def get_each(self, sequences: Sequence[int]) -> list[StoredMessage | None]:
        return [self.messages.get(one) for one in sequences]

    async def next(self, sequence: int, pattern: str = ">") -> StoredMessage | None:
        ordered = sorted(self.messages)
        for one in ordered[bisect_left(ordered, sequence) :]:
            if matches(pattern, self.messages[one].subject):
                return self.messages[one]
        return None

    async def last(self, subject: str) -> StoredMessage | None:
        self._asked()
        found = [one for one in self.messages.values() if matches(subject, one.subject)]
        return max(found, key=lambda one: one.sequence, default=None)

    first_at = StoredMessages.first_at

    async def batches(self, first: int, last: int, pattern: str) -> AsyncGenerator[Sequence[StoredMessage], None]:
        ordered = [one for one in sorted(self.messages) if first <= one <= last]
        for place in range(0, len(ordered), 7):
            some = [self.messages[one] for one in ordered[place : place + 7] if one in self.messages]
            if any(matches(pattern, one.subject) for one in some):
                yield some

    async def read(self, info: StreamInfo, wanted: StreamRange) -> AsyncGenerator[Sequence[StoredMessage], None]:
        """Yield what a consumer delivers, which has no other messages, and the rest as the leader does."""
        first, last, patterns = wanted.first, wanted.last, wanted.patterns
        consumed = self.newest - self.newest // 3 if info.retention == "limits" else 0
        found = [self.messages[one] for one in sorted(self.messages) if first <= one <= min(last, consumed)]
        found = [one for one in found if any(matches(each, one.subject) for each in patterns)]
        if wanted.headers_only:
            found = [replace(one, payload=b"") for one in found]
        for place in range(0, len(found), 5):
            yield found[place : place + 5]
        after = found[-1].sequence + 1 if found else first
        async for batch in self.batches(after, last, patterns[0] if len(patterns) == 1 else ">"):
            yield batch

    def __call__(self) -> StoredMessages:
        return cast("StoredMessages", self)


def links_to(settings: Settings, streams: Mapping[str, FakeStream]) -> Mapping[str, CommandLink]:
    """Return links to servers that have these streams."""

    async def find_streams(pattern: str) -> Sequence[str]:
        one = pattern.partition(".")[0]
        return [name for name, stream in streams.items() if any(s.startswith(one + ".") for s in stream.subjects)]

    stored = {name: stream() for name, stream in streams.items()}
    link = SimpleNamespace(max_payload=2**20, max_control_line=4096, find_streams=find_streams)

    def read(info: StreamInfo, wanted: StreamRange) -> AsyncGenerator[Sequence[StoredMessage], None]:
        return streams[info.name].read(info, wanted)

    one = SimpleNamespace(link=link, stored=stored.__getitem__, read=read)
    return cast("Mapping[str, CommandLink]", dict.fromkeys(settings.connections, one))


class FakeAudit(Audit):
    """An audit over streams in memory."""

    def __init__(self, settings: Settings, route: RouteSettings, streams: Iterable[FakeStream]) -> None:
        self.streams = {one.stream: one for one in streams}
        super().__init__(settings, route, links_to(settings, self.streams))


class FakeFinder(Finder):
    """A search in streams in memory."""

    def __init__(self, settings: Settings, streams: Iterable[FakeStream]) -> None:
        self.streams = {one.stream: one for one in streams}
        super().__init__(settings, links_to(settings, self.streams))
