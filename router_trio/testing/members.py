"""The members of partitioned routes on the fake server: keys of a bucket that expire, and the answers about them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from math import inf
from typing import Protocol, TypeVar

from router_trio.errors import SourceError, reasons
from router_trio.link import MEMBER_GONE_AFTER, Announced, Group, SeenMembers
from router_trio.protocol.permissions import MEMBERS
from router_trio.testing.losses import Losses

T = TypeVar("T")

BUCKET = MEMBERS
STREAM = f"KV_{BUCKET}"


class Bucket:
    """The bucket of the members. Callers pass the time.

    An announcement expires that many seconds after it arrived, even while the bucket has no leader. Until
    `leaderless_until` it answers nothing. If `keeps` is True, its keys never expire, and routes refuse it.
    """

    def __init__(self) -> None:
        self.leaderless_until: float = -inf
        self.keeps: bool = False
        self._announced: dict[tuple[str, str], dict[str, tuple[Announced, float]]] = {}
        self._moved: dict[tuple[str, str], Mapping[int, str]] = {}

    def put(self, group: Group, announced: Announced, now: float, seconds: float = MEMBER_GONE_AFTER) -> None:
        """Store the announcement of the member of a group for that many seconds."""
        members = self._announced.setdefault((group.stream, group.durable), {})
        members[group.member] = announced, now + seconds

    def purge(self, group: Group) -> None:
        """Remove the announcement of the member of a group."""
        self._announced.get((group.stream, group.durable), {}).pop(group.member, None)

    def move(self, group: Group, moved: Mapping[int, str]) -> None:
        """Replace the partitions of a group that are moved by hand."""
        self._moved[group.stream, group.durable] = dict(moved)

    def moved(self, group: Group) -> Mapping[int, str]:
        """Return the partitions of a group that are moved by hand."""
        return self._moved.get((group.stream, group.durable), {})

    def announcements(self, group: Group, now: float) -> dict[str, Announced]:
        """Return the announcements of a group that have not expired."""
        members = self._announced.get((group.stream, group.durable), {})
        for member in [member for member, (_, expires) in members.items() if expires <= now]:
            del members[member]
        return {member: announced for member, (announced, _) in members.items()}


class BucketServer(Protocol):
    """The part of the fake server that has the bucket."""

    bucket: Bucket | None
    losses: Losses

    def may_not_ask(self, subject: str) -> SourceError | None:
        """Return the error of a request that the permissions deny; None if they allow it."""
        ...

    def ensure_bucket(self, now: float) -> Bucket | SourceError:
        """Return the bucket, created if missing; or the error."""
        ...


class Asking(Protocol):
    """The part of a fake link that asks the server."""

    async def look_up(self, ask: Callable[[float], T | SourceError]) -> T:
        """Return the answer of the server. Raises `SourceError` if it is one, `LinkError` if the link dies."""
        ...


class FakeMembers:
    """The members of one group, over one link: see `link.Members`."""

    def __init__(
        self,
        link: Asking,
        server: BucketServer,
        group: Group,
    ) -> None:
        self._link = link
        self._server = server
        self._group = group

    async def announce(self, announced: Announced, seconds: float = MEMBER_GONE_AFTER) -> None:
        group, subject = self._group, f"$KV.{BUCKET}.{self._key(self._group.member)}"
        await self._asking(subject, "announce", lambda bucket, now: bucket.put(group, announced, now, seconds))

    async def seen(self) -> SeenMembers:
        group = self._group

        def look(bucket: Bucket, now: float) -> tuple[frozenset[str], Mapping[int, str]]:
            return frozenset(bucket.announcements(group, now)), bucket.moved(group)

        if self._server.bucket is None:
            await self.ensure()
        ids, moved = await self._asking(f"$JS.API.STREAM.INFO.{STREAM}", "look", look)
        if moved:
            moved = await self._asking(_GET, "look", lambda bucket, now: bucket.moved(group))
        return SeenMembers(ids, moved)

    async def withdraw(self) -> None:
        with contextlib.suppress(SourceError):
            await self._asking(_PURGE, "announce", lambda bucket, now: bucket.purge(self._group))

    async def announcements(self) -> Mapping[str, Announced]:
        await self.seen()
        return await self._asking(_GET, "look", lambda bucket, now: bucket.announcements(self._group, now))

    async def move(self, moved: Mapping[int, str]) -> None:
        subject = f"$KV.{BUCKET}.{self._key('moved')}" if moved else _PURGE
        await self._asking(subject, "announce", lambda bucket, now: bucket.move(self._group, moved))

    async def ensure(self) -> None:
        """Create the bucket if it is missing. Raises as `link.Link.members`."""
        await self._link.look_up(self._server.ensure_bucket)

    async def _asking(self, subject: str, kind: str, action: Callable[[Bucket, float], T]) -> T:
        return await self._link.look_up(partial(self._ask, subject, kind, action))

    def _ask(self, subject: str, kind: str, action: Callable[[Bucket, float], T], now: float) -> T | SourceError:
        if (denied := self._server.may_not_ask(subject)) is not None:
            return denied
        bucket = self._server.bucket
        if bucket is None:
            return SourceError(f"no stream takes {subject}", reason=reasons.JETSTREAM_UNAVAILABLE)
        if now < bucket.leaderless_until:
            return SourceError("the bucket has no leader, which alone answers", reason=reasons.TIMEOUT)
        answers: list[T] = []
        losses = self._server.losses
        losses.apply(kind, now, lambda: answers.append(action(bucket, max(now, losses.now))))
        return answers[0] if answers else SourceError("the request or its answer was lost", reason=reasons.TIMEOUT)

    def _key(self, member: str) -> str:
        return f"{self._group.stream}.{self._group.durable}.{member}"


_GET = f"$JS.API.STREAM.MSG.GET.{STREAM}"
_PURGE = f"$JS.API.STREAM.PURGE.{STREAM}"
