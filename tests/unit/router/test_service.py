"""A router as a NATS service, on fake brokers."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio.events import Level
from router_trio.protocol.framing import payload
from router_trio.telemetry.services.service import MOST_A_SECOND
from router_trio.testing import FakeBroker
from tests.support.eventually import eventually
from tests.support.world import World, core, overhearing, world

SUBJECTS = ("$SRV.{kind}", "$SRV.{kind}.router-trio", "$SRV.{kind}.router-trio.{id}")


async def asked(broker: FakeBroker, subject: str, reply: str = "_INBOX.asks", times: int = 1) -> list[dict[str, Any]]:
    """Request and return the answers of a second."""
    async with overhearing(broker, reply) as answers:
        for _ in range(times):
            broker.publish(subject, reply=reply)
        await trio.sleep(1)
        return [json.loads(payload(one)) for one in answers]


async def served(w: World) -> str:
    """Wait until the router answers. Return its id."""
    found: list[dict[str, Any]] = []

    async def answers() -> bool:
        found.extend(await asked(w.broker, "$SRV.PING.router-trio"))
        return bool(found)

    await eventually(answers)
    name: str = found[0]["id"]
    await trio.sleep(10)
    return name


@pytest.mark.parametrize("kind", ["PING", "INFO", "STATS"])
async def test_each_subject_of_a_service_is_answered_once(kind: str, autojump_clock: MockClock) -> None:
    async with world([core("in.*", "out.{{wildcard(1)}}")]) as w:
        name = await served(w)
        for subject in SUBJECTS:
            (found,) = await asked(w.broker, subject.format(kind=kind, id=name))
            assert (found["type"], found["id"]) == (f"io.nats.micro.v1.{kind.lower()}_response", name)
        assert await asked(w.broker, f"$SRV.{kind}.router-trio.another") == []
        assert await asked(w.broker, f"$SRV.{kind}.another") == []
        assert await asked(w.broker, "$SRV.SCHEMA") == []


async def test_stats_equal_status_and_answers_are_in_no_ledger(autojump_clock: MockClock) -> None:
    async with world([core("in.*", "out.{{wildcard(1)}}")]) as w:
        await served(w)
        for number in range(7):
            w.broker.publish(f"in.{number}")
        await eventually(lambda: w.route.settled["routed"] == 7)
        (found,) = await asked(w.broker, "$SRV.STATS")
        (endpoint,) = found["endpoints"]
        shown = w.live.status()["routes"]["route"]
        assert endpoint["num_requests"] == shown["received"] == 7
        assert endpoint["data"] == shown["ledger"] | {"state": "running"}
        assert w.entry()["accepted"] == 7


async def test_connections_of_one_account_answer_a_request_once(autojump_clock: MockClock) -> None:
    broker = FakeBroker()
    async with world(brokers={"main": broker, "other": broker}) as w:
        await served(w)
        assert len(await asked(broker, "$SRV.PING")) == 1
        await trio.sleep(10)
        assert len(await asked(broker, "$SRV.PING", times=2)) == 2


async def test_a_router_answers_again_after_a_reconnect(autojump_clock: MockClock) -> None:
    async with world() as w:
        name = await served(w)
        await w.lose()
        await w.find()
        assert await served(w) == name


async def test_more_requests_than_the_rate_are_ignored(autojump_clock: MockClock) -> None:
    async with world() as w:
        await served(w)
        assert len(await asked(w.broker, "$SRV.PING", times=10 * MOST_A_SECOND)) == MOST_A_SECOND


@pytest.mark.parametrize("reply", ["$JS.API.STREAM.DELETE.IN", "in.1", "_INBOX.rt-forged.1", "_INBOX_mine.x"])
async def test_nothing_but_inboxes_of_clients_is_answered(reply: str, autojump_clock: MockClock) -> None:
    async with world(inbox_prefix="_INBOX_mine") as w:
        await served(w)
        assert await asked(w.broker, "$SRV.PING", reply) == []


@pytest.mark.parametrize("pattern", ["$SRV.*", "$SRV.*.router-trio"])
async def test_a_refused_subscription_is_one_line_and_changes_nothing_else(
    pattern: str, autojump_clock: MockClock
) -> None:
    broker = FakeBroker()
    broker.deny_subscribe(pattern)
    async with world([core("in.*", "out.{{wildcard(1)}}")], brokers={"main": broker}) as w:
        event = await w.watch.until("NATS_SERVICE_NOT_OFFERED")
        assert (event.severity, event.reason, event.connection) == (Level.INFO, "permission_denied", "main")
        assert await asked(broker, "$SRV.PING") == []
        await w.lose()
        await w.find()
        broker.publish("in.1")
        await eventually(lambda: w.route.settled["routed"] == 1)
        await trio.sleep(10)
        assert w.watch.count("NATS_SERVICE_NOT_OFFERED") == 1
        assert w.failures("subscribe") == {}


async def test_a_refused_answer_is_one_line_and_fails_no_publish(autojump_clock: MockClock) -> None:
    broker = FakeBroker()
    broker.deny_publish("_INBOX.>")
    # The pattern of this destination matches the subject of the answer.
    async with world([core("in.*.x", "{{wildcard(1)}}.asks")], brokers={"main": broker}) as w:
        await trio.sleep(5)
        broker.publish("$SRV.PING", reply="_INBOX.asks")
        event = await w.watch.until("NATS_SERVICE_NOT_OFFERED")
        assert (event.severity, event.reason) == (Level.INFO, "permission_denied")
        for _ in range(3):
            broker.publish("$SRV.PING", reply="_INBOX.asks")
        await trio.sleep(5)
        assert w.watch.count("NATS_SERVICE_NOT_OFFERED") == 1
        assert w.watch.count("NATS_REFUSAL_NOT_ATTRIBUTED") == 0
        assert w.failures("publish") == {}
        assert w.live.status()["routes"]["route"].get("reason") is None


async def test_it_can_be_switched_off(autojump_clock: MockClock) -> None:
    async with world(router={"service": False}) as w:
        await trio.sleep(5)
        assert await asked(w.broker, "$SRV.PING") == []
        assert w.watch.count("NATS_SERVICE_NOT_OFFERED") == 0
