"""A stream that copies another one, when that one is rolled back: restored, or without what was not written to disk.

The server continues behind the last message that it has copied. Of a source that was rolled back it copies nothing
until the source has passed that sequence again, and never what the source stores before that. So the source is entered
as another one, with another notation of the same transforms, which the server copies from the first new message on.

That message is found by its time: all that was copied had been stored before it was copied, and what the source stores
since then is newer. What has happened is recorded in the metadata first, and the source is changed when all processes
know which sequences are used again. Each of them may do either, since all find the same.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import trio

from router_trio.errors import SourceError, reasons
from router_trio.link import CopiedUpTo, PartitionedSpec
from router_trio.nats.jetstream.api import (
    NOT_FOUND,
    ApiError,
    StoredMessage,
    StreamInfo,
    answer_of,
    nanoseconds,
    stored_message,
    stream_info,
)
from router_trio.nats.jetstream.streams import Lookups, lookup_error
from router_trio.protocol import bounded_json
from router_trio.protocol.bounded_json import Object
from router_trio.protocol.copies import as_another, copied_from, original
from router_trio.subjects.partitions import Partitioning

T = TypeVar("T")

ROLLED_BACK = "router-trio.rolled-back"
"""Key in the metadata of a copy whose source was rolled back."""

MAX_RECORD = 1024
"""Bytes of that value."""

NOTICED_SINCE = (2, 15)
"""The first version of nats-server that copies a stream from its start when that was deleted and created again."""

REMEMBERED = 32
"""Rollbacks before the last one whose sequences are remembered: nothing of earlier ones is still to be routed."""

CONFIRMED_AFTER = 1.0
"""Seconds after which a source must still lack what was copied: a new leader may show less for a moment."""

ANNOUNCED_FOR = 5.5
"""Seconds between the record and the change of the source: all processes have looked at the copy by then."""

CLOCKS_DIFFER_BY = 5.0
"""Seconds by which the clocks of the leaders of a stream and of its copy may differ."""


@dataclass(frozen=True, slots=True)
class RolledBack:
    """The record of a source that was rolled back: it is copied again from the message `start` on.

    At each rollback, sequences up to a number of `reused` were those of other messages before. `at` is when the last
    one was noticed, in nanoseconds since 1970.
    """

    start: int
    reused: tuple[int, ...]
    at: int

    @property
    def count(self) -> int:
        """The number of rollbacks."""
        return len(self.reused)

    def once_more(self, start: int, reused: int, at: int) -> RolledBack:
        """Return the record after another rollback. Those of long ago are only counted."""
        before = self.reused
        forgotten = max(0, len(before) - REMEMBERED)
        return RolledBack(start, (*(0,) * forgotten, *before[forgotten:], reused), at)

    def as_text(self) -> str:
        """Return it as the value of the key `ROLLED_BACK`."""
        return json.dumps({"start": self.start, "reused": self.reused, "at": self.at})


NEVER = RolledBack(0, (), 0)
"""The record of a source that was never rolled back."""


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a look at a copy: the last message that was copied, and what became of its source.

    `went_back` is the evidence that it was rolled back, found by this look; empty without any. `stuck` is why that
    could not be looked up, or the server not be made to copy it again.
    """

    known: CopiedUpTo | None
    record: RolledBack
    went_back: str = ""
    stuck: str = ""
    is_announced: bool = False


@dataclass(frozen=True, slots=True)
class _Evidence:
    """Evidence that a source was rolled back. What it stores since then is newer than `newer_than`.

    It is as of `at`. `passed`: the source has stored as much again as was copied. All times are in nanoseconds since
    1970.
    """

    detail: str
    newer_than: int
    at: int
    passed: bool
    sequence: int
    """A message that was copied before."""


def rolled_back(config: Object) -> RolledBack:
    """Return what a stream records about its source. Raises `AnswerError`."""
    metadata = config.object("metadata")
    if metadata is None or not metadata.has(ROLLED_BACK):
        return NEVER
    record = bounded_json.read(metadata.text(ROLLED_BACK, most=MAX_RECORD).encode(), MAX_RECORD)
    return RolledBack(record.number("start"), record.numbers("reused", most=MAX_RECORD), record.number("at"))


class RolledBackSource:
    """Looks whether the source of a copy was rolled back, and has the server copy it again."""

    def __init__(
        self,
        lookups: Lookups,
        wanted: PartitionedSpec,
        copy: StreamInfo,
        partitioning: Partitioning,
        record: RolledBack,
        notation: int,
        version: tuple[int, int] | None,
    ) -> None:
        """`copy` is the stream that has `partitioning` and the `record`, in which its source has this `notation`.

        `version` is that of its server.
        """
        self._lookups = lookups
        self._source = wanted.stream
        self._before = wanted.known
        self._highest, self._highest_at = wanted.highest, wanted.highest_at
        self._copy = copy
        self._partitioning = partitioning
        self._record = record
        self._notation = notation
        self._version = version

    async def look(self, copied: int) -> Found:
        """Look at the source. The server reports that it has copied it up to `copied`; 0 if unknown.

        Raises `SourceError` if a lookup fails, but for missing permissions.
        """
        record, before = self._record, self._before
        try:
            if self._notation < record.count:
                is_known = nanoseconds(self._copy.now) >= record.at + ANNOUNCED_FOR * 1e9
                if is_known:
                    await self._edit(record, is_known=True)
                return Found(None, record, is_announced=not is_known)
            copied = copied or await self._last_copied()
            if not copied:
                return Found(before, record)
            info = await self._info()
            evidence = await self._evidence(info, copied)
            if evidence is not None and evidence.at > record.at:
                return await self._copy_again(evidence, copied)
            last = await self._message(self._source, copied)
            known = None if last is None else CopiedUpTo(copied, last.time_ns, nanoseconds(self._copy.now))
            return Found(known, record)
        except SourceError as error:
            if error.reason != reasons.PERMISSION_DENIED:
                raise
            return Found(before, record, stuck=str(error))

    # --- whether it was rolled back ---

    async def _evidence(self, info: StreamInfo, copied: int) -> _Evidence | None:
        before, stored_by = self._before, nanoseconds(self._copy.last_time)
        if nanoseconds(info.created) > stored_by and (self._version is None or self._version >= NOTICED_SINCE):
            return None  # it was deleted and created again
        if before is not None:
            message = await self._message(self._source, before.sequence)
            if message is not None and message.time_ns != before.time:
                text = f"it has another message under sequence {before.sequence}"
                return _Evidence(text, before.time, before.at, True, before.sequence)
        is_clustered = self._copy.group.cluster or info.group.cluster
        tolerance = CLOCKS_DIFFER_BY * 1e9 if is_clustered else 0.0
        message = await self._message(self._source, self._highest)
        if message is not None and message.time_ns > self._highest_at + tolerance:
            text = f"it has another message under sequence {self._highest} than was copied"
            return _Evidence(text, self._highest_at, self._highest_at, True, self._highest)
        had = copied if before is None else max(copied, before.sequence)
        if info.last_sequence < had:
            await trio.sleep(CONFIRMED_AFTER)
            info = await self._info()
            text = f"its last sequence is {info.last_sequence}, but {self._copy.name!r} has copied message {had}"
            if before is not None and info.last_sequence < before.sequence:
                return _Evidence(text, before.time, before.at, True, before.sequence)
            if info.last_sequence < copied:
                return _Evidence(text, stored_by, stored_by, False, copied)
        if before is None and (message := await self._message(self._source, copied)) is not None:
            later = message.time_ns > stored_by + tolerance
            if later or not await self._has_copied(message):
                text = f"it has another message under sequence {copied} than was copied"
                return _Evidence(text, stored_by, stored_by, False, copied)
        return None

    async def _has_copied(self, message: StoredMessage) -> bool:
        """Return False if the copy has another message as its copy of this one, which should be its last one."""
        copy = await self._message(self._copy.name, self._copy.last_sequence)
        found = None if copy is None else original(copy.headers)
        if copy is None or found is None or found.sequence != message.sequence:
            return True
        subject = copy.subject.partition(".")[2]
        return (subject, copy.payload) == (message.subject, message.payload)

    async def _last_copied(self) -> int:
        message = await self._message(self._copy.name, self._copy.last_sequence)
        return 0 if message is None else copied_from(message.headers)

    # --- what is done ---

    async def _copy_again(self, evidence: _Evidence, copied: int) -> Found:
        """Have the server copy all that the source has stored since then."""
        info, copy = await self._info(), self._copy

        async def is_new(sequence: int) -> bool:
            message = await self._next(self._source, sequence)
            return message is None or message.time_ns > evidence.newer_than

        start = await _first(max(1, info.first_sequence), info.last_sequence + 1, is_new)
        first = await self._next(self._source, start)
        reused = copied
        if evidence.passed and first is not None:
            at = first.time_ns

            async def is_later(sequence: int) -> bool:
                message = await self._next(copy.name, sequence)
                return message is None or message.time_ns >= at

            behind = await _first(copy.first_sequence, copy.last_sequence + 1, is_later)
            last = await self._message(copy.name, behind - 1)
            reused = evidence.sequence if last is None else copied_from(last.headers)
        if reused < start:
            return Found(None, self._record, evidence.detail)  # the copy had lost the same messages
        record = self._record.once_more(start, reused, nanoseconds(copy.now))
        await self._edit(record, is_known=False)
        return Found(None, record, went_back=evidence.detail, is_announced=True)

    async def _edit(self, record: RolledBack, *, is_known: bool) -> None:
        """Record that the source was rolled back, or have it copied again if that is known by now."""
        name = self._copy.name
        fields = await self._ask(f"STREAM.INFO.{name}", b"", _config_fields)
        metadata = {key: value for key, value in (fields.get("metadata") or {}).items() if not key.startswith("_nats")}
        changed = {**fields, "metadata": metadata | {ROLLED_BACK: record.as_text()}}
        if is_known:
            source = source_of(self._source, self._partitioning, record.count)
            changed["sources"] = [source | {"opt_start_seq": record.start}]
        await self._ask(f"STREAM.UPDATE.{name}", json.dumps(changed).encode(), stream_info)

    # --- requests ---

    async def _info(self) -> StreamInfo:
        return await self._ask(f"STREAM.INFO.{self._source}", b"", stream_info)

    async def _message(self, stream: str, sequence: int) -> StoredMessage | None:
        """Return the message with that sequence; None if there is none."""
        return await self._get(stream, {"seq": sequence}) if sequence else None

    async def _next(self, stream: str, sequence: int) -> StoredMessage | None:
        """Return the first message from a sequence on; None if there is none."""
        return await self._get(stream, {"seq": sequence, "next_by_subj": ">"})

    async def _get(self, stream: str, which: dict[str, object]) -> StoredMessage | None:
        try:
            return await self._lookups.ask(f"STREAM.MSG.GET.{stream}", json.dumps(which).encode(), stored_message)
        except ApiError as error:
            if error.code == NOT_FOUND:
                return None
            raise lookup_error(error) from error

    async def _ask(self, request: str, body: bytes, read: Callable[[bytes], T]) -> T:
        try:
            return await self._lookups.ask(request, body, read)
        except ApiError as error:
            raise lookup_error(error) from error


def source_of(stream: str, partitioning: Partitioning, rolled_back: int = 0) -> dict[str, object]:
    """Return the entry of `sources` that copies a stream with the partitions in front of its subjects.

    It is another source for each number of times that the stream was `rolled_back`: see `protocol.copies`.
    """
    transforms = [{"src": one, "dest": as_another(to, rolled_back)} for one, to in partitioning.transforms]
    return {"name": stream, "subject_transforms": transforms}


async def _first(low: int, high: int, holds: Callable[[int], Awaitable[bool]]) -> int:
    """Return the first number from `low` to `high` for which something holds; it does for `high` and all behind."""
    while low < high:
        middle = (low + high) // 2
        if await holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


def _config_fields(body: bytes) -> dict[str, Any]:
    """Read every field of the configuration of a stream, to be sent back with changes."""
    return answer_of(body).required("config").fields
