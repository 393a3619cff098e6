"""Redriving dead letters and deleting them: several at a time, each step behind the answers to the one before.

A redrive can be killed between any two steps, and two can run at the same time: what was sent has the same id the next
time, and a dead letter is deleted only when all that was made of it was read back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from router_trio.cli.dead_letters.letter import Letter
from router_trio.cli.dead_letters.selection import Report
from router_trio.cli.dead_letters.storing import Kept, Sent, Streams, keeps_the_last
from router_trio.cli.dead_letters.targets import FilteredOut, Way
from router_trio.errors import SourceError
from router_trio.nats.jetstream.api import StreamInfo
from router_trio.nats.stored import StoredMessages
from router_trio.routing.rehearsal import Copy


class Purge:
    """Deletes dead letters. `done` counts those that are deleted, `failed` those that could not be."""

    def __init__(self, stored: StoredMessages, report: Report) -> None:
        self.done: int = 0
        self.failed: int = 0
        self._stored = stored
        self._report = report

    async def would(self, letter: Letter) -> str:
        """Return what would be done with a dead letter. Raises `Kept` and `SourceError` if that is nothing."""
        return "be deleted"

    async def apply(self, letters: Sequence[Letter]) -> None:
        """Delete these. Raises `LinkError` if a link dies."""
        asked = [(letter, self._stored.delete(letter.sequence)) for letter in letters]
        for letter, request in asked:
            try:
                await self._stored.deleted(request)
            except SourceError as error:
                if not await self._is_gone(letter):
                    self.keep(letter, f"it was not deleted: {error}")
                    continue
            self.done += 1

    async def _is_gone(self, letter: Letter) -> bool:
        """Return True if a dead letter was deleted meanwhile: the refusal has no code that tells."""
        try:
            return await self._stored.get(letter.sequence) is None
        except SourceError:
            return False

    def keep(self, letter: Letter, why: str) -> None:
        """Report a dead letter that stays."""
        self.failed += 1
        self._report(letter.sequence, why)


@dataclass(frozen=True, slots=True)
class _Redriven:
    """A dead letter and all that was sent for it."""

    letter: Letter
    sent: Sequence[Sent]


class Redrive(Purge):
    """Sends what a way makes of dead letters, and deletes each of which all is stored.

    `again` counts those among `done` that were stored before: a redrive, or the route, was cut short. `filtered` counts
    those among `failed` for which the route sends nothing.
    """

    def __init__(self, stored: StoredMessages, way: Way, streams: Streams, report: Report) -> None:
        super().__init__(stored, report)
        self.again: int = 0
        self.filtered: int = 0
        self._way = way
        self._streams = streams

    async def would(self, letter: Letter) -> str:
        told, copies = await self._way.would(letter)
        await self._streams_for(letter, copies)
        return told

    async def apply(self, letters: Sequence[Letter]) -> None:
        """Send these, and delete those that are stored. Raises `LinkError` if a link dies."""
        under_way: list[_Redriven] = []
        replaced: set[tuple[str, str]] = set()
        for letter in letters:
            try:
                copies = await self._way.copies(letter)
                # All are looked up before any is sent: what can't be sent whole is not sent at all.
                streams = await self._streams_for(letter, copies)
            except (Kept, SourceError) as error:
                self._stays(letter, error)
                continue
            values = {
                (copy.connection, copy.subject)
                for copy, stream in zip(copies, streams, strict=True)
                if stream is not None and keeps_the_last(stream)
            }
            if values & replaced:
                # It would replace what is not read back yet.
                await self._finish(under_way)
                under_way, replaced = [], set()
            replaced |= values
            under_way.append(_Redriven(letter, self._send(copies, streams)))
        await self._finish(under_way)

    async def _finish(self, under_way: list[_Redriven]) -> None:
        """Delete the dead letters of which all is stored."""
        for connection in {sent.copy.connection for one in under_way for sent in one.sent if sent.stream is None}:
            # Nobody confirms a core message. Behind the fence the server has passed it on, or said that nobody listens.
            await self._streams.fence(connection)
        under_way = await self._passing(under_way, self._confirmed)
        under_way = await self._passing(under_way, self._read_back)
        # Its stream may have given its sequence to another message meanwhile, which nobody has sent.
        asked = {one.letter.sequence: self._stored.ask_for(one.letter.sequence) for one in under_way}

        async def still_there(one: _Redriven) -> None:
            found = await self._stored.found(asked[one.letter.sequence])
            if found is not None and found != one.letter.message:
                raise Kept("its stream has another message there now; list them again")

        under_way = await self._passing(under_way, still_there)
        before = self.failed
        await super().apply([one.letter for one in under_way])
        if self.failed == before:
            self.again += sum(any(sent.duplicate for sent in one.sent) for one in under_way)

    def _send(self, copies: Sequence[Copy], streams: Sequence[StreamInfo | None]) -> Sequence[Sent]:
        sent = [self._streams.send(copy, stream) for copy, stream in zip(copies, streams, strict=True)]
        for one in sent:
            if one.copy.mirror:
                one.request.forget()
        return [one for one in sent if not one.copy.mirror]

    async def _streams_for(self, letter: Letter, copies: Sequence[Copy]) -> list[StreamInfo | None]:
        return [None if copy.mirror else await self._streams.stream_for(copy, letter) for copy in copies]

    async def _confirmed(self, one: _Redriven) -> None:
        for sent in one.sent:
            if sent.stream is None:
                self._streams.heard(sent)
            else:
                await self._streams.acked(sent)

    async def _read_back(self, one: _Redriven) -> None:
        # Of several values of one subject that a handler made, the last one is kept.
        last = {(sent.copy.connection, sent.copy.subject): sent for sent in one.sent}
        for sent in one.sent:
            if sent.stream is None:
                continue
            if keeps_the_last(sent.stream) and last[sent.copy.connection, sent.copy.subject] is not sent:
                continue
            await self._streams.is_there(sent)

    async def _passing(
        self, under_way: Sequence[_Redriven], step: Callable[[_Redriven], Awaitable[None]]
    ) -> list[_Redriven]:
        """Return those that pass a step; report the others, which stay."""
        passed: list[_Redriven] = []
        for one in under_way:
            try:
                await step(one)
            except (Kept, SourceError) as error:
                for sent in one.sent:
                    sent.request.forget()
                self._stays(one.letter, error)
            else:
                passed.append(one)
        return passed

    def _stays(self, letter: Letter, why: Kept | SourceError) -> None:
        self.filtered += isinstance(why, FilteredOut)
        self.keep(letter, str(why))
