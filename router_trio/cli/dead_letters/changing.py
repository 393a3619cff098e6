"""Sending dead letters again, and deleting them: several at a time, each behind the answer to what was before."""

from __future__ import annotations

from collections.abc import Sequence

from router_trio.cli.dead_letters.letter import Letter, header_block, why_not
from router_trio.cli.dead_letters.links import CommandLink
from router_trio.cli.dead_letters.selection import Report
from router_trio.errors import SourceError
from router_trio.nats.jetstream.api import StreamInfo, nanoseconds
from router_trio.nats.jetstream.pubacks import Refused, read_puback
from router_trio.nats.requests import Request
from router_trio.nats.stored import StoredMessages
from router_trio.protocol import framing, headers


class Purge:
    """Deletes dead letters. `done` counts those that are deleted, `failed` those that could not be."""

    def __init__(self, stored: StoredMessages, report: Report) -> None:
        self.done: int = 0
        self.failed: int = 0
        self._stored = stored
        self._report = report

    async def apply(self, letters: Sequence[Letter]) -> None:
        """Delete these."""
        asked = [(letter, self._stored.delete(letter.sequence)) for letter in letters]
        for letter, request in asked:
            try:
                await self._stored.deleted(request)
            except SourceError as error:
                self._failed(letter, f"it was not deleted: {error}")
            else:
                self.done += 1

    def _failed(self, letter: Letter, why: str) -> None:
        self.failed += 1
        self._report(letter, why)


class Redrive(Purge):
    """Sends dead letters to where they came from, and deletes each that has arrived there.

    `again` counts those among `done` that the stream had already: a redrive before this one was cut short.
    """

    def __init__(
        self,
        stored: StoredMessages,
        info: StreamInfo,
        source: CommandLink,
        patterns: Sequence[str],
        reserved: Sequence[str],
        report: Report,
    ) -> None:
        super().__init__(stored, report)
        self.again: int = 0
        self._created = nanoseconds(info.created)
        self._source = source
        self._patterns = patterns
        self._reserved = reserved

    def why_not(self, letter: Letter) -> str | None:
        """Return why this one can't go back, or None."""
        why = why_not(letter, self._patterns, *self._reserved)
        if why is None and len(letter.message.payload) + len(letter.message.headers) > self._source.link.max_payload:
            why = f"it is larger than the max_payload of {self._source.link.max_payload} bytes of its source's server"
        return why

    async def apply(self, letters: Sequence[Letter]) -> None:
        """Send these, and delete those that arrived. Raises `LinkError` if a link dies."""
        sent: list[tuple[Letter, Request]] = []
        for letter in letters:
            why = self.why_not(letter)
            if why is None:
                sent.append((letter, self._send(letter)))
            else:
                self._failed(letter, why)
        arrived = [
            letter for letter, request in sent if letter.from_stream and await self._stored_again(letter, request)
        ]
        core = [(letter, request) for letter, request in sent if not letter.from_stream]
        if core:
            # Nobody confirms a core message. Behind the fence the server has passed it on, or said that nobody listens.
            await self._source.link.fence()
            arrived += [letter for letter, request in core if self._was_heard(letter, request)]
        await super().apply(arrived)

    def _send(self, letter: Letter) -> Request:
        block = header_block(letter, self._stored.stream, self._created)
        return self._source.requests.send(framing.wire(letter.origin), letter.message.payload, block)

    async def _stored_again(self, letter: Letter, request: Request) -> bool:
        try:
            _, _, duplicate = read_puback(await request.answered())
        except SourceError as error:
            self._failed(letter, f"it was not stored: {error}")
            return False
        except Refused as error:
            self._failed(letter, f"it was not stored: {error.reason}: {error.detail}")
            return False
        self.again += duplicate
        return True

    def _was_heard(self, letter: Letter, request: Request) -> bool:
        request.forget()
        answer = request.answer
        if request.denied is not None:
            self._failed(letter, request.denied)
        elif answer is not None and headers.status(framing.header_block(answer))[0] == 503:
            self._failed(letter, f"nobody subscribes to {letter.origin}; start the router, and try again")
        else:
            return True
        return False
