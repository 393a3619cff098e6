"""The rights of docs/deploy/nats-permissions.conf: with them nothing is refused, without any one something fails."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio import Message, Router, Settings
from router_trio.router.options import DestinationOptions
from router_trio.subjects.patterns import matches, overlaps
from tests.integration.readiness import refused
from tests.support.eventually import eventually
from tests.support.proxy import tcp_proxy
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import RawClient, RawSubscription, connect
from tests.support.servers import NatsServer, nats_server
from tests.support.settings import core_route, settings, stream_route
from tests.support.watch import Watch, watched

CONFIG = (Path(__file__).parents[2] / "docs/deploy/nats-permissions.conf").read_text(encoding="utf-8")
USERS = ("admin", "router", "producer", "consumer")
RIGHTS = re.findall(r'^ {14}"([^"]+)" +# .+(?<!optional\))$', CONFIG, re.MULTILINE)
OPTIONAL = re.findall(r'^ {14}"([^"]+)" +# .+ \(optional\)$', CONFIG, re.MULTILINE)

NEEDED = "\n".join(line for line in CONFIG.splitlines() if not line.endswith(" (optional)"))
"""The configuration without the optional rights."""

USED = [one for one in RIGHTS if not one.startswith("$JS.ACK.*.*.")]
"""The needed rights on a server without the feature flag `js_ack_fc_v2`."""


def without(right: str) -> str:
    """Return the configuration of the needed rights, without the line of one."""
    kept = [line for line in NEEDED.splitlines() if not line.startswith(f'              "{right}" ')]
    assert len(kept) == len(NEEDED.splitlines()) - 1
    return "\n".join(kept)


@dataclass
class Shop:
    """A server with that configuration, its streams, and the router that runs there."""

    server: NatsServer
    admin: RawClient
    producer: RawClient
    copies: RawSubscription
    acks: RawSubscription
    watch: Watch = field(default_factory=Watch)
    seen: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)

    @property
    def stream(self) -> JetStream:
        """JetStream, with all rights."""
        return JetStream(self.admin)

    def look(self) -> Shop:
        """Record the core copies, and the acks to the stream."""
        self.seen.update(message.subject for message in self.copies.waiting())
        for message in self.acks.waiting():
            self.answers[message.payload[:4].decode() + (" with reply" if message.reply else "")] += 1
        return self

    async def unacked(self) -> int:
        """Return how many messages of the stream are not acked."""
        info = await self.stream.consumer_info("PAYMENTS", "router")
        pending: int = info["num_pending"] + info["num_ack_pending"]
        return pending

    async def any_ack_pending(self) -> bool:
        """Return True if a message was delivered and is not acked."""
        return bool((await self.stream.consumer_info("PAYMENTS", "router"))["num_ack_pending"])

    async def all_acked(self) -> bool:
        """Return True if every message of the stream is acked."""
        return await self.unacked() == 0

    async def stored(self) -> int:
        """Return how many copies are stored."""
        count: int = (await self.stream.stream_info("COPIES"))["state"]["messages"]
        return count


@asynccontextmanager
async def shop(tmp_path: Path, config: str) -> AsyncIterator[Shop]:
    for user in USERS:
        # An embedded server gets no variables of this process.
        config = config.replace(f"${user.upper()}_PASSWORD", user)
    async with (
        nats_server(tmp_path, config=config) as server,
        connect(server.url, user="admin", password="admin") as admin,
        connect(server.url, user="producer", password="producer") as producer,
        connect(server.url, user="consumer", password="consumer") as consumer,
    ):
        await JetStream(admin).create_stream("PAYMENTS", ["payments.*"])
        await JetStream(admin).create_stream("COPIES", ["copies.*"])
        acks = await admin.subscribe("$JS.ACK.PAYMENTS.router.>")
        yield Shop(server, admin, producer, await consumer.subscribe("eu.*"), acks)


def routing(url: str) -> Settings:
    """Return the configuration of the router that the rights are for."""
    return settings(
        url,
        routes=[
            core_route("orders.*", "eu.{{wildcard(1)}}", name="orders"),
            stream_route("PAYMENTS", "copies.{{wildcard(1)}}", name="payments", filter="payments.*"),
        ],
        user="router",
        password="router",
        inbox_prefix="_INBOX_router",
    )


def everything(url: str, watch: Watch, handle: Callable[[Message], Awaitable[Message]]) -> Router:
    """Return the same router, with a handler on the path from the stream."""
    source: dict[str, Any] = {"stream": "PAYMENTS", "durable": "router", "filter": "payments.*", "ack_wait": "1s"}
    made = routing(url)
    router = Router(made.model_copy(update={"routes": made.routes[:1]}), observers=[watch])
    to: DestinationOptions = {"subject": "copies.{{wildcard(1)}}", "jetstream": True}
    router.route(to=to, name="payments", connection="main", retry={"initial": "50ms"}, **source)(handle)
    return router


@pytest.mark.parametrize("config", [pytest.param(CONFIG, id="all"), pytest.param(NEEDED, id="needed")])
async def test_with_these_rights_everything_works(config: str, tmp_path: Path) -> None:
    failures = ["payments.fails"]
    slow = trio.Event()

    async def handle(message: Message) -> Message:
        if message.subject in failures:
            failures.remove(message.subject)
            raise ValueError("once")
        if message.subject == "payments.slow":
            await slow.wait()
        return message

    async with (
        shop(tmp_path, config) as at,
        tcp_proxy("127.0.0.1", at.server.port) as proxy,
        watched(everything(proxy.url, at.watch, handle), at.watch) as watch,
    ):
        await watch.until("ROUTE_READY", 2)
        # A core copy, a stored copy with its PubAck, an ack.
        await at.producer.publish("orders.1")
        await at.producer.publish("payments.1")
        await eventually(lambda: at.look().seen["eu.1"] == 1 and at.answers["+ACK"] >= 1)
        # A nak, and the delivery after it.
        await at.producer.publish("payments.fails")
        await eventually(lambda: at.look().answers["-NAK"] >= 1 and at.answers["+ACK"] >= 2)
        # A handler that takes longer than the ack wait sends progress.
        await at.producer.publish("payments.slow")
        await eventually(lambda: at.look().answers["+WPI"] >= 4)
        slow.set()
        await eventually(lambda: at.look().answers["+ACK"] >= 3)
        # Messages delivered to a dead link are requested again on the next one.
        proxy.blackhole("to_client")
        await at.producer.publish("payments.lost")
        await eventually(at.any_ack_pending, 5)
        proxy.reset()
        proxy.clear()
        await watch.until("ROUTE_READY", 4)
        await eventually(lambda: at.look().answers["-NAK with reply"] >= 1)
        await at.producer.publish("orders.2")
        await eventually(lambda: at.look().seen["eu.2"] == 1 and at.answers["+ACK"] >= 4)
        await eventually(at.all_acked, 5)
        assert await at.stored() == 4
        denied = refused(at.server, "router")
        assert all(any(overlaps(one, subject) for one in OPTIONAL) for subject in denied)
        assert bool(denied) == (config != CONFIG)
        assert not watch.of("NATS_SUBSCRIBE_ERROR")
        assert watch.count("ROUTE_MESSAGE_FAILED") == 1


def test_the_configuration_names_the_rights() -> None:
    assert (len(USED), len(RIGHTS)) == (9, 10)
    assert len(re.findall(r'^ {14}"', CONFIG, re.MULTILINE)) == len(RIGHTS) + len(OPTIONAL)


@pytest.mark.parametrize("right", USED)
async def test_none_of_the_rights_is_superfluous(right: str, tmp_path: Path) -> None:
    async with shop(tmp_path, without(right)) as at, watched(routing(at.server.url), at.watch):
        await at.producer.publish("payments.1")
        await at.watch.until("ROUTER_STARTED")
        await at.producer.publish("orders.1")
        # The server refuses the operation that the right is for,
        await eventually(lambda: any(matches(right, subject) for subject in refused(at.server, "router")), 20)
        # and without that not all messages arrive and are acked.
        with trio.move_on_after(1.0):
            while not (at.look().seen["eu.1"] and await at.stored() and not await at.unacked()):
                await trio.sleep(0.05)
            pytest.fail(f"everything works without {right}")


@pytest.mark.parametrize(
    ("user", "publish", "subscribe"),
    [
        (
            "router",
            [
                "$JS.API.STREAM.DELETE.PAYMENTS",
                "$JS.API.STREAM.PURGE.PAYMENTS",
                "$JS.API.STREAM.UPDATE.PAYMENTS",
                "$JS.API.STREAM.CREATE.MINE",
                "$JS.API.STREAM.MSG.GET.COPIES",
                "$JS.API.STREAM.MSG.DELETE.PAYMENTS",
                "$JS.API.CONSUMER.DELETE.PAYMENTS.router",
                "$JS.API.CONSUMER.DURABLE.CREATE.PAYMENTS.other",
                "$JS.API.CONSUMER.MSG.NEXT.PAYMENTS.other",
                "$JS.ACK.PAYMENTS.other.1.1.1.0.0",
                "$SYS.REQ.USER.INFO",
                "payments.1",
                "orders.1",
                "eu.1.2",
                "_INBOX_router.x.1",
            ],
            [">", "payments.*", "copies.*", "$JS.ACK.>", "_INBOX.>"],
        ),
        # No other user can forge what the router receives, or learn its inboxes.
        (
            "producer",
            ["_INBOX_router.x.1", "eu.1", "copies.1", "$JS.ACK.PAYMENTS.router.1.1.1.0.0"],
            ["_INBOX_router.>"],
        ),
        ("consumer", ["_INBOX_router.x.1", "orders.1"], ["_INBOX_router.>", "copies.*"]),
    ],
    ids=["router", "producer", "consumer"],
)
async def test_nothing_else_is_granted(user: str, publish: list[str], subscribe: list[str], tmp_path: Path) -> None:
    async with (
        shop(tmp_path, CONFIG) as at,
        connect(at.server.url, user=user, password=user) as client,
    ):
        await at.stream.create_consumer("PAYMENTS", "other", ack_policy="explicit")
        for subject in publish:
            await client.publish(subject)
        for subject in subscribe:
            await client.subscribe(subject)
        await client.ping()
        await eventually(lambda: {*publish, *subscribe} <= refused(at.server, user))
