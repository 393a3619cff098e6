"""Which dead letters a command is about: those of one route, in one stream, of which an expression holds."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from router_trio.cli.dead_letters.letter import Letter, read_letter
from router_trio.errors import EvaluationError, SourceError, reasons
from router_trio.errors.quotes import excerpt
from router_trio.expressions.expression import Expression
from router_trio.expressions.message import Facts
from router_trio.nats.jetstream.api import StoredMessage, StreamInfo
from router_trio.nats.link import NatsLink
from router_trio.nats.stored import StoredMessages
from router_trio.routing.dead_letters import PREFIX

Report = Callable[[int, str], None]
"""Told of a dead letter with which something is wrong, by its sequence, and what."""


def by_source_sequence(sequence: int) -> str:
    """Return how a dead letter is found by the sequence that its message had, which logs name."""
    header = f'headers["{PREFIX}Sequence"] == "{sequence}"'
    return f"SEQUENCE is the first column of list; by the sequence in the source write --where '{header}'"


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
        sequences: Sequence[int],
        where: Expression | None,
        limit: int | None,
        report: Report,
    ) -> None:
        """`sequences`: those that were asked for, none for all."""
        self._sequences = sorted(set(sequences))
        self._first = max(info.first_sequence, 1)
        self._last = info.last_sequence
        self.failed: int = 0
        """Dead letters that were asked for and are not there, or of which the expression could not be evaluated."""
        self.total: int = len(self._sequences) or max(0, self._last - self._first + 1)
        """How many places of the stream are looked at."""
        self.read: int = 0
        """How many of them are read."""
        self._stored = stored
        self._route = route
        self._pattern = pattern
        self._where = where
        self._left = limit
        self._report = report

    async def batches(self) -> AsyncGenerator[Sequence[Letter], None]:
        """Yield them in order, several at a time. Raises `SourceError` if the stream can't be read."""
        if self._sequences:
            for sequence in self._sequences:
                chosen = self._chosen([message] if (message := await self._find(sequence)) is not None else [])
                if chosen:
                    yield chosen
                self.read += 1
                if self._left == 0:
                    return
            return
        async with aclosing(self._stored.batches(self._first, self._last, self._pattern)) as batches:
            async for batch in batches:
                chosen = self._chosen(batch)
                if chosen:
                    yield chosen
                self.read = batch[-1].sequence - self._first + 1
                if self._left == 0:
                    return

    async def _find(self, sequence: int) -> StoredMessage | None:
        """Return one that was asked for; None, reported, if there is none or it is not of this route."""
        message = await self._stored.get(sequence)
        if message is not None and read_letter(message, self._route) is not None:
            return message
        self.failed += 1
        there = "there is none" if message is None else f"it is not one of route {excerpt(self._route)}"
        self._report(sequence, f"{there} in stream {self._stored.stream}; {by_source_sequence(sequence)}")
        return None

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
            self._report(letter.sequence, f"--where failed: {error}")
            return False
