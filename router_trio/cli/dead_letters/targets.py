"""The ways that a dead letter can take: through its own route again, or to the subject on which it came."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from router_trio.cli.dead_letters.letter import Letter, as_received, for_source, foreign, is_newer, why_not
from router_trio.cli.dead_letters.storing import Kept, Streams, keeps_the_last
from router_trio.errors.quotes import excerpt, redact
from router_trio.errors.reasons import UNMATCHED
from router_trio.nats.link import NatsLink
from router_trio.routing.rehearsal import Copy, Rehearsal
from router_trio.settings import RouteSettings, SourceSettings


class FilteredOut(Kept):
    """The route sends nothing for the message."""


class Way(Protocol):
    """Decides what is sent for a dead letter."""

    warning: str | None
    """A sentence about who gets what is sent, if that is not the route alone."""

    async def would(self, letter: Letter) -> tuple[str, Sequence[Copy]]:
        """Return what would be done with a dead letter, and what would be sent, as far as that can be known.

        Raises as `copies`.
        """
        ...

    async def copies(self, letter: Letter) -> Sequence[Copy]:
        """Return what is to be sent for a dead letter. Raises `Kept` if that is nothing, and `SourceError`."""
        ...


class Origin:
    """Where the messages of a route come from, and which dead letters can be of such messages."""

    def __init__(self, route: RouteSettings, reserved: Sequence[str], streams: Streams, *, foreign: bool) -> None:
        """`foreign`: also those that do not look as if the route had written them."""
        self.source: SourceSettings = route.source
        self.stream: str | None = route.source.kind.stream(route.source)
        """The stream that the route reads, None if it reads none."""
        self._reserved = reserved
        self._streams = streams
        self._foreign = foreign

    async def check(self, letter: Letter) -> None:
        """Raise `Kept` for a dead letter that is not of a message of the route; `SourceError` if that isn't known."""
        source = self.source
        stranger = None if self._foreign else foreign(letter, self.stream)
        if stranger is not None:
            raise Kept(
                f"it does not look like a dead letter of this route: {stranger}; --foreign sends it all the same"
            )
        taken = None
        if self.stream is not None:
            info = await self._streams.info(source.connection, self.stream)
            taken = None if info.has_others else info.subjects
        why = why_not(letter, source.patterns, taken, *self._reserved)
        if why is not None:
            raise Kept(why)


class ThroughRoute:
    """Takes dead letters through their own route: no other consumer of the source gets them."""

    warning: str | None = None

    def __init__(self, origin: Origin, rehearsal: Rehearsal, streams: Streams, stream: str) -> None:
        """`stream` has the dead letters."""
        self._origin = origin
        self._rehearsal = rehearsal
        self._streams = streams
        self._stream = stream

    async def would(self, letter: Letter) -> tuple[str, Sequence[Copy]]:
        """See `Way`. A handler is not called."""
        await self._check(letter)
        if self._rehearsal.calls_handler:
            return "go through the handler of the route", ()
        copies = await self._made_of(letter)
        return f"go to {', '.join(excerpt(copy.subject) for copy in copies)}", copies

    async def copies(self, letter: Letter) -> Sequence[Copy]:
        """See `Way`."""
        await self._check(letter)
        return await self._made_of(letter)

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
                    "which the route has sent, or is about to; purge this one if it is out of date"
                )

    async def _made_of(self, letter: Letter) -> Sequence[Copy]:
        made = await self._rehearsal.run(as_received(letter, self._origin.stream, self._stream))
        if made.failed is not None:
            detail = excerpt(redact(made.failed.detail), 300)
            raise Kept(f"the route fails on it again: {made.failed.reason}{': ' if detail else ''}{detail}")
        if made.filtered is not None or not any(not copy.mirror for copy in made.copies):
            raise FilteredOut(f"the route filters it out ({made.filtered or UNMATCHED}); purge it if that is right")
        return made.copies


class ToSource:
    """Publishes dead letters on the subjects on which they came."""

    def __init__(self, origin: Origin, link: NatsLink, streams: Streams, stream: str) -> None:
        """`link` is that of the source, `stream` has the dead letters."""
        self._origin = origin
        self._link = link
        self._streams = streams
        self._stream = stream
        if origin.stream is None:
            self.warning: str | None = "each subscriber of the old subjects gets these messages, not this route alone"
        else:
            self.warning = (
                f"each consumer of stream {origin.stream} whose filter matches gets these messages once more, not this "
                "route alone"
            )

    async def would(self, letter: Letter) -> tuple[str, Sequence[Copy]]:
        """See `Way`."""
        return f"go to {excerpt(letter.origin)}", await self.copies(letter)

    async def copies(self, letter: Letter) -> Sequence[Copy]:
        """See `Way`."""
        await self._origin.check(letter)
        connection, limit = self._origin.source.connection, self._link.max_payload
        copy = for_source(letter, self._stream, connection, jetstream=self._origin.stream is not None)
        if len(copy.payload) + len(copy.headers) > limit:
            raise Kept(f"it is larger than the max_payload of {limit} bytes of its source's server")
        if self._origin.stream is not None:
            taking = await self._streams.taking(connection, letter.origin)
            if taking.name != self._origin.stream:
                raise Kept(f"stream {taking.name} takes {excerpt(letter.origin)}, not {self._origin.stream}")
        return (copy,)
