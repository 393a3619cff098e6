"""Select the dead letters of one route in one stream, by sequence or by an expression."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from router_trio.audit.letter import Letter, read_letter
from router_trio.errors import EvaluationError, SourceError, reasons
from router_trio.errors.quotes import excerpt
from router_trio.expressions.expression import Expression
from router_trio.expressions.message import Facts
from router_trio.nats.jetstream.api import StoredMessage, StreamInfo
from router_trio.nats.link import NatsLink
from router_trio.nats.stored import StoredMessages
from router_trio.routing.dead_letters import PREFIX

Report = Callable[[int, str], None]
"""Reports a problem with a dead letter: its sequence, and the problem."""


def by_source_sequence(sequence: int) -> str:
    """Return a hint on how to find a dead letter by the sequence of its message in the source, which logs contain."""
    header = f'headers["{PREFIX}Sequence"] == "{sequence}"'
    return f"SEQUENCE is the first column of list; for a sequence of the source use --where '{header}'"


async def find_stream(link: NatsLink, pattern: str, named: str | None) -> str:
    """Return the name of the stream of the dead letters. Raises `SourceError` if there is none, or several."""
    names = await link.find_streams(pattern)
    if named is not None:
        if named in names:
            return named
        detail = f"stream {named!r} takes no subject of {pattern!r}; streams that do: {', '.join(names) or 'none'}"
        raise SourceError(detail, reason=reasons.STREAM_NOT_FOUND)
    if not names:
        detail = f"no stream takes {pattern!r}, so no dead letters are stored; create one, for example in [[streams]]"
        raise SourceError(detail, reason=reasons.STREAM_NOT_FOUND)
    if len(names) > 1:
        detail = f"several streams take {pattern!r}: {', '.join(names)}; choose one with --stream"
        raise SourceError(detail, reason=reasons.SEVERAL_STREAMS)
    return names[0]


class Selection:
    """The dead letters of a route that are stored when the command starts. Those stored later are not included."""

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
        """`sequences` selects dead letters by their sequences; if it is empty, all are selected."""
        self._sequences = sorted(set(sequences))
        self._first = max(info.first_sequence, 1)
        self._last = info.last_sequence
        self.failed: int = 0
        """Number of requested dead letters that do not exist, or for which the expression failed."""
        self.total: int = len(self._sequences) or max(0, self._last - self._first + 1)
        """Number of sequences of the stream to look at."""
        self.read: int = 0
        """Number of these sequences that were read."""
        self._stored = stored
        self._route = route
        self._pattern = pattern
        self._where = where
        self._left = limit
        self._report = report

    async def batches(self) -> AsyncGenerator[Sequence[Letter], None]:
        """Yield the selected dead letters in order, in batches. Raises `SourceError` if the stream can't be read."""
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
        """Return the message at `sequence`. Report it and return None if it does not exist or is of another route."""
        message = await self._stored.get(sequence)
        if message is not None and read_letter(message, self._route) is not None:
            return message
        self.failed += 1
        problem = "not found" if message is None else f"not a dead letter of route {excerpt(self._route)}"
        self._report(sequence, f"{problem} in stream {self._stored.stream}; {by_source_sequence(sequence)}")
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
