"""Acks, naks and pulls: each counts as sent once a fence behind it is answered, unless it was denied by then."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest
import trio
from trio.testing import MockClock

from router_trio.connection.answers import Answers, Kind
from router_trio.connection.session import Session
from router_trio.errors import LinkError
from router_trio.events import AckFailed, Event
from router_trio.outbox.ledger import Counters
from router_trio.protocol.permissions import cause_of
from tests.unit.connection.sessions import SessionSetup

ROUTE = "orders"


class Acknowledger:
    """The acks of a route, notified of refusals."""

    route = ROUTE
    incarnation = 0

    def __init__(self) -> None:
        self.refusals: list[bytes] = []

    def refused(self, cause: str, subject: str, detail: str) -> bool:
        return False

    def passed(self, cause: str) -> None:
        pass

    def not_taken(self, replies: Sequence[bytes], incarnation: int, *, refused: bool) -> None:
        self.refusals += replies


class Connection:
    """The answers of one connection, and their counts."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.counters = Counters()
        self.answers = Answers("main", self.counters, self.events.append)
        self.acks = Acknowledger()

    def send(self, kind: Kind, *replies: bytes) -> None:
        self.answers.sent(kind, self.acks, replies)

    def deny(self, reply: bytes) -> None:
        cause = cause_of(reply.decode())
        assert cause is not None
        self.answers.refused(reply, cause, "Permissions Violation")

    @property
    def acked(self) -> int:
        return self.counters.succeeded["ack"]


def reply(number: int) -> bytes:
    return b"$JS.ACK.IN.router.1.%d.%d.1700000000000000000.0" % (number, number)


@pytest.fixture
def connection() -> Connection:
    return Connection()


async def test_a_denial_read_together_with_the_answer_to_an_earlier_fence_is_not_lost(
    connection: Connection,
) -> None:
    """The server denies an answer behind the fence, and that denial is read before the fence counts as answered
    here.
    """
    connection.send("ack", reply(1))
    connection.answers.fence_follows()
    connection.send("in_progress", reply(2))
    connection.send("ack", reply(2))
    connection.deny(reply(2))
    connection.answers.fence_answered()
    connection.deny(reply(2))
    connection.answers.fence_follows()
    connection.answers.fence_answered()
    assert connection.acked == 1
    assert connection.acks.refusals == [reply(2)]
    assert [event.reason for event in connection.events if isinstance(event, AckFailed)] == ["permission_denied"]


@pytest.mark.parametrize("seed", range(300))
async def test_an_ack_counts_unless_it_was_denied(seed: int, connection: Connection) -> None:
    """The server handles one operation after the other, and its answers are read in batches."""
    random = Random(seed)
    is_denied = {reply(number): number < 2 for number in range(4)}
    to_read: list[bytes | None] = []
    fenced, taken, denied = False, 0, 0
    for _ in range(60):
        step = random.random()
        if step < 0.5:
            kind: Kind = random.choice(("ack", "ack", "in_progress"))
            replies = [reply(random.randrange(4)) for _ in range(random.choice((1, 1, 3)))]
            connection.send(kind, *replies)
            for one in replies:
                if is_denied[one]:
                    to_read.append(one)
                    denied += kind == "ack"
                else:
                    taken += kind == "ack"
        elif step < 0.6 and not fenced:
            connection.answers.fence_follows()
            to_read.append(None)
            fenced = True
        else:
            fenced = _read(connection, [to_read.pop(0) for _ in range(random.randint(0, len(to_read)))]) and fenced
    _read(connection, to_read)
    connection.answers.fence_follows()
    connection.answers.fence_answered()
    assert connection.acked == taken
    assert connection.counters.failed["ack", "permission_denied"] == denied


def _read(connection: Connection, answers: Sequence[bytes | None]) -> bool:
    """Handle denials, and then the answer to a fence among them; return False if there was one."""
    for one in answers:
        if one is not None:
            connection.deny(one)
    if None in answers:
        connection.answers.fence_answered()
        return False
    return True


async def test_a_link_that_ends_unused_leaves_the_answers_of_the_link_in_use(
    connection: Connection, autojump_clock: MockClock
) -> None:
    setup = SessionSetup()
    setup.session = Session(
        "nats://b:4222",
        b"_INBOX.y",
        setup.outbox,
        fenced=setup.fenced.append,
        progress=lambda: None,
        answers=connection.answers,
    )
    connection.send("ack", reply(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(setup.run)
        await setup.session.connected.wait()
        setup.die(LinkError("gone"))
    assert not connection.acks.refusals, "it may still be accepted"
    connection.answers.fence_follows()
    connection.deny(reply(1))
    connection.answers.fence_answered()
    assert connection.acked == 0
    assert connection.acks.refusals == [reply(1)]
