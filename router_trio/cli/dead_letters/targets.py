"""The targets of a redrive: the destinations of the route of a dead letter, or its original subject."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from router_trio.audit.letter import Letter, as_received, for_source, foreign, is_newer, why_not
from router_trio.cli.dead_letters.storing import Kept, Streams, keeps_the_last
from router_trio.errors.quotes import excerpt, redact
from router_trio.errors.reasons import UNMATCHED
from router_trio.nats.link import NatsLink
from router_trio.routing.rehearsal import Copy, Rehearsal
from router_trio.settings import RouteSettings, SourceSettings
from router_trio.settings.routes.sources.partitioned import derived_stream


class FilteredOut(Kept):
    """The route filters the message out, so that there is nothing to send."""


class Target(Protocol):
    """Decides which copies are sent for a dead letter."""

    warning: str | None
    """A warning about other receivers of the copies; None if there are none."""

    async def preview(self, letter: Letter) -> tuple[str, Sequence[Copy]]:
        """Return a description of what a redrive would do, and the copies, unless only a handler can make them.

        Raises the exceptions of `copies`.
        """
        ...

    async def copies(self, letter: Letter) -> Sequence[Copy]:
        """Return the copies to send for a dead letter. Raises `Kept` if there are none, and `SourceError`."""
        ...


class Origin:
    """The source of a route, which decides whether a dead letter can be a message of the route."""

    def __init__(self, route: RouteSettings, reserved: Sequence[str], streams: Streams, *, foreign: bool) -> None:
        """`foreign` also accepts dead letters that the route does not seem to have written."""
        self.source: SourceSettings = route.source
        self.stream: str | None = route.source.kind.stream(route.source)
        """The stream that the route reads; None for a core subscription."""
        consumer = route.source.kind.consumer(route.source)
        self._derived: str | None = None
        if consumer is not None and route.source.partitions is not None:
            self._derived = derived_stream(*consumer)
        self._reserved = reserved
        self._streams = streams
        self._foreign = foreign

    def stream_of(self, letter: Letter) -> str | None:
        """Return the stream by which a dead letter of the route names its source.

        That of a route with partitions may be the stream that has them, in place of the one that it is a copy of.
        """
        return self._derived if self._derived is not None and letter.stream == self._derived else self.stream

    async def check(self, letter: Letter) -> None:
        """Raise `Kept` if a dead letter can't be a message of the route, and `SourceError` if that can't be checked."""
        source = self.source
        problem = None if self._foreign else foreign(letter, self.stream_of(letter))
        if problem is not None:
            raise Kept(f"it does not look like a dead letter of this route: {problem}; --foreign sends it anyway")
        taken = None
        if self.stream is not None:
            info = await self._streams.info(source.connection, self.stream)
            taken = None if info.has_others else info.subjects
        why = why_not(letter, source.patterns, taken, *self._reserved)
        if why is not None:
            raise Kept(why)


class ThroughRoute:
    """The `Target` that sends dead letters through their route, so that no other consumer of the source gets them."""

    warning: str | None = None

    def __init__(self, origin: Origin, rehearsal: Rehearsal, streams: Streams, stream: str) -> None:
        """`stream` has the dead letters."""
        self._origin = origin
        self._rehearsal = rehearsal
        self._streams = streams
        self._stream = stream

    async def preview(self, letter: Letter) -> tuple[str, Sequence[Copy]]:
        """Return a description of a redrive through the route, without calling a handler."""
        await self._check(letter)
        if self._rehearsal.calls_handler:
            return "be sent through the handler of the route", ()
        copies = await self._rehearse(letter)
        return f"be sent to {', '.join(excerpt(copy.subject) for copy in copies)}", copies

    async def copies(self, letter: Letter) -> Sequence[Copy]:
        await self._check(letter)
        return await self._rehearse(letter)

    async def _check(self, letter: Letter) -> None:
        await self._origin.check(letter)
        connection, stream = self._origin.source.connection, self._origin.stream
        if stream is None:
            return
        info = await self._streams.info(connection, stream)
        if keeps_the_last(info):
            last = await self._streams.stored(connection, stream).last(letter.origin)
            if last is not None and is_newer(last, letter, None, at_source=True):
                raise Kept(
                    f"stream {info.name} has a newer message on {excerpt(letter.origin)} (sequence {last.sequence}), "
                    "which the route has sent or will send; purge this one if it is out of date"
                )

    async def _rehearse(self, letter: Letter) -> Sequence[Copy]:
        result = await self._rehearsal.run(as_received(letter, self._origin.stream_of(letter), self._stream))
        if result.failed is not None:
            detail = excerpt(redact(result.failed.detail), 300)
            raise Kept(f"it fails in the route again: {result.failed.reason}{': ' if detail else ''}{detail}")
        if result.filtered is not None or not any(not copy.mirror for copy in result.copies):
            raise FilteredOut(f"the route filters it out ({result.filtered or UNMATCHED}); purge it if that is right")
        return result.copies


class ToSource:
    """The `Target` that publishes dead letters on their original subjects."""

    def __init__(self, origin: Origin, link: NatsLink, streams: Streams, stream: str) -> None:
        """`link` is the link to the source, `stream` has the dead letters."""
        self._origin = origin
        self._link = link
        self._streams = streams
        self._stream = stream
        if origin.stream is None:
            self.warning: str | None = (
                "every subscriber of the original subjects gets these messages, not only this route"
            )
        else:
            self.warning = (
                f"every consumer of stream {origin.stream} with a matching filter gets these messages again, not only "
                "this route"
            )

    async def preview(self, letter: Letter) -> tuple[str, Sequence[Copy]]:
        return f"be sent to {excerpt(letter.origin)}", await self.copies(letter)

    async def copies(self, letter: Letter) -> Sequence[Copy]:
        await self._origin.check(letter)
        connection, limit = self._origin.source.connection, self._link.max_payload
        copy = for_source(letter, self._stream, connection, jetstream=self._origin.stream is not None)
        if len(copy.payload) + len(copy.headers) > limit:
            raise Kept(f"it is larger than the max_payload of its source's server, {limit} bytes")
        if self._origin.stream is not None:
            info = await self._streams.stream_taking(connection, letter.origin)
            if info.name != self._origin.stream:
                raise Kept(f"stream {info.name} takes {excerpt(letter.origin)}, not stream {self._origin.stream}")
        return (copy,)
