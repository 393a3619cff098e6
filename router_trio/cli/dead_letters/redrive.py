"""Redrive and purge dead letters in batches; each step waits for the answers to the previous one.

A redrive can be killed between any two steps, and two can run at the same time: copies get the same ids each time, and
a dead letter is deleted only when all of its copies were read back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from router_trio.audit.letter import Letter
from router_trio.cli.dead_letters.selection import Report
from router_trio.cli.dead_letters.storing import Kept, Sent, Streams, keeps_the_last
from router_trio.cli.dead_letters.targets import FilteredOut, Target
from router_trio.errors import SourceError
from router_trio.nats.jetstream.api import StreamInfo
from router_trio.nats.stored import StoredMessages
from router_trio.routing.rehearsal import Copy


class Purge:
    """Deletes dead letters. `done` counts deleted ones, `failed` those that could not be deleted."""

    def __init__(self, stored: StoredMessages, report: Report) -> None:
        self.done: int = 0
        self.failed: int = 0
        self._stored = stored
        self._report = report

    async def preview(self, letter: Letter) -> str:
        """Return a description of what would be done with a dead letter. Raises `Kept` and `SourceError` if nothing."""
        return "be deleted"

    async def apply(self, letters: Sequence[Letter]) -> None:
        """Delete these dead letters. Raises `LinkError` if a link dies."""
        requests = [(letter, self._stored.delete(letter.sequence)) for letter in letters]
        for letter, request in requests:
            try:
                await self._stored.deleted(request)
            except SourceError as error:
                if not await self._is_deleted(letter):
                    self.keep(letter, f"it was not deleted: {error}")
                    continue
            self.done += 1

    async def _is_deleted(self, letter: Letter) -> bool:
        """Return True if a dead letter was deleted meanwhile, which the error of the server does not distinguish."""
        try:
            return await self._stored.get(letter.sequence) is None
        except SourceError:
            return False

    def keep(self, letter: Letter, why: str) -> None:
        """Count and report a dead letter that stays."""
        self.failed += 1
        self._report(letter.sequence, why)


@dataclass(frozen=True, slots=True)
class _Redriven:
    """A dead letter and the copies that were sent for it."""

    letter: Letter
    sent: Sequence[Sent]


class Redrive(Purge):
    """Sends the copies of dead letters to a target, and deletes each dead letter whose copies are all stored.

    `already_stored` counts those of `done` whose copies had been stored before, because a redrive or the route was
    interrupted. `filtered` counts those of `failed` that the route filters out.
    """

    def __init__(self, stored: StoredMessages, target: Target, streams: Streams, report: Report) -> None:
        super().__init__(stored, report)
        self.already_stored: int = 0
        self.filtered: int = 0
        self._target = target
        self._streams = streams

    async def preview(self, letter: Letter) -> str:
        description, copies = await self._target.preview(letter)
        await self._streams_for(letter, copies)
        return description

    async def apply(self, letters: Sequence[Letter]) -> None:
        """Send these dead letters, and delete those that are stored. Raises `LinkError` if a link dies."""
        pending: list[_Redriven] = []
        replaced: set[tuple[str, str]] = set()
        for letter in letters:
            try:
                copies = await self._target.copies(letter)
                # All streams are looked up first, so that either all copies are sent or none.
                streams = await self._streams_for(letter, copies)
            except (Kept, SourceError) as error:
                self._kept(letter, error)
                continue
            values = {
                (copy.connection, copy.subject)
                for copy, stream in zip(copies, streams, strict=True)
                if stream is not None and keeps_the_last(stream)
            }
            if values & replaced:
                # It would replace a copy that is not read back yet.
                await self._finish(pending)
                pending, replaced = [], set()
            replaced |= values
            pending.append(_Redriven(letter, self._send(copies, streams)))
        await self._finish(pending)

    async def _finish(self, pending: list[_Redriven]) -> None:
        """Delete the dead letters whose copies are all stored."""
        for connection in {
            sent.copy.connection for redriven in pending for sent in redriven.sent if sent.stream is None
        }:
            # A core publish is not confirmed. After the fence the server has delivered it, or answered that it has no
            # subscriber.
            await self._streams.fence(connection)
        pending = await self._passing(pending, self._confirm)
        pending = await self._passing(pending, self._read_back)
        # The sequence may meanwhile belong to another message, which was not sent: the stream may have been recreated.
        requests = {redriven.letter.sequence: self._stored.ask_for(redriven.letter.sequence) for redriven in pending}

        async def check_unchanged(redriven: _Redriven) -> None:
            found = await self._stored.found(requests[redriven.letter.sequence])
            if found is not None and found != redriven.letter.message:
                raise Kept("its stream now has another message with this sequence; run list again")

        pending = await self._passing(pending, check_unchanged)
        before = self.failed
        await super().apply([redriven.letter for redriven in pending])
        if self.failed == before:
            self.already_stored += sum(any(sent.duplicate for sent in redriven.sent) for redriven in pending)

    def _send(self, copies: Sequence[Copy], streams: Sequence[StreamInfo | None]) -> Sequence[Sent]:
        sent = [self._streams.send(copy, stream) for copy, stream in zip(copies, streams, strict=True)]
        for sent_copy in sent:
            if sent_copy.copy.mirror:
                sent_copy.request.forget()
        return [sent_copy for sent_copy in sent if not sent_copy.copy.mirror]

    async def _streams_for(self, letter: Letter, copies: Sequence[Copy]) -> list[StreamInfo | None]:
        return [None if copy.mirror else await self._streams.stream_for(copy, letter) for copy in copies]

    async def _confirm(self, redriven: _Redriven) -> None:
        for sent in redriven.sent:
            if sent.stream is None:
                self._streams.check_delivered(sent)
            else:
                await self._streams.wait_for_puback(sent)

    async def _read_back(self, redriven: _Redriven) -> None:
        # If a handler returned several messages for one subject, such a stream keeps only the last one.
        last = {(sent.copy.connection, sent.copy.subject): sent for sent in redriven.sent}
        for sent in redriven.sent:
            if sent.stream is None:
                continue
            if keeps_the_last(sent.stream) and last[sent.copy.connection, sent.copy.subject] is not sent:
                continue
            await self._streams.check_stored(sent)

    async def _passing(
        self, pending: Sequence[_Redriven], step: Callable[[_Redriven], Awaitable[None]]
    ) -> list[_Redriven]:
        """Return the dead letters that pass a step; report the others, which stay."""
        passed: list[_Redriven] = []
        for redriven in pending:
            try:
                await step(redriven)
            except (Kept, SourceError) as error:
                for sent in redriven.sent:
                    sent.request.forget()
                self._kept(redriven.letter, error)
            else:
                passed.append(redriven)
        return passed

    def _kept(self, letter: Letter, why: Kept | SourceError) -> None:
        self.filtered += isinstance(why, FilteredOut)
        self.keep(letter, str(why))
