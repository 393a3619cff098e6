"""Messages whose retries wait in another stream are pending to an audit, and waiting to a search: none is missing."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

import pytest
from trio.testing import MockClock

from router_trio.audit.audit import EVERYTHING
from router_trio.audit.outcomes import Outcome
from router_trio.audit.report import Report
from router_trio.nats.jetstream.api import StoredMessage, StreamInfo
from router_trio.nats.range_reader import StreamRange
from router_trio.protocol import headers
from router_trio.protocol.schedules import token
from tests.support.retries import waiting
from tests.unit.audit import test_audit as audits
from tests.unit.audit import test_find as searches
from tests.unit.audit.fake_streams import SECOND, FakeAudit, FakeStream, block

RETRY = 'retry = { schedule = { stream = "RETRY", prefix = "retry" } }\n'
DUE = audits.BEGIN + 3600 * SECOND


class Retries(FakeStream):
    """The stream of the retries of a route."""

    def __init__(self, route: str = "copy") -> None:
        super().__init__("RETRY", ["retry.>"], audits.BEGIN)
        self.route = route
        self.moves: list[tuple[StoredMessage, str]] = []
        """Retries that are stored again, under these subjects, while the stream is read."""

    def wait(self, message: StoredMessage, *, subject: str = "", stream: str = "SOURCE", later: int = 0) -> int:
        """Have a message wait for its next attempt, as its route stores it; or under `subject`."""
        own_subject, block_ = waiting(
            self.route, message.subject, stream, message.sequence, due_ns=DUE, time_ns=message.time_ns + later
        )
        if subject.startswith("retry.d."):
            block_ = headers.without(block_, b"Nats-Schedule")
        return self.add(subject or own_subject, b"", audits.BEGIN, block_)

    async def read(self, info: StreamInfo, wanted: StreamRange) -> AsyncGenerator[Sequence[StoredMessage], None]:
        moves, self.moves = self.moves, []
        for message, subject in moves:
            self.messages = {n: one for n, one in self.messages.items() if not _is_of(message, one)}
            self.wait(message, subject=subject)
        async for batch in super().read(info, wanted):
            yield batch


def _is_of(message: StoredMessage, waiting: StoredMessage) -> bool:
    return headers.find_number(waiting.headers, b"Router-Origin-Sequence") == message.sequence


async def audit(w: audits.World, retries: Retries) -> Report:
    """Audit all messages, which are settled."""
    w.source.consume("router", w.source.newest)
    streams = [w.source, *w.streams.values(), w.dead, retries]
    return await FakeAudit(w.settings, w.route, streams).run(EVERYTHING)


def counts(report: Report) -> dict[str, int]:
    return {name: count for name, count in report.counts.items() if count}


def messages(w: audits.World, count: int) -> list[StoredMessage]:
    """Return messages of the source that have no copies."""
    numbers = [w.message(f"source.{n}", b'{"n": 1}', audits.BEGIN + n * SECOND) for n in range(count)]
    return [w.source.messages[number] for number in numbers]


async def test_a_message_that_waits_is_pending(autojump_clock: MockClock) -> None:
    w, retries = audits.World(audits.TO + RETRY), Retries()
    waits, lost, due, done, before, of_other, elsewhere = messages(w, 7)
    retries.consume("retry-copy", retries.wait(done, subject="retry.d.copy"), filter_subject="retry.d.copy")
    retries.wait(waits)
    retries.wait(due, subject="retry.d.copy")
    retries.wait(before, later=-SECOND)
    retries.wait(of_other, subject="retry.s.other.7")
    retries.wait(elsewhere, stream="OTHER")
    retries.add("retry.s.copy.x", b"", audits.BEGIN, block(("Router-Origin-Sequence", "x")))
    _, forged = waiting("copy", lost.subject, "SOURCE", lost.sequence, due_ns=DUE, time_ns=lost.time_ns)
    retries.add("retry.s.copy.forged", b"", audits.BEGIN, forged)
    subject, forged = waiting("copy", done.subject, "SOURCE", done.sequence, due_ns=DUE, time_ns=done.time_ns)
    retries.add(subject, b"", audits.BEGIN, forged.replace(b"Nats-Schedule: @at", b"Nats-Schedule: never"))
    report = await audit(w, retries)
    assert counts(report) == {"missing": 5, "pending": 2}
    missing = [one.sequence for one in (lost, done, before, of_other, elsewhere)]
    assert [one.sequence for one in report.findings] == missing


async def test_a_copy_that_is_there_is_not_pending(autojump_clock: MockClock) -> None:
    """Of two copies only one waits."""
    w, retries = audits.World(audits.TWO + RETRY), Retries()
    (message,) = messages(w, 1)
    w.streams["SINK"].add("sink.0", message.payload, w.now, block(("Nats-Msg-Id", w.copy_id(1, 0, "sink.0"))))
    retries.wait(message)
    assert counts(await audit(w, retries)) == {"there": 1, "pending": 1}


@pytest.mark.parametrize("subject", ["retry.d.copy", ""])
async def test_a_message_that_moves_on_while_the_stream_is_read_is_pending(
    subject: str, autojump_clock: MockClock
) -> None:
    w, retries = audits.World(audits.TO + RETRY), Retries()
    for message in messages(w, 2):
        retries.wait(message)
    retries.moves.append((w.source.messages[1], subject))
    assert counts(await audit(w, retries)) == {"pending": 2}


async def test_a_message_that_fails_today_and_waits_is_not_given_up(autojump_clock: MockClock) -> None:
    w, retries = audits.World(audits.FAILING + RETRY), Retries()
    for n in range(2):
        w.message("source.1", b'{"n": 0}', audits.BEGIN + n * SECOND)
    retries.wait(w.source.messages[1])
    assert counts(await audit(w, retries)) == {"given_up": 1, "pending": 1}


async def search(w: searches.World, retries: FakeStream, sequence: int | None = None) -> Outcome:
    w.finder.streams["RETRY"] = retries
    w.finder = type(w.finder)(w.settings, w.finder.streams.values())
    found = await w.find("source.7", sequence)
    return found.routes[0]


@pytest.mark.parametrize("gone", [False, True])
async def test_a_message_that_waits_is_found(gone: bool, autojump_clock: MockClock) -> None:
    """Also if its source deletes what is acked."""
    w, retries = searches.World(searches.settings(searches.TO + "\n" + RETRY)), Retries("route-0")
    message = w.source.messages[w.message()]
    retries.wait(message)
    w.settled()
    if gone:
        del w.source.messages[1]
    found = await search(w, retries)
    assert found.outcome == "waiting"
    assert found.detail.startswith("its next attempt waits until 20")
    assert found.detail.endswith(": message 1 of stream RETRY")


async def test_a_retry_that_is_due_is_found_until_it_is_settled(autojump_clock: MockClock) -> None:
    w, retries = searches.World(searches.settings(searches.TO + "\n" + RETRY)), Retries("route-0")
    message = w.source.messages[w.message()]
    w.settled()
    retries.wait(message, subject="retry.d.route-0")
    found = await search(w, retries)
    assert (found.outcome, found.detail) == ("waiting", "its next attempt is due: message 1 of stream RETRY")
    retries.consume("retry-route-0", 1, filter_subject="retry.d.route-0")
    assert (await search(w, retries)).outcome == "missing"


async def test_a_retry_is_settled_by_the_durable_of_its_prefix(autojump_clock: MockClock) -> None:
    w, retries = searches.World(searches.settings(searches.TO + "\n" + RETRY)), Retries("route-0")
    message = w.source.messages[w.message()]
    w.settled()
    retries.wait(message, subject="retry.d.route-0")
    retries.consume("retry-route-0", 1, filter_subject="earlier.d.route-0")
    assert (await search(w, retries)).outcome == "waiting"
    retries.consume(f"retry-route-0-{token(b'retry')}", 1, filter_subject="retry.d.route-0")
    assert (await search(w, retries)).outcome == "missing"


async def test_a_search_without_the_stream_of_retries_knows_less(autojump_clock: MockClock) -> None:
    w, retries = searches.World(searches.settings(searches.TO + "\n" + RETRY)), Retries("route-0")
    w.message()
    w.settled()
    retries.failure = "denied"
    found = await search(w, retries)
    assert (found.outcome, found.detail) == ("unknown", "settled, and the stream of retries can't be read: denied")
