"""Audit a route, publish the copies that are missing, delete the keys that are extra, and audit it again.

Missing copies get the ids that they would have had.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing

from router_trio.audit.audit import Audit, Pace, Progress, Range
from router_trio.audit.expectations import ExpectedCopy
from router_trio.audit.extra import ExtraKey
from router_trio.audit.report import Report
from router_trio.errors import SourceError
from router_trio.errors.quotes import excerpt
from router_trio.nats.command_link import CommandLink
from router_trio.nats.jetstream.pubacks import Refused, read_puback
from router_trio.nats.requests import Request
from router_trio.protocol import framing
from router_trio.settings import RouteSettings, Settings

TOGETHER = 64
"""Copies that are published before the first PubAck is waited for."""


MAX_REFUSALS = 20
"""Refused copies whose reasons are kept."""


class RepairError(ValueError):
    """A repair would publish copies of more messages than the route has ever got."""


async def refuse(why: str) -> None:
    """Raise `RepairError`."""
    raise RepairError(why)


async def accept(why: str) -> None:
    """Return, so that everything is published."""


def excess(found: Audit) -> str | None:
    """Return why a repair would publish more than the route has ever routed; None if it would not."""
    lacking = found.lacking()
    if lacking <= found.deliveries:
        return None
    return (
        f"copies of {lacking:,} messages are missing, and the durable of the route has made {found.deliveries:,} "
        "deliveries, so some of them were never routed: the durable, its filter, the destinations or the name of the "
        "route may have changed"
    )


async def repaired(
    settings: Settings,
    route: RouteSettings,
    links: Mapping[str, CommandLink],
    wanted: Range,
    *,
    rate: float = 0,
    progress: Progress = lambda done, total: None,
    begun: Callable[[Audit], None] = lambda audit: None,
    confirm: Callable[[str], Awaitable[None]] = refuse,
) -> tuple[Report, Repair]:
    """Audit a route, publish what is missing and delete what is extra. Return the report after that, and the repair.

    Takes as long as two audits if there is something to repair; `begun` is called with each of them. `confirm` is
    called with the reason if more messages lack copies than the route has ever got, and raises unless they are to be
    published. Raises `SourceError`, `LinkError`, and by default `RepairError`; can be cancelled.
    """
    limit = 0.0 if route.limit is None else route.limit.rate.messages / route.limit.rate.seconds
    repair = Repair(links, Pace(min((one for one in (rate, limit) if one), default=0.0)))
    while True:
        found = Audit(settings, route, links, rate=rate, progress=progress)
        begun(found)
        report = await found.run(wanted)
        if repair.was_used or not (report.counts["missing"] or report.counts["extra"]):
            return report, repair
        if (why := excess(found)) is not None:
            await confirm(why)
        await repair.publish(found.missing())
        repair.overtaken = found.overtaken
        await repair.delete(found.extra())


class Repair:
    """Publishes copies and deletes of keys, and counts: `stored`, `deleted`, `duplicates` and `refused`."""

    def __init__(self, links: Mapping[str, CommandLink], pace: Pace) -> None:
        """`pace` limits the copies in a second."""
        self.stored: int = 0
        self.deleted: int = 0
        self.refused: int = 0
        self.duplicates: int = 0
        """Copies that were not stored because a stream still remembers their ids, for its duplicate window."""
        self.overtaken: int = 0
        """Copies that were not published because they would replace newer ones of their subjects."""
        self.refusals: list[str] = []
        """Why copies were not stored: the first `MAX_REFUSALS`."""
        self.was_used: bool = False
        self._links = links
        self._pace = pace

    async def publish(self, copies: AsyncGenerator[ExpectedCopy, None]) -> None:
        """Publish copies in order, and wait for their PubAcks. Raises `LinkError`; can be cancelled between batches."""
        self.was_used = True
        waiting: list[tuple[str, Request]] = []
        async with aclosing(copies):
            async for expected in copies:
                copy = expected.copy
                assert copy is not None, "only copies that can be computed are missing"
                await self._send(waiting, copy.connection, copy.subject, copy.payload, copy.headers)
                if len(waiting) == TOGETHER:
                    self.stored += await self._finish(waiting)
        self.stored += await self._finish(waiting)

    async def delete(self, keys: AsyncGenerator[ExtraKey, None]) -> None:
        """Delete keys whose values have not changed since. Raises as `publish` does, and `SourceError`."""
        self.was_used = True
        waiting: list[tuple[str, Request]] = []
        async with aclosing(keys):
            async for one in keys:
                await self._send(waiting, one.connection, one.subject, b"", one.headers)
                if len(waiting) == TOGETHER:
                    self.deleted += await self._finish(waiting)
        self.deleted += await self._finish(waiting)

    async def _send(
        self, waiting: list[tuple[str, Request]], connection: str, subject: str, payload: bytes, block: bytes
    ) -> None:
        await self._pace.spend(1)
        waiting.append((subject, self._links[connection].requests.send(framing.wire(subject), payload, block)))

    async def _finish(self, waiting: list[tuple[str, Request]]) -> int:
        """Wait for these PubAcks, and return how many publishes were stored."""
        stored = 0
        for subject, request in waiting:
            try:
                _, _, duplicate = read_puback(await request.answered())
            except (SourceError, Refused) as error:
                self.refused += 1
                if len(self.refusals) < MAX_REFUSALS:
                    self.refusals.append(f"{excerpt(subject)}: {error}")
            else:
                stored += not duplicate
                self.duplicates += duplicate
        waiting.clear()
        return stored
