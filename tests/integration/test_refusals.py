"""Each permission revoked in turn on a real server, and restored: `/readyz`, the log, the metrics, the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio import Message
from router_trio.routing.stream.pulling import checks, pull_loop
from tests.integration.readiness import Place, deny, place, users
from tests.support.eventually import eventually
from tests.support.settings import core_route, stream_route

CORE = core_route("in.*", "heard.{{wildcard(1)}}")
STREAM = stream_route("IN", "out.{{wildcard(1)}}", filter="in.*", ack_wait="1s")
ACKS, PULLS = "$JS.ACK.IN.router.>", "$JS.API.CONSUMER.MSG.NEXT.IN.router"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "CHECK_EVERY", 0.3)
    monkeypatch.setattr(pull_loop, "ACKS_TESTED_EVERY", 0.2)


def counted(at: Place, kind: str) -> tuple[int, int]:
    """Return how often an operation succeeded, and was refused."""
    counters = at.live.connections["main"].outbox.counters
    return counters.succeeded[kind], counters.failed[kind, "permission_denied"]


def ledger_adds_up(at: Place) -> bool:
    outbox = at.live.connections["main"].outbox
    return outbox.ledger.unsettled == outbox.pending + outbox.in_flight


async def test_refused_acks_do_not_count_as_acks(tmp_path: Path) -> None:
    async with place(tmp_path, STREAM, config=users(deny=["$JS.ACK.>"])) as at:
        for number in range(20):
            await at.client.publish(f"in.{number}")
        await at.until_unready(f"allow this user to publish to {ACKS}")
        await eventually(lambda: counted(at, "ack")[1] >= 20)
        assert counted(at, "ack")[0] == 0
        event = at.watch.of("NATS_ACK_ERROR")[0]
        assert (event.route, event.reason, event.subject) == ("route", "permission_denied", ACKS)
        assert "permission_denied" not in {one.reason for one in at.watch.of("NATS_NAK_ERROR")}
        assert ledger_adds_up(at)
        # They are redelivered, and that alone acks none of them.
        refused = counted(at, "ack")[1]
        await eventually(lambda: counted(at, "ack")[1] >= refused + 20, 5)
        assert (await at.readyz())[0] == 503
        assert (await at.streams.consumer_info("IN", "router"))["num_ack_pending"] == 20
        await deny()(at)
        await at.until_ready()
        await eventually(lambda: counted(at, "ack")[0] == 20, 5)
        assert await at.probe()


async def test_a_route_with_nothing_to_ack_is_ready_after_refused_acks(
    tmp_path: Path,
) -> None:
    route = stream_route("IN", "out.{{wildcard(1)}}", filter="in.*", ack_wait="1h")
    async with place(tmp_path, route) as at:
        assert await at.probe()
        await deny("$JS.ACK.>")(at)
        assert await at.probe()
        await at.until_unready(ACKS)
        await deny()(at)
        await at.until_ready()
        with trio.fail_after(5):
            while (await at.streams.consumer_info("IN", "router"))["num_ack_pending"]:
                await trio.sleep(0.05)  # the refused ack is sent again


@pytest.mark.parametrize("kind", ["nak", "term"])
async def test_refused_naks_do_not_count_as_naks(kind: str, tmp_path: Path) -> None:
    async def handle(message: Message) -> Message:
        raise ValueError("always")

    route: dict[str, Any] = STREAM | {"retry": {"initial": "50ms"}}
    if kind == "term":
        route["retry"] = {"attempts": 1}
    async with place(tmp_path, route, config=users(deny=["$JS.ACK.>"]), handler=handle) as at:
        await at.client.publish("in.x")
        await at.until_unready(ACKS)
        await eventually(lambda: counted(at, "nak")[1] >= 1)
        assert counted(at, "nak")[0] == 0
        event = at.watch.of("NATS_NAK_ERROR")[0]
        assert (event.route, event.reason, event.subject) == ("route", "permission_denied", ACKS)
        await deny()(at)
        await at.until_ready()
        await eventually(lambda: counted(at, "nak")[0] + counted(at, "ack")[0] >= 1, 5)


async def test_a_refused_progress_message_makes_the_route_unready(tmp_path: Path) -> None:
    go_on = trio.Event()

    async def handle(message: Message) -> Message:
        await go_on.wait()
        return message

    async with place(tmp_path, STREAM, config=users(deny=["$JS.ACK.>"]), handler=handle) as at:
        await at.client.publish("in.x")
        await at.until_unready(ACKS)
        assert counted(at, "ack") == (0, 0)
        await deny()(at)
        go_on.set()
        await at.until_ready()


@pytest.mark.parametrize("when", ["from the start", "taken away"])
async def test_refused_pulls_make_the_route_unready(when: str, tmp_path: Path) -> None:
    denied = [PULLS] if when == "from the start" else []
    async with place(tmp_path, STREAM, config=users(deny=denied)) as at:
        if not denied:
            assert await at.probe()
            await deny(PULLS)(at)
            # Requests made before are still served: one request brings a thousand messages.
            await at.streams.edit_consumer("IN", "router", max_ack_pending=1)
            await at.streams.delete_consumer("IN", "router")
        await at.until_unready(f"allow this user to publish to {PULLS}")
        await eventually(lambda: counted(at, "subscribe")[1] >= 1)
        event = next(one for one in at.watch.of("NATS_SUBSCRIBE_ERROR") if one.reason == "permission_denied")
        assert PULLS in event.detail
        ready_before = at.watch.count("ROUTE_READY")
        await eventually(lambda: counted(at, "subscribe")[1] >= 3)
        assert at.watch.count("ROUTE_READY") == ready_before == (not denied)
        for _ in range(20):
            assert (await at.readyz())[0] == 503
            await trio.sleep(0.05)
        await deny()(at)
        await at.until_ready()
        assert await at.probe()


@pytest.mark.parametrize("request_", ["STREAM.INFO.IN", "CONSUMER.INFO.IN.router", "CONSUMER.DURABLE.CREATE.IN.router"])
async def test_a_refused_request_is_named_at_once(request_: str, tmp_path: Path) -> None:
    async with place(tmp_path, STREAM, config=users(deny=[f"$JS.API.{request_}"])) as at:
        with trio.fail_after(3):  # not after the timeout of an answer
            await at.until_unready(f"may not publish to '$JS.API.{request_}'")
        event = await at.watch.until("NATS_SUBSCRIBE_ERROR")
        assert event.reason == "permission_denied"
        await deny()(at)
        await at.until_ready()
        assert await at.probe()


HARD_SUBJECTS = [
    'heard.a"b',
    'heard."',
    "heard.back\\slash",
    "heard.x\\x41",
    "heard.ünï",
    "heard.\u2028\U0001f600\U000e0001",
    "heard.apostrophe'",
]


@pytest.mark.parametrize("subject", [*HARD_SUBJECTS, "heard." + "é" * 1000], ids=range(len(HARD_SUBJECTS) + 1))
async def test_a_refused_core_publish_never_counts_as_sent(subject: str, tmp_path: Path) -> None:
    async with place(tmp_path, CORE, config=users(deny=["heard.>"])) as at:
        await at.live.publish(subject, b"")
        await eventually(lambda: counted(at, "publish")[1] == 1)
        assert at.watch.count("NATS_REFUSAL_NOT_ATTRIBUTED") == 0
        await at.client.publish(subject.replace("heard.", "in.", 1))
        await at.until_unready("permission_denied")
        await eventually(lambda: counted(at, "publish") == (0, 2))
        assert at.live.connections["main"].outbox.ledger.settled["fenced"] == 0
        assert ledger_adds_up(at)


async def test_subjects_that_are_not_utf_8_are_attributed_too(tmp_path: Path) -> None:
    async with place(tmp_path, CORE, config=users(deny=["heard.>"])) as at:
        await at.client._stream.send_all(b'PUB in.\xff\xfe"\\ 2\r\nab\r\n')
        await eventually(lambda: counted(at, "publish")[1] == 1)
        assert counted(at, "publish")[0] == 0
        assert at.watch.count("NATS_REFUSAL_NOT_ATTRIBUTED") == 0


async def test_a_publish_mapped_by_the_server_to_a_denied_subject_never_counts_as_sent(tmp_path: Path) -> None:
    """The server names the mapped subject, to which the router published nothing."""
    config = (
        'accounts { A { jetstream: enabled, mappings: { "heard.mapped": "forbidden.there" }, users: [\n'
        '  { user: router, password: "secret", permissions: { publish: { deny: ["forbidden.>"] } } }\n'
        '  { user: other, password: "other" }\n] } }\n'
    )
    async with place(tmp_path, CORE, config=config) as at:
        await at.client.publish("in.mapped")
        await eventually(lambda: counted(at, "publish")[1] == 1)
        assert counted(at, "publish")[0] == 0
        event = await at.watch.until("NATS_REFUSAL_NOT_ATTRIBUTED")
        assert "forbidden.there" in event.detail
        await at.until_unready("forbidden.there")
        assert ledger_adds_up(at)


@pytest.mark.parametrize("queue", [None, "workers", 'odd"queue'])
async def test_a_refused_subscription_makes_only_its_own_route_unready(queue: str | None, tmp_path: Path) -> None:
    routes = [
        core_route("in.a", "heard.a", name="a", **({} if queue is None else {"queue": queue})),
        core_route("in.b", "heard.b", name="b", queue="workers"),
    ]
    denied = {None: "in.a", "workers": "in.a workers", 'odd"queue': "in.a"}[queue]
    async with place(tmp_path, *routes, config=users(deaf=[denied])) as at:
        await at.until_unready("refused the subscription to 'in.a'")
        _, reasons = await at.readyz()
        assert [one["route"] for one in reasons] == ["a"]
        assert await at.probe(subject="in.b")
        assert not await at.probe(0.3, subject="in.a")
        await deny()(at)
        await at.until_ready()
        assert await at.probe(subject="in.a")
