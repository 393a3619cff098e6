"""The processes that share the partitions of a route: keys of a KV bucket that expire unless they are renewed.

The name of a key contains the stream, the durable and the id of a process, so that the names of the existing keys are
enough to compute the shares. A process that leaves has its key purged from the stream of the bucket: a marker, as
clients of buckets store it, would still be a key.

A server may keep a key that has expired: after a kill, nats-server 2.15.1 may restore keys that were deleted, and then
not know when they expire. When it becomes the leader of the bucket, a process that has gone is a member again, and no
process would lead its share. So the age of the oldest key is compared with the time after which it expires, and keys
that are older do not count, and are removed.

The bucket is created by the first process that needs it, and used by the routes of all. An existing one is used as it
is, if its keys expire.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from math import ceil
from types import MappingProxyType
from typing import TypeVar

import trio

from router_trio.errors import SourceError, codes, reasons
from router_trio.errors.quotes import excerpt
from router_trio.link import LOOKUP_WITHIN, MEMBER_GONE_AFTER, Announced, Group, SeenMembers
from router_trio.nats.info import ServerInfo
from router_trio.nats.jetstream.api import (
    MAX_ANSWER,
    NOT_FOUND,
    Api,
    ApiError,
    NoResponders,
    StoredMessage,
    StreamInfo,
    answer_of,
    done,
    nanoseconds,
    no_jetstream,
    stored_message,
    stream_info,
)
from router_trio.nats.jetstream.streams import Lookups, creation_error, lookup_error
from router_trio.protocol import bounded_json, headers
from router_trio.protocol.bounded_json import AnswerError, Object
from router_trio.protocol.permissions import KV, MEMBERS, kv_below

T = TypeVar("T")

BUCKET = MEMBERS
STREAM = f"KV_{BUCKET}"

MAX_MOVES = 64 * 1024
"""Bytes of the partitions that were moved by hand: 1,024 take half of them."""

MAX_ANNOUNCEMENT = 16 * 1024
"""Bytes of an announcement: 1,024 partitions take a third of them."""

MOST_READ = 4_096
"""Announcements that are read, for people."""

LONGEST = 410.0
"""Seconds for which an announcement counts at most: of a process among as many as there can be.

Who may write to the bucket can store one that would stay for years.
"""

MOVED = "moved"
"""In place of the id of a process: the key of the partitions that were moved by hand. It does not expire."""

CHANGE = "change"
"""In place of the id of a process: the key that the command holds which changes the partitions."""

SINCE = (2, 11)
"""The first version of nats-server whose messages can expire one by one."""

AT_A_TIME = 64
"""Announcements that are read at a time."""

EXPIRES_WITHIN = 2.0
"""Seconds by which a server may delete an announcement late: it looks for expired ones once a second."""

MOST_EXPIRED = 64
"""Expired announcements that are removed with one look. More are removed with the next one."""

_ID = re.compile("[0-9a-f]{16}")
_NUMBER = re.compile("[0-9]{1,4}")
_SECONDS = re.compile(b"([0-9]{1,9})s")

NOTHING_MOVED: Mapping[int, str] = MappingProxyType({})

TTL = "Nats-TTL"
"""The header with the seconds after which the server deletes an announcement."""


def key(stream: str, durable: str, member: str) -> str:
    """Return the key of a process. `member` is its id, or `MOVED`, or `*` for all of them."""
    return f"{stream}.{durable}.{member}"


def bucket_config(replicas: int, storage: str) -> dict[str, object]:
    """Return the configuration of the stream of the bucket to create."""
    return {
        "name": STREAM,
        "subjects": [f"{KV}.{BUCKET}.>"],
        "storage": storage,
        "num_replicas": replicas,
        "max_msgs_per_subject": 1,
        "discard": "new",
        "allow_rollup_hdrs": True,
        "allow_direct": True,
        "allow_msg_ttl": True,
        "deny_delete": True,
    }


def seen_request(stream: str, durable: str) -> bytes:
    """Return the body of the request `STREAM.INFO` that lists the members of a route."""
    return json.dumps({"subjects_filter": f"{KV}.{BUCKET}.{key(stream, durable, '*')}"}).encode()


def seen(answer: Object, stream: str, durable: str) -> tuple[frozenset[str], bool]:
    """Return the ids of the members, and True if partitions were moved by hand, from the answer to `STREAM.INFO`.

    Raises `AnswerError` if it is malformed.
    """
    subjects = answer.required("state").object("subjects")
    if subjects is None:
        return frozenset(), False
    start = f"{KV}.{BUCKET}.{key(stream, durable, '')}"
    ids = (one.removeprefix(start) for one in subjects.fields if one.startswith(start))
    return frozenset(one for one in ids if _ID.fullmatch(one)), start + MOVED in subjects.fields


def times(answer: Object) -> tuple[int, int]:
    """Return when the oldest key of the bucket was stored, and the time of the server, in nanoseconds since 1970.

    `answer` is that to `STREAM.INFO`. Both are 0 if it lacks one of them. Raises `AnswerError` if it is malformed.
    """
    first, now = answer.required("state").time("first_ts", ""), answer.time("ts", "")
    found = nanoseconds(first), nanoseconds(now)
    return found if all(found) else (0, 0)


def expires_at(message: StoredMessage, seconds: float) -> int:
    """Return when an announcement has expired at the latest, in nanoseconds since 1970.

    One without a readable time to live, which was put into the bucket by another program, expires after `seconds`.
    """
    found = _SECONDS.fullmatch(headers.find(message.headers, TTL.encode()) or b"")
    return message.time_ns + int(((min(float(found[1]), LONGEST) if found else seconds) + EXPIRES_WITHIN) * 1e9)


def announcement(announced: Announced) -> bytes:
    """Return what a process announces, for people."""
    return json.dumps({"name": announced.name, "host": announced.host, "led": list(announced.led)}).encode()


def announced(payload: bytes) -> Announced | None:
    """Read an announcement. Returns None if it is malformed."""
    try:
        found = bounded_json.read(payload, MAX_ANNOUNCEMENT)
        led = found.numbers("led", most=MAX_ANNOUNCEMENT)
        return Announced(found.text("name", ""), found.text("host", ""), tuple(sorted(one for one in led if one >= 0)))
    except AnswerError:
        return None


def moves(moved: Mapping[int, str]) -> bytes:
    """Return the value of the key `MOVED`."""
    return json.dumps({str(number): moved[number] for number in sorted(moved)}).encode()


def moved(payload: bytes) -> Mapping[int, str]:
    """Return the partitions that were moved by hand, each with the id of a member. Skips what is malformed."""
    try:
        found = bounded_json.read(payload, MAX_MOVES).fields
    except AnswerError:
        return NOTHING_MOVED
    valid = {int(number): member for number, member in found.items() if _NUMBER.fullmatch(number) and _is_id(member)}
    return MappingProxyType(valid)


def _is_id(value: object) -> bool:
    return isinstance(value, str) and _ID.fullmatch(value) is not None


class BucketMembers:
    """The members of one group, over one link: see `link.Members`. Created by `members_of`."""

    def __init__(self, api: Api, lookups: Lookups, group: Group) -> None:
        self._api = api
        self._lookups = lookups
        self._group = group
        self._read_next = trio.CapacityLimiter(AT_A_TIME)
        self._seconds = MEMBER_GONE_AFTER
        """Seconds for which this process has announced itself the last time."""

    async def announce(self, announced: Announced, seconds: float = MEMBER_GONE_AFTER) -> None:
        self._seconds = ceil(seconds)
        await self._put(self._group.member, announcement(announced), [(TTL, f"{self._seconds}s")])

    async def seen(self) -> SeenMembers:
        group = self._group
        body = seen_request(group.stream, group.durable)

        def read(body: bytes) -> tuple[frozenset[str], bool, int, int]:
            answer = answer_of(body, MAX_ANSWER)
            return *seen(answer, group.stream, group.durable), *times(answer)

        found = await self._ask(f"STREAM.INFO.{STREAM}", body, read)
        if found is None:
            # The bucket was deleted. All processes find that out, and announce themselves again.
            await self.ensure()
            return SeenMembers(frozenset(), NOTHING_MOVED)
        ids, any_moved, oldest, now = found
        if ids and now > oldest + int((self._seconds + EXPIRES_WITHIN) * 1e9):
            ids -= await self._expired(now)
        message = await self._get(MOVED) if any_moved else None
        return SeenMembers(ids, NOTHING_MOVED if message is None else moved(message.payload))

    async def _expired(self, now: int) -> frozenset[str]:
        """Return members whose announcements have expired at `now`, in nanoseconds since 1970, and remove these.

        The oldest announcements are read, up to the first one that has not expired.
        """
        subject, sequence, expired = f"{KV}.{BUCKET}.{self._key('*')}", 1, dict[str, int]()
        while len(expired) < MOST_EXPIRED:
            body = json.dumps({"seq": sequence, "next_by_subj": subject}).encode()
            message = await self._ask(f"STREAM.MSG.GET.{STREAM}", body, stored_message)
            if message is None or message.sequence < sequence:
                break
            sequence = message.sequence + 1
            member = message.subject.rpartition(".")[2]
            if _is_id(member):
                if now <= expires_at(message, self._seconds):
                    break
                expired[member] = message.sequence
        with contextlib.suppress(SourceError):  # those that are not removed are read again with the next look
            for member, last in expired.items():
                await self._purge(member, last)
        return frozenset(expired)

    async def withdraw(self) -> None:
        with contextlib.suppress(SourceError):
            await self._purge(self._group.member)

    async def announcements(self) -> Mapping[str, Announced]:
        found: dict[str, Announced] = {}
        failed: list[SourceError] = []

        async def read(member: str) -> None:
            async with self._read_next:
                try:
                    message = None if failed else await self._get(member)
                except SourceError as error:
                    failed.append(error)
                    return
            one = None if message is None else announced(message.payload)
            if one is not None:
                found[member] = one

        ids = (await self.seen()).ids
        async with trio.open_nursery() as nursery:
            for member in sorted(ids)[:MOST_READ]:
                nursery.start_soon(read, member)
        if failed:
            raise failed[0]
        return found

    async def move(self, moved: Mapping[int, str]) -> None:
        if moved:
            await self._put(MOVED, moves(moved))
        else:
            await self._purge(MOVED)

    # --- the bucket ---

    async def ensure(self) -> None:
        """Create the bucket unless it exists. Raises as `link.Link.members`."""
        found = await self._ask(f"STREAM.INFO.{STREAM}", b"", stream_info)
        if found is None:
            found = await self._create()
        if not found.allow_message_ttl:
            raise keys_stay()

    async def _create(self) -> StreamInfo:
        body = json.dumps(bucket_config(self._group.replicas, self._group.storage)).encode()
        try:
            made = await self._lookups.ask(f"STREAM.CREATE.{STREAM}", body, stream_info)
        except ApiError as error:
            # Another process was faster, with other replicas or storage.
            found = None
            if error.error_code == codes.NAME_IN_USE:
                found = await self._ask(f"STREAM.INFO.{STREAM}", b"", stream_info)
            if found is not None:
                return found
            raise creation_error(error, f"bucket {BUCKET!r}") from error
        return made

    async def _ask(self, request: str, body: bytes, read: Callable[[bytes], T]) -> T | None:
        """Return an answer about the bucket; None if it, or the key, does not exist."""
        try:
            return await self._lookups.ask(request, body, read)
        except ApiError as error:
            if error.code == NOT_FOUND:
                return None
            raise lookup_error(error) from error

    async def _get(self, member: str) -> StoredMessage | None:
        body = json.dumps({"last_by_subj": f"{KV}.{BUCKET}.{self._key(member)}"}).encode()
        return await self._ask(f"STREAM.MSG.GET.{STREAM}", body, stored_message)

    async def _purge(self, member: str, last: int | None = None) -> None:
        """Remove the key of a member; with `last` only if it was not put again behind that sequence."""
        request: dict[str, object] = {"filter": f"{KV}.{BUCKET}.{self._key(member)}"}
        if last is not None:
            request["seq"] = last + 1
        await self._ask(f"STREAM.PURGE.{STREAM}", json.dumps(request).encode(), done)

    async def _put(self, member: str, value: bytes, fields: Iterable[tuple[str, str]] = ()) -> None:
        subject = f"{kv_below(self._api.prefix)}.{BUCKET}.{self._key(member)}"
        try:
            answer = await self._api.request(subject, value, LOOKUP_WITHIN, dict(fields))
        except NoResponders as error:
            detail = (
                f"no stream takes {subject}: the bucket {BUCKET!r} was deleted, or {no_jetstream(self._api.prefix)}"
            )
            raise SourceError(detail, reason=reasons.JETSTREAM_UNAVAILABLE) from error
        except TimeoutError as error:
            detail = f"the bucket {BUCKET!r} did not confirm {subject} within {LOOKUP_WITHIN:g} s"
            if not self._api.prefix.startswith("$JS."):
                imported = f"{kv_below(self._api.prefix)}.{BUCKET}.>"
                detail += f"; with an api_prefix, import {KV}.{BUCKET}.> from its account, to {imported}"
            raise SourceError(detail, reason=reasons.TIMEOUT) from error
        try:
            stored_in = answer_of(answer, MAX_ANSWER).text("stream")
        except ApiError as error:
            if error.error_code == codes.NO_MESSAGE_TTL:
                raise keys_stay() from error
            raise lookup_error(error) from error
        except AnswerError as error:
            raise SourceError(f"the answer to {subject} is not a PubAck: {error}", reason=reasons.BAD_ANSWER) from error
        if stored_in != STREAM:
            detail = f"the stream {stored_in!r} takes {subject}, in place of the bucket {BUCKET!r}"
            raise SourceError(detail, reason=reasons.BAD_ANSWER)

    def _key(self, member: str) -> str:
        return key(self._group.stream, self._group.durable, member)


def keys_stay() -> SourceError:
    """Return the error of a bucket whose keys do not expire."""
    detail = (
        f"the bucket {BUCKET!r} does not let its keys expire (allow_msg_ttl), so that processes that have gone would "
        f"keep their share; run `nats stream edit {STREAM} --allow-msg-ttl`"
    )
    return SourceError(detail, reason=reasons.BUCKET_MISMATCH)


async def members_of(api: Api, lookups: Lookups, group: Group, info: ServerInfo) -> BucketMembers:
    """Return the members of a group, with the bucket created if it was missing. Raises as `link.Link.members`."""
    if info.major_minor is not None and info.major_minor < SINCE:
        detail = f"nats-server {excerpt(info.version)} has no keys that expire (2.11 or later), which partitions need"
        raise SourceError(f"{detail}; upgrade it, or remove partitions", reason=reasons.SERVER_TOO_OLD)
    members = BucketMembers(api, lookups, group)
    await members.ensure()
    return members
