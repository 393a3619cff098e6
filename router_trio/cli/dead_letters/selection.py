"""Which dead letters a command is about: those of one route, in one stream, of which an expression holds."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from router_trio.cli.dead_letters.letter import Letter, read_letter
from router_trio.errors import EvaluationError, SourceError, reasons
from router_trio.expressions.expression import Expression
from router_trio.expressions.message import Facts
from router_trio.nats.jetstream.api import StoredMessage, StreamInfo
from router_trio.nats.link import NatsLink
from router_trio.nats.stored import StoredMessages

Report = Callable[[Letter, str], None]
"""Told of a dead letter with which something is wrong, and what."""


async def find_stream(link: NatsLink, pattern: str, named: str | None) -> str:
    """Return the stream that has the dead letters. Raises `SourceError` if it is not clear which."""
    names = await link.find_streams(pattern)
    if named is not None:
        if named in names:
            return named
        told = f"stream {named!r} takes no subject of {pattern!r}; those that do: {', '.join(names) or 'none'}"
        raise SourceError(told, reason=reasons.STREAM_NOT_FOUND)
    if not names:
        told = f"no stream takes {pattern!r}, so no dead letters are stored; make one for it, as in [[streams]]"
        raise SourceError(told, reason=reasons.STREAM_NOT_FOUND)
    if len(names) > 1:
        told = f"several streams take {pattern!r}: {', '.join(names)}; choose one with --stream"
        raise SourceError(told, reason=reasons.SEVERAL_STREAMS)
    return names[0]


class Selection:
    """The dead letters of a route that are there when the command begins. What is added meanwhile is not among them."""

    def __init__(
        self,
        stored: StoredMessages,
        info: StreamInfo,
        route: str,
        pattern: str,
        where: Expression | None,
        limit: int | None,
        report: Report,
    ) -> None:
        self.last: int = info.last_sequence
        self.first: int = info.first_sequence
        self.failed: int = 0
        """Dead letters of which the expression could not be evaluated."""
        self.read_to: int = info.first_sequence - 1
        """The sequence up to which all are read."""
        self._stored = stored
        self._route = route
        self._pattern = pattern
        self._where = where
        self._left = limit
        self._report = report

    async def batches(self) -> AsyncGenerator[Sequence[Letter], None]:
        """Yield them in order, several at a time. Raises `SourceError` if the stream can't be read."""
        async with aclosing(self._stored.batches(max(self.first, 1), self.last, self._pattern)) as batches:
            async for batch in batches:
                chosen = self._chosen(batch)
                if chosen:
                    yield chosen
                self.read_to = batch[-1].sequence
                if self._left == 0:
                    return

    def _chosen(self, batch: Sequence[StoredMessage]) -> list[Letter]:
        chosen: list[Letter] = []
        for message in batch:
            letter = read_letter(message, self._route)
            if letter is not None and self._left != 0 and self._holds(letter):
                chosen.append(letter)
                if self._left is not None:
                    self._left -= 1
        return chosen

    def _holds(self, letter: Letter) -> bool:
        if self._where is None:
            return True
        message = letter.message
        facts = Facts(
            message.subject,
            message.headers,
            message.payload,
            stream=self._stored.stream,
            sequence=message.sequence,
            deliveries=1,
            time_ns=message.time_ns,
        )
        try:
            return bool(self._where.evaluate(facts))
        except EvaluationError as error:
            self.failed += 1
            self._report(letter, f"--where failed: {error}")
            return False
