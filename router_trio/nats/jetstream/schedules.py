"""Count the schedules of the stream of retries: each was published, was cancelled, or is still there.

A server reports nothing about a schedule that leaves its stream in another way: by a limit, a purge or a deletion. But
every message of the stream takes a sequence, and there are only four kinds of them: schedules, what they published,
cancellations, and the checkpoint, which records what was deleted on purpose. So the number of lost schedules follows
from the last sequence and the number of messages, whichever processes stored and received them.

Published messages are deleted when they are acked. Two processes never do that at a time: the checkpoint is written
first, with the sequence that it is expected to have.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, TypeVar

from router_trio.errors import SourceError, codes, reasons
from router_trio.link import LOOKUP_WITHIN, SchedulesCount, SchedulesSpec
from router_trio.nats.jetstream.api import (
    MAX_ANSWER,
    NOT_FOUND,
    Api,
    ApiError,
    NoResponders,
    StreamInfo,
    answer_of,
    consumer_info,
    nanoseconds,
    stored_message,
    stream_info,
)
from router_trio.nats.jetstream.streams import lookup_error
from router_trio.protocol import bounded_json
from router_trio.protocol.bounded_json import AnswerError
from router_trio.subjects.patterns import covers

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

MAX_CHECKPOINT = 1_000
"""Bytes of a checkpoint."""

PURGED_AFTER = 60.0
"""Seconds after which the process that was deleting published messages counts as killed."""


class Asks(Protocol):
    """Sends requests to JetStream."""

    async def ask(self, request: str, body: bytes, read: Callable[[bytes], T]) -> T:
        """Send a request, and read its answer. Raises `SourceError`, or `ApiError` if the answer is an error."""
        ...


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The record of what its stream no longer shows: the number of its `writes`, and of messages that were `purged`.

    `base` corrects the sum for everything before, or for what can't be known. `purges`: a process is deleting messages.
    """

    writes: int = 0
    purged: int = 0
    base: int = 0
    purges: bool = False

    def payload(self) -> bytes:
        """Return the payload of the message that stores it."""
        fields = {"writes": self.writes, "purged": self.purged, "base": self.base, "purges": self.purges}
        return json.dumps(fields).encode()


def checkpoint(payload: bytes) -> Checkpoint:
    """Read a checkpoint. Raises `AnswerError` if it is malformed."""
    found = bounded_json.read(payload, MAX_CHECKPOINT)
    low, flag = -(2**63), found.flag("purges")
    return Checkpoint(found.number("writes"), found.number("purged"), found.number("base", low=low), flag)


@dataclass(frozen=True, slots=True)
class Numbers:
    """The numbers of a stream at `now_ns`, in nanoseconds since 1970.

    `published` and `cancelled` are the numbers of those messages that are still there. They are requested after the
    others, and the checkpoint last: what happens meanwhile only makes the number of lost schedules seem smaller.
    """

    last_sequence: int
    messages: int
    published: int
    cancelled: int
    now_ns: int
    created: str = ""

    @property
    def unexplained(self) -> int:
        """Return the sequences that neither a schedule nor what follows from it explains, without a checkpoint."""
        return self.last_sequence - self.published - self.cancelled - self.messages

    def lost(self, found: Checkpoint) -> int:
        """Return the number of lost schedules."""
        of_checkpoint = found.writes - (1 if found.writes else 0)
        return self.unexplained - found.base - of_checkpoint - 2 * found.purged

    def count(self, found: Checkpoint) -> SchedulesCount:
        """Return the numbers for people."""
        fired, there = self.published + found.purged, self.messages - self.published - self.cancelled
        there -= 1 if found.writes else 0
        lost = max(0, self.lost(found))
        scheduled = fired + there + self.cancelled + lost
        last, created = self.last_sequence, self.created
        return SchedulesCount(scheduled, fired, there, self.cancelled, last_sequence=last, created=created)


class Schedules:
    """The schedules of one stream of retries, over one link."""

    def __init__(self, api: Api, asks: Asks, spec: SchedulesSpec) -> None:
        self._api = api
        self._asks = asks
        self._spec = spec
        self._subject = f"{spec.prefix}.n"

    async def count(self) -> SchedulesCount:
        """Count them, record the result, and delete published messages that are acked. See `link.Link`."""
        info = await self._ask("STREAM.INFO", {}, stream_info)
        numbers = await self._numbers(info)
        if info.retention != "limits":
            return numbers.count(Checkpoint()).without_lost()  # it deletes what is acked by itself, uncounted
        stored = await self._ask_maybe("STREAM.MSG.GET", {"last_by_subj": self._subject}, stored_message)
        found, sequence = Checkpoint(), 0
        if stored is not None:
            sequence = stored.sequence
            try:
                found = checkpoint(stored.payload)
            except AnswerError:
                stored = None  # of another client: it is replaced
        if stored is not None and found.purges and numbers.now_ns < stored.time_ns + PURGED_AFTER * 1e9:
            return replace(numbers.count(found).without_lost(), in_flux=True)
        count, floor = numbers.count(found), await self._floor() if numbers.published else 0
        of_others = not all(covers(f"{self._spec.prefix}.>", subject) for subject in info.subjects)
        if stored is None or found.purges or (of_others and numbers.lost(found)):
            # Nothing is known about the time before, whether a killed process has deleted messages, or what happens to
            # messages below other prefixes.
            count, found = count.without_lost(), replace(found, base=found.base + numbers.lost(found))
            count = replace(count, is_first=stored is None)
        elif count.lost:
            found = replace(found, base=found.base + count.lost)  # reported once
        elif not floor:
            return count
        recorded = await self._record(replace(found, purges=floor > 0), sequence, floor)
        # Otherwise another process has counted, and reports what is lost.
        return count if recorded else replace(count.without_lost(), is_first=False)

    async def _numbers(self, info: StreamInfo) -> Numbers:
        published, cancelled = [await self._held(f"{self._spec.prefix}.{kind}.*") for kind in "dx"]
        return Numbers(info.last_sequence, info.messages, published, cancelled, nanoseconds(info.now), info.created)

    async def _held(self, pattern: str) -> int:
        """Return how many messages the stream has on subjects of this pattern."""

        def read(body: bytes) -> int:
            subjects = answer_of(body, MAX_ANSWER).required("state").object("subjects")
            return 0 if subjects is None else sum(subjects.number(name) for name in subjects.fields)

        return await self._ask("STREAM.INFO", {"subjects_filter": pattern}, read)

    async def _floor(self) -> int:
        """Return the sequence up to which the durable has acked everything; 0 if there is no durable yet."""
        info = await self._ask_maybe("CONSUMER.INFO", {}, consumer_info, self._spec.durable)
        return 0 if info is None else info.ack_floor.sequence

    async def _record(self, found: Checkpoint, sequence: int, floor: int) -> bool:
        """Write the checkpoint, and delete published messages up to the sequence `floor`.

        Return False if another process was faster.
        """
        found = replace(found, writes=found.writes + 1)
        written = await self._write(found, sequence)
        if written and found.purges:
            body: dict[str, object] = {"filter": self._spec.target, "seq": floor + 1}
            purged = await self._ask("STREAM.PURGE", body, lambda answer: answer_of(answer).number("purged", 0))
            done = replace(found, writes=found.writes + 1, purged=found.purged + purged, purges=False)
            await self._write(done, written)
        return written > 0

    async def _write(self, found: Checkpoint, sequence: int) -> int:
        """Write a checkpoint in place of the one with this sequence. Return its own; 0 if that is not the last one."""
        headers = {
            "Nats-Rollup": "sub",
            "Nats-Expected-Stream": self._spec.stream,
            "Nats-Expected-Last-Subject-Sequence": str(sequence),
        }
        try:
            answer = await self._api.request(self._subject, found.payload(), LOOKUP_WITHIN, headers)
            return answer_of(answer).number("seq")
        except ApiError as error:
            if error.error_code == codes.WRONG_LAST_SEQUENCE:
                return 0
            raise lookup_error(error) from error
        except AnswerError as error:
            raise SourceError(f"the checkpoint got no valid PubAck: {error}", reason=reasons.BAD_ANSWER) from error
        except TimeoutError as error:
            detail = f"the checkpoint on {self._subject} got no PubAck within {LOOKUP_WITHIN:g} s"
            raise SourceError(detail, reason=reasons.TIMEOUT) from error
        except NoResponders as error:
            detail = f"the checkpoint on {self._subject} could not be stored"
            raise SourceError(detail, reason=reasons.JETSTREAM_UNAVAILABLE) from error

    async def _ask(self, request: str, body: dict[str, object], read: Callable[[bytes], T], *names: str) -> T:
        found = await self._ask_maybe(request, body, read, *names)
        if found is None:
            detail = f"there is no stream {self._spec.stream!r}, or it has no durable {self._spec.durable!r} yet"
            raise SourceError(detail, reason=reasons.JETSTREAM_UNAVAILABLE)
        return found

    async def _ask_maybe(
        self, request: str, body: dict[str, object], read: Callable[[bytes], T], *names: str
    ) -> T | None:
        """Return the answer to a request about the stream; None if that, or the message, does not exist."""
        subject = ".".join((request, self._spec.stream, *names))
        try:
            return await self._asks.ask(subject, json.dumps(body).encode() if body else b"", read)
        except ApiError as error:
            if error.code == NOT_FOUND:
                return None
            raise lookup_error(error) from error
