"""Run the last messages of a source through two configurations of its route. Nothing is published.

Handlers are left out, as they may have side effects: both configurations are compared as if they had none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import aclosing

from router_trio.audit.changes import Changes, ComparedCopy, Result, compare
from router_trio.audit.expectations import size_limits
from router_trio.nats.command_link import CommandLink
from router_trio.nats.jetstream.api import StoredMessage
from router_trio.protocol import framing, headers, message_ids, schedules
from router_trio.routing.rehearsal import Arrived, Copy, Limits, Place, Rehearsal
from router_trio.settings import RouteSettings, Settings
from router_trio.subjects.patterns import matches

MAX_READ = 1_000_000
"""Messages that are read to find those of the route."""

MAX_CONTROL_LINE = 4096
"""Bytes of the first line of a publish, the default of nats-server, for connections that are not opened."""


class Configured:
    """The route in one of the two configurations; `route` is None if the configuration does not have it."""

    def __init__(self, settings: Settings, route: RouteSettings | None, limits: Mapping[str, Limits]) -> None:
        """`limits` are those of connections that are open. For others no message is too large."""
        self.route = route
        self._rehearsal: Rehearsal | None = None
        if route is not None:
            # What a message would be, were the handler to return it unchanged.
            alone = route.model_copy(update={"handler": None})
            default = Limits(framing.MAX_MESSAGE, MAX_CONTROL_LINE)
            all_limits = {name: limits.get(name, default) for name in settings.connections}
            self._rehearsal = Rehearsal(settings, alone, {}, all_limits)

    @property
    def patterns(self) -> Sequence[str]:
        """The subjects that the route reads."""
        return () if self.route is None else self.route.source.patterns

    async def of(self, message: StoredMessage, stream: str) -> Result:
        """Return what this configuration makes of a message of the stream."""
        if self._rehearsal is None:
            return Result("no_route")
        if not any(matches(pattern, message.subject) for pattern in self.patterns):
            return Result("not_of_its_filter")
        place = Place(stream, message.sequence, message.time_ns)
        message_id = message_ids.of_position(framing.wire(stream), message.sequence, message.time_ns)
        arrived = Arrived(message.subject, message.headers, message.payload, message_id, place)
        result = await self._rehearsal.run(arrived)
        if result.failed is not None:
            return Result("failed", result.failed.reason)
        if result.filtered is not None:
            return Result("filtered", result.filtered)
        return Result("routed", copies=[self._compared(copy) for copy in result.copies])

    def _compared(self, copy: Copy) -> ComparedCopy:
        assert self._rehearsal is not None, "only a route has copies"
        # A delayed copy is compared as it will be published.
        target = headers.find(copy.headers, schedules.TARGET) or framing.wire(copy.subject)
        message_id, subject, name = message_ids.find(copy.headers), framing.text(target), ""
        for one in self._rehearsal.destinations:
            if one.connection != copy.connection or not matches(one.mapping.pattern, framing.text(target)):
                continue
            if not message_id or message_id.endswith(one.copy_id(target)):
                name = f"{one.connection}:{one.template}"
                subject = subject if one.mapping.deterministic else one.template
                break
        block = schedules.published(message_ids.remove(copy.headers))
        return ComparedCopy(copy.connection, subject, copy.payload, block, name)


class Trial:
    """The last messages of the source of a route, in an old and in a new configuration."""

    def __init__(
        self,
        old: tuple[Settings, RouteSettings | None],
        new: tuple[Settings, RouteSettings | None],
        links: Mapping[str, CommandLink],
    ) -> None:
        """At least one of both has the route. If both have it, they have it read the same stream.

        `links` has the connection of the source.
        """
        limits = size_limits(links)
        self._old, self._new = Configured(*old, limits), Configured(*new, limits)
        route = old[1] or new[1]
        assert route is not None, "one of the configurations has the route"
        self._route = route
        self._links = links

    async def run(self, count: int) -> Changes:
        """Compare the last `count` messages. Raises `SourceError` and `LinkError`; can be cancelled."""
        stream = self._route.source.kind.stream(self._route.source)
        assert stream is not None, "only what a stream holds can be read again"
        stored = self._links[self._route.source.connection].stored(stream)
        info = await stored.info()
        changes = Changes(self._route.name, stream, count)
        patterns = tuple(dict.fromkeys([*self._old.patterns, *self._new.patterns]))
        pattern = patterns[0] if len(patterns) == 1 else ">"
        last, size, read = info.last_sequence, count, 0
        while changes.lacking and last >= max(info.first_sequence, 1) and read < MAX_READ:
            first = max(last - size + 1, info.first_sequence, 1)
            rows = changes.block()
            async with aclosing(stored.batches(first, last, pattern)) as batches:
                async for batch in batches:
                    read += len(batch)
                    for one in batch:
                        if any(matches(each, one.subject) for each in patterns):
                            old, new = await self._old.of(one, stream), await self._new.of(one, stream)
                            rows.append(compare(one.sequence, one.subject, old, new))
            last, size = first - 1, 2 * size
        if changes.lacking and read >= MAX_READ:
            changes.notes.append(f"only the last {info.last_sequence - last:,} sequences of {stream} were read")
        changes.notes += self._handlers()
        return changes

    def _handlers(self) -> list[str]:
        routes = [one.route for one in (self._old, self._new) if one.route is not None]
        handlers = [route.handler for route in routes]
        if not any(handlers):
            return []
        changed = ", and it changes" if len(set(handlers)) > 1 else ""
        return [f"the handler is left out{changed}: what it would make of a message is not compared"]
