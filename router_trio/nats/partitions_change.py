"""Changes the partitions of a route that runs: their number, what determines them, or the filter.

Between the old partitions and the new ones is a barrier, over which the order of each key holds: nothing with a new
partition is delivered before everything with an old one is settled. Each step looks first at what the server shows, so
that a change that was interrupted is continued by the next one.

A copy stops copying, its messages are settled by the processes with the old partitions, and then it goes on with the
next message of its source. What is known of it in between is in its metadata: see `jetstream.sourced_stream`. A stream
with a transform of its own can't be stopped. Its publishers have to be, and whether they were is reported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import trio

from router_trio.errors import SourceError, reasons
from router_trio.nats.change_lock import ChangeLock
from router_trio.nats.command_link import CommandLink
from router_trio.nats.jetstream.api import ConsumerInfo, StreamInfo, answer_of, done
from router_trio.nats.jetstream.rolled_back_source import source_of
from router_trio.nats.jetstream.sourced_stream import (
    CHANGING,
    NO_WINDOW_SINCE,
    Changing,
    Partitioned,
    read_partitioned,
)
from router_trio.nats.pause import PausedDurable
from router_trio.nats.stored import StoredMessages
from router_trio.protocol.consumer import ConsumerSpec
from router_trio.protocol.copies import copied_from
from router_trio.protocol.framing import RawMessage
from router_trio.settings.routes import SourceSettings
from router_trio.settings.routes.sources.partitioned import derived_stream, durables, partitioning_of
from router_trio.subjects.partitions import Partitioning

LOOK_EVERY = 0.5
"""Seconds between two looks at the durables while their messages are settled."""

STORED_WITHIN = 0.5
"""Seconds within which everything is stored that a stream has copied when it stops."""

PAUSED_FOR = timedelta(days=1)
"""How long durables of a work queue are paused while it stops copying: longer than an interrupted change is left."""

PAUSED_BY = "router-trio partitions --change"

NOTICED_WITHIN = 6.0
"""Seconds within which processes with the old partitions notice the new ones, and create no durable any more."""

TRIES = 5
"""How often durables that are not needed any more are deleted, if processes create them again."""

_SERVERS_OWN = "_nats"
"""The beginning of the keys that a server adds to metadata in its answers."""


@dataclass(frozen=True, slots=True)
class Standing:
    """The partitions of a route on its server, and how far a change of them is.

    `stream` has them. It copies `source`; without one it has them by a transform of its own. `left` is the number of
    messages that are not settled, for each of its durables that has any, or whose messages no durable has yet.
    `unneeded` are durables of the route that do not fit the wanted partitions, and `paused` those that a change paused.
    """

    stream: str
    source: str
    found: Partitioned
    wanted: Partitioning
    info: StreamInfo
    left: Mapping[str, int]
    unneeded: Sequence[str]
    paused: Sequence[str]

    @property
    def has_wanted(self) -> bool:
        """True if the stream has the wanted partitions."""
        compare = self.wanted.difference if self.source else self.wanted.disorder
        return self.found.changing is None and compare(self.found.partitioning) is None

    @property
    def is_done(self) -> bool:
        """True if nothing is left to do."""
        return self.has_wanted and not self.unneeded and not self.paused

    @property
    def unsettled(self) -> int:
        """The number of messages in the old partitions that are not settled."""
        return sum(self.left.values())


class PartitionsChange:
    """The change of the partitions of a route to those of its settings.

    Every method raises `SourceError` and `LinkError`, and can be cancelled. Nothing is lost by that: `apply` continues.
    """

    def __init__(self, link: CommandLink, source: SourceSettings, spec: ConsumerSpec) -> None:
        """`source` has the wanted partitions. `spec` is that of a durable, but for what depends on its partition."""
        wanted, consumer = partitioning_of(source), source.kind.consumer(source)
        assert wanted is not None, "the route has partitions"
        assert consumer is not None
        self._link = link
        self._spec = spec
        self._wanted = wanted
        self._origin, self._durable = consumer
        self._wanted_durables = durables(source)
        self._lock = ChangeLock(link, self._origin, self._durable)

    # --- what there is ---

    async def standing(self) -> Standing:
        """Return what the server shows. Raises `SourceError` without a stream that has partitions."""
        stored = self._link.stored(self._origin)
        info, found = await stored.of_stream("INFO", read_partitioned)
        name = self._origin
        if found is None:
            name = derived_stream(self._origin, self._durable)
            stored = self._link.stored(name)
            info, found = await self._copy(stored)
        own = re.compile(re.escape(self._durable) + "-(0|[1-9][0-9]{0,3})")
        existing = {one.name: one for one in await stored.consumers() if own.fullmatch(one.name)}
        left = {one.name: one.num_pending + one.num_ack_pending for one in existing.values()}
        left |= await self._without_durable(stored, found.partitioning, existing)
        return Standing(
            name,
            found.source,
            found,
            self._wanted,
            info,
            {durable: count for durable, count in left.items() if count},
            [durable for durable, one in existing.items() if not self._fits(durable, one)],
            [durable for durable, one in existing.items() if one.paused and one.config.paused_by == PAUSED_BY],
        )

    async def _copy(self, stored: StoredMessages) -> tuple[StreamInfo, Partitioned]:
        try:
            info, found = await stored.of_stream("INFO", read_partitioned)
        except SourceError as error:
            if error.reason != reasons.STREAM_NOT_FOUND:
                raise
            detail = f"the stream {stored.stream!r} does not exist; the next router that starts creates it"
            raise SourceError(detail, reason=reasons.STREAM_NOT_FOUND) from None
        if found is None or found.source != self._origin:
            detail = f"the stream {stored.stream!r} has no partitions of {self._origin!r}; use another `durable`"
            raise SourceError(detail, reason=reasons.PARTITIONS_DIFFER)
        return info, found

    async def _without_durable(
        self, stored: StoredMessages, partitioning: Partitioning, existing: Mapping[str, ConsumerInfo]
    ) -> dict[str, int]:
        """Return the number of messages of each partition whose durable no process has created yet."""
        found: dict[str, int] = {}
        for number in range(partitioning.count):
            name = f"{self._durable}-{number}"
            if name not in existing:
                found[name] = await stored.of_stream("INFO", _messages, {"subjects_filter": f"{number}.>"})
        return found

    def _fits(self, durable: str, info: ConsumerInfo) -> bool:
        """Return True if a durable is that of a wanted partition."""
        if durable not in self._wanted_durables:
            return False
        partition = self._wanted_durables.index(durable)
        return sorted(info.config.filter_subjects) == sorted(self._wanted.filters(partition))

    # --- what is done ---

    async def apply(self, report: Callable[[str], object]) -> None:
        """Change the partitions. Calls `report` with what is done, as text.

        Raises `SourceError` if another command changes them.
        """
        await self._lock.take()
        try:
            await self._apply(report)
            now = await self.standing()
        finally:
            await self._lock.free()
        if not now.has_wanted:
            count = now.found.partitioning.count
            detail = f"the partitions of {now.stream!r} are not those of the configuration: it has {count} now"
            raise SourceError(detail, reason=reasons.PARTITIONS_DIFFER)

    async def _apply(self, report: Callable[[str], object]) -> None:
        now = await self.standing()
        if not now.source and (other := sorted({*now.unneeded} & {*self._wanted_durables})):
            detail = (
                f"the durable {other[0]!r} of stream {now.stream!r} has another filter than the route; where the "
                "stream has the partitions itself, a route with another filter needs another `durable`"
            )
            raise SourceError(detail, reason=reasons.CONSUMER_MISMATCH)
        if not now.has_wanted:
            if now.source:
                await self._change_copy(now, report)
            else:
                await self._change_transform(now, report)
            now = await self.standing()
        await self._tidy(now, report)

    async def _change_copy(self, now: Standing, report: Callable[[str], object]) -> None:
        stored = self._link.stored(now.stream)
        if now.found.changing is None:
            report(f"stopping: {now.stream} copies nothing of {now.source} from now on")
            if now.info.retention != "limits":
                # What is acked is deleted, and with it the number of the last message that was copied.
                await self._pause(now)
                now = await self.standing()
            await self._stop(stored, now)
            now = await self.standing()
        change = now.found.changing
        assert change is not None
        if not change.next:
            change = replace(change, next=await self._last_copied(stored, change) + 1)
            await self._edit(stored, {}, change)
        await self._resume(now)
        await self._settle(report)
        await self._lock.keep()
        await stored.of_stream("PURGE", done)
        report(f"going on: {now.stream} copies {now.source} from message {change.next:,}, {self._counted()}")
        sources = [source_of(change.source, self._wanted) | {"opt_start_seq": change.next}]
        # Without sources the stream has a subject, and a duplicate window.
        without = {"subjects": None, **({"duplicate_window": 0} if self._has_no_window else {})}
        found = await self._edit(stored, {"sources": sources, **without}, None)
        if found is None or self._wanted.difference(found.partitioning) is not None:
            detail = f"the server accepted the change of {now.stream!r}, and the stream does not show it"
            raise SourceError(detail, reason=reasons.STREAM_REFUSED)

    async def _stop(self, stored: StoredMessages, now: Standing) -> None:
        transforms = now.found.partitioning.transforms
        await self._edit(stored, {"sources": None}, Changing(now.source, transforms, now.found.sequence))

    async def _last_copied(self, stored: StoredMessages, change: Changing) -> int:
        """Return the last message that a copy has copied before it stopped."""
        last, before = (await stored.info()).last_sequence, -1
        while last != before:
            # Messages that a cluster was about to store when it stopped are stored a little later.
            await self._lock.keep()
            await trio.sleep(STORED_WITHIN)
            last, before = (await stored.info()).last_sequence, last
        message = await stored.get(last) if last else None
        # Without the message, it was delivered before `copied` was looked up, and it is deleted by now.
        return change.copied if message is None else copied_from(message.headers) or change.copied

    async def _change_transform(self, now: Standing, report: Callable[[str], object]) -> None:
        await self._settle(report)
        stored = self._link.stored(now.stream)
        # A durable that is created later would get the messages of an earlier time with its partition.
        existing = {one.name for one in await stored.consumers()}
        for number, durable in enumerate(self._wanted_durables):
            if durable not in existing:
                await self._create(now, number)
        before = (await stored.info()).last_sequence
        ((source, destination),) = self._transform(now)
        report(f"{now.stream} stores messages with their new partitions, {self._counted()}")
        await self._edit(stored, {"subject_transform": {"src": source, "dest": destination}}, None)
        published = (await stored.info()).last_sequence - before
        if published:
            report(
                f"warning: {published:,} messages were published meanwhile, from {before + 1:,} on: the order of their "
                "keys is not certain"
            )

    def _transform(self, now: Standing) -> Sequence[tuple[str, str]]:
        """Return the transform of a stream of its own for the wanted partitions."""
        found = now.found.partitioning
        if len(self._wanted.patterns) == 1 and self._wanted.by:
            wanted = replace(found, count=self._wanted.count, by=self._wanted.by, patterns=found.patterns)
            if self._wanted.disorder(wanted) is None:
                return wanted.transforms
        wanted = Partitioning(self._wanted.count, (), found.patterns)
        if self._wanted.disorder(wanted) is not None:
            detail = (
                f"the partitions of the route can't be those of all messages of {now.stream!r}, whose transform is for "
                f"{', '.join(found.patterns)}; change it by hand, or let the route read a copy of another name"
            )
            raise SourceError(detail, reason=reasons.PARTITIONS_DIFFER)
        return wanted.transforms

    async def _create(self, now: Standing, partition: int) -> None:
        """Create the durable of a wanted partition, behind all messages that the stream has."""
        spec = replace(
            self._spec,
            stream=now.stream,
            durable=self._wanted_durables[partition],
            filters=self._wanted.filters(partition),
            standby=True,
            # A work queue has no messages that are settled, and lets a consumer begin only with its first one.
            deliver="new" if now.info.retention == "limits" else "all",
        )
        (await self._link.link.open_consumer(spec, _ignore)).close()

    # --- its steps ---

    async def _settle(self, report: Callable[[str], object]) -> None:
        """Wait until every message in an old partition is settled."""
        reported = -1
        while (left := (now := await self.standing()).unsettled) > 0:
            if left != reported:
                reported = left
                report(f"waiting: {left:,} messages in {len(now.left):,} of the old partitions are not settled")
            await self._lock.keep()
            await trio.sleep(LOOK_EVERY)

    async def _pause(self, now: Standing) -> None:
        for number in range(now.found.partitioning.count):
            durable = PausedDurable(self._link, now.stream, f"{self._durable}-{number}")
            try:
                await durable.pause(PAUSED_FOR, PAUSED_BY)
            except SourceError as error:
                if error.reason != reasons.CONSUMER_NOT_FOUND:
                    raise

    async def _resume(self, now: Standing) -> None:
        for durable in now.paused:
            await PausedDurable(self._link, now.stream, durable).resume()

    async def _tidy(self, now: Standing, report: Callable[[str], object]) -> None:
        """Resume what was paused, and delete durables that are not needed, until no process creates them again."""
        await self._resume(now)
        stored = self._link.stored(now.stream)
        for _ in range(TRIES):
            if not now.unneeded:
                return
            report(f"deleting: {len(now.unneeded)} durables of the old partitions")
            for durable in now.unneeded:
                await self._lock.keep()
                await stored.delete_consumer(durable)
            await trio.sleep(NOTICED_WITHIN)
            await self._lock.keep()
            now = await self.standing()
        detail = f"processes with the old partitions create their durables again: {', '.join(now.unneeded)}; end them"
        raise SourceError(detail, reason=reasons.PARTITIONS_DIFFER)

    async def _edit(
        self, stored: StoredMessages, changes: Mapping[str, object], change: Changing | None
    ) -> Partitioned | None:
        """Change fields of the configuration of a stream, None removes one, and what is recorded of the change."""
        await self._lock.keep()
        fields = await stored.of_stream("INFO", _config_fields)
        metadata = {key: value for key, value in (fields.get("metadata") or {}).items() if not _is_added(key)}
        metadata.pop(CHANGING, None)
        if change is not None:
            metadata[CHANGING] = change.as_text()
        changed = {**fields, **changes, "metadata": metadata}
        config = {key: value for key, value in changed.items() if value is not None}
        _, found = await stored.of_stream("UPDATE", read_partitioned, config)
        return found

    @property
    def _has_no_window(self) -> bool:
        version = self._link.link.info.major_minor
        return version is None or version >= NO_WINDOW_SINCE

    def _counted(self) -> str:
        return f"with {self._wanted.count} partitions"


def _ignore(batch: list[RawMessage]) -> None:
    """Ignore what a consumer delivers: nothing is requested from it."""


def _is_added(key: str) -> bool:
    return key.startswith(_SERVERS_OWN)


def _messages(body: bytes) -> int:
    """Read the number of messages whose subjects match the filter of a request `STREAM.INFO`."""
    subjects = answer_of(body).required("state").object("subjects")
    return 0 if subjects is None else sum(subjects.number(one) for one in subjects.fields)


def _config_fields(body: bytes) -> dict[str, Any]:
    """Read every field of the configuration of a stream, to be sent back with changes."""
    return answer_of(body).required("config").fields
