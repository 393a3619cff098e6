"""The output of `router-trio permissions`, on a server: with it nothing is refused, and something without any line."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio import Message, Router, Settings
from router_trio.cli.permissions import lines
from router_trio.embedded import HOST, reserve_port
from router_trio.events import Event, PositionNotSaved
from router_trio.routing.stream.pulling import checks
from router_trio.subjects.patterns import overlaps
from tests.integration.readiness import checkpoints_in, create_billing, refused
from tests.integration.test_domains import jetstream_of
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import RawClient, RawSubscription, connect
from tests.support.server_version import needs_server
from tests.support.servers import NatsServer, nats_server
from tests.support.settings import core_route, stream_route
from tests.support.watch import Watch, until_stored

pytestmark = needs_server(2, 14, lacks="acks with domain and account")

HERE = "tests.integration.test_permissions_command"


async def echo(message: Message) -> Message:
    await trio.lowlevel.checkpoint()
    return message


async def check(message: Message) -> Message:
    await trio.lowlevel.checkpoint()
    if message.payload == b"bad":
        raise ValueError("bad")
    return message


ROUTES: tuple[dict[str, Any], ...] = (
    core_route("orders.*", "eu.{{wildcard(1)}}", name="orders", queue="routers"),
    core_route("kept.*", "ignored", name="kept") | {"to": [{"subject": "out.{{wildcard(1)}}", "jetstream": True}]},
    core_route("prices.*", "ignored", name="prices", queue="routers")
    | {"to": [], "respond": True, "reply_to": ["answers.>"], "handler": f"{HERE}:echo"},
    stream_route("IN", "out.{{wildcard(1)}}", name="stream", durable="stream", filter="in.*", ack_wait="2s")
    | {
        "handler": f"{HERE}:check",
        "retry": {"attempts": 1},
        "dead_letter": {"subject": "dead.{{wildcard(1)}}"},
    },
    stream_route("IN", "ignored", name="lead", durable="lead", filter="lead.*", ack_wait="2s", standby=True)
    | {"to": [{"subject": "copies.{{wildcard(1)}}", "jetstream": True, "stream": "COPIES"}]},
)
"""A route of every kind, with everything that needs a permission of its own."""

STREAMS = (
    {"name": "OUT", "subjects": ["out.*"]},
    {"name": "DEAD", "subjects": ["dead.*"]},
    {"name": "COPIES", "subjects": ["copies.*"]},
)

POSITIONS = ({"consumer": "billing", "route": "stream", "interval": "1s"},)

ACKS_WITH_ACCOUNT = "feature_flags { js_ack_fc_v2: true }\n"


def everything(
    url: str = "nats://127.0.0.1:4222",
    *,
    routes: Sequence[dict[str, Any]] = ROUTES,
    streams: Sequence[dict[str, Any]] = STREAMS,
    positions: Sequence[dict[str, Any]] = POSITIONS,
    **connection: Any,
) -> Settings:
    quick = {"reconnect_delay": "50ms", "max_reconnect_delay": "300ms", "liveness_interval": "1s"}
    login = {"user": "router", "password": "router", "inbox_prefix": "_INBOX_router"}
    return Settings(
        router={"shutdown_timeout": "200ms"},
        telemetry={"listen": ""},
        connections={"main": {"servers": [url], **quick, **login, **connection}},
        routes=list(routes),
        streams=list(streams),
        positions=list(positions),
    )


def printed(without: str = "", **changes: Any) -> list[str]:
    """Return what the command prints, except for a line."""
    found = list(lines(everything(**changes), "main", "server"))
    assert not without or found.count(without) == 1
    return [one for one in found if one != without]


LINES = [one for one in printed() if re.match(r' +"', one)]


def subject_of(line: str) -> str:
    """Return the subject of a line, without its queue group."""
    return line.split('"')[1].partition(" ")[0]


def _is_nightly(subject: str) -> bool:
    """Return True if a line differs from another one by the name of a stream or durable only, or takes ten seconds."""
    like_another = {"OUT", "COPIES", "lead"} & {*subject.split(".")} and ".UNPIN." not in subject
    return bool(like_another) or subject == "_INBOX_router.>"


EACH = [
    pytest.param(one, id=subject_of(one), marks=[pytest.mark.nightly] * _is_nightly(subject_of(one))) for one in LINES
]


@dataclass
class Scene:
    """A server whose user `router` has these permissions only, and a client that may do everything."""

    server: NatsServer
    client: RawClient
    streams: JetStream
    heard: set[str] = field(default_factory=set)

    async def send(self) -> None:
        """Send a message to each route, and one that becomes a dead letter."""
        for subject in ("orders.1", "kept.1", "in.1", "lead.1"):
            await self.client.publish(subject, b"good")
        await self.client.publish("in.2", b"bad")
        for reply in ("_INBOX.asked", "answers.asked"):
            await self.client.publish("prices.1", b"good", None, reply)

    async def arrived(self) -> bool:
        """Return True if everything has arrived."""
        stored = {}
        for name in ("OUT", "DEAD", "COPIES"):
            stored[name] = (await self.streams.stream_info(name))["state"]["messages"]
        acked = [(await self.streams.consumer_info("IN", name))["num_ack_pending"] for name in ("stream", "lead")]
        return (
            {"eu.1", "_INBOX.asked", "answers.asked"} <= self.heard
            and stored["OUT"] >= 2
            and stored["DEAD"] >= 1
            and stored["COPIES"] >= 1
            and acked == [0, 0]
            and await checkpoints_in(self.streams) == 1
        )

    def refused(self) -> set[str]:
        return refused(self.server, "router")


async def _leave_unacked(streams: JetStream) -> None:
    """Have a message delivered to a process that ended without an ack."""
    hand = await streams.client.subscribe("hand")
    await streams.create_consumer("IN", "stream", ack_policy="explicit", ack_wait=2 * 10**9, filter_subject="in.*")
    await streams.publish("in.left", b"good")
    await streams.client.publish("$JS.API.CONSUMER.MSG.NEXT.IN.stream", b'{"batch": 1}', None, "hand")
    await hand.next()


def users(permissions: list[str]) -> str:
    block = "\n".join(permissions)
    return f"""
authorization {{ users: [
  {{ user: admin, password: admin }}
  {{ user: router, password: router,
{block}
  }}
] }}
"""


@asynccontextmanager
async def scene(
    tmp_path: Path, permissions: list[str], *, extra: str = "", left: bool = False, leaf: bool = False
) -> AsyncIterator[Scene]:
    """Yield a server with the stream `IN`; or with `leaf` a leaf node of that server.

    `left`: one of its messages is unacked. `extra` is added to the configuration of the server with the streams.
    """
    async with AsyncExitStack() as stack:
        if leaf:
            port = stack.enter_context(reserve_port())
            extra += f"leafnodes {{ listen: {HOST}:{port} }}\n" + jetstream_of(tmp_path, "hub")
            hub = await stack.enter_async_context(nats_server(tmp_path, name="hub", jetstream=False, config=extra))
            config = f'leafnodes {{ remotes: [ {{ url: "nats://{HOST}:{port}" }} ] }}\n' + users(permissions)
            config += jetstream_of(tmp_path, "leaf")
            server = await stack.enter_async_context(nats_server(tmp_path, jetstream=False, config=config))
            with trio.fail_after(10):
                while not (await hub.monitor("/leafz"))["leafnodes"]:
                    await trio.sleep(0.05)
            streams = JetStream(await stack.enter_async_context(connect(hub.url)))
        else:
            server = await stack.enter_async_context(
                nats_server(tmp_path, config=extra + users(permissions), jetstream="jetstream" not in extra)
            )
        client = await stack.enter_async_context(connect(server.url, user="admin", password="admin"))
        at = Scene(server, client, streams if leaf else JetStream(client))
        await at.streams.create_stream("IN", ["in.*", "lead.*"])
        await create_billing(at.streams, "lead.0")
        if left:
            await _leave_unacked(at.streams)
        nursery = await stack.enter_async_context(trio.open_nursery())
        for subject in ("eu.*", "_INBOX.asked", "answers.>"):
            subscription = await client.subscribe(subject)

            async def listen(subscription: RawSubscription = subscription) -> None:
                while True:
                    at.heard.add((await subscription.next(3600)).subject)

            nursery.start_soon(listen)
        yield at
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def routing(at: Scene, **changes: Any) -> AsyncIterator[Watch]:
    watch = Watch()
    async with Router(everything(at.server.url, **changes), observers=[watch], log=False).open() as live:
        watch.live = live
        yield watch


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "CHECK_EVERY", 0.3)


@pytest.mark.parametrize("left", [pytest.param(False, id="at first"), pytest.param(True, id="after a kill")])
@pytest.mark.parametrize(
    ("extra", "domain"),
    [
        pytest.param("", None, id="as it is"),
        pytest.param(ACKS_WITH_ACCOUNT, None, id="acks with domain and account", marks=pytest.mark.nightly),
        pytest.param(ACKS_WITH_ACCOUNT, "hub", id="a domain"),
    ],
)
async def test_with_the_printed_permissions_nothing_is_refused(
    extra: str, domain: str | None, left: bool, tmp_path: Path
) -> None:
    permissions = printed(domain=domain)
    async with scene(tmp_path, permissions, extra=extra, left=left, leaf=domain is not None) as at:
        async with routing(at, domain=domain) as watch:
            await watch.until("ROUTER_READY")
            await at.send()
            await eventually(at.arrived, 20, lambda: (at.heard, at.refused(), watch.codes))
            # Lookups of single messages follow when a durable is gone.
            await at.streams.delete_consumer("IN", "stream")
            await watch.until("NATS_SUBSCRIBE_ERROR")
            await at.client.publish("in.3", b"good")
            await eventually(lambda: "ROUTE_READY" in watch.codes[watch.codes.index("NATS_SUBSCRIBE_ERROR") :])
            await eventually(at.arrived, 20, lambda: (at.heard, at.refused(), watch.codes))
        assert at.refused() == set()
        assert not [one for one in watch.events if is_of_permission(one)]


@pytest.mark.nightly
async def test_a_server_of_the_domain_checks_the_api_without_the_domain(tmp_path: Path) -> None:
    permissions = printed(domain="hub")
    assert "# a server that is of domain hub itself checks $JS.API instead of $JS.hub.API" in permissions
    assert "# and $KV instead of $JS.hub.API.$KV" in permissions
    permissions = [
        one.replace('"$JS.hub.API.$KV.', '"$KV.').replace('"$JS.hub.API.', '"$JS.API.') for one in permissions
    ]
    async with scene(tmp_path, permissions, extra=jetstream_of(tmp_path, "hub")) as at:
        async with routing(at, domain="hub") as watch:
            await watch.until("ROUTER_READY")
            await at.send()
            await eventually(at.arrived, 20, lambda: (at.heard, at.refused(), watch.codes))
        assert at.refused() == set()


@pytest.mark.parametrize(
    ("routes", "lookups"),
    [
        pytest.param(ROUTES[:1], {}, id="core only"),
        pytest.param(
            ROUTES[:2],
            {"$JS.API.STREAM.NAMES", "$JS.API.STREAM.INFO.*", "$JS.EVENT.ADVISORY.STREAM.*.*"},
            id="a stream of someone else",
        ),
    ],
)
async def test_with_the_printed_permissions_nothing_is_refused_of_a_small_configuration(
    routes: Sequence[dict[str, Any]], lookups: set[str], tmp_path: Path
) -> None:
    permissions = printed(routes=routes, streams=(), positions=())
    assert {subject_of(one) for one in permissions if "$JS" in one} == {*lookups}
    async with scene(tmp_path, permissions) as at:
        await at.streams.create_stream("OUT", ["out.*"])
        async with routing(at, routes=routes, streams=(), positions=()) as watch:
            await watch.until("ROUTER_READY")
            await at.send()
            await eventually(lambda: "eu.1" in at.heard)
            if lookups:
                await until_stored(at.streams, "OUT", 1)
        assert at.refused() == set()


@pytest.mark.parametrize("line", EACH)
async def test_without_any_of_the_printed_permissions_something_is_refused(line: str, tmp_path: Path) -> None:
    subject = subject_of(line)
    of_acks, longer = subject.startswith("$JS.ACK."), subject.startswith("$JS.ACK.*.")
    subscribes = LINES.index(line) >= LINES.index(next(one for one in LINES if subject_of(one) == "orders.*"))

    def denied() -> bool:
        return any(overlaps(subject, one) for one in at.refused())

    extra = ACKS_WITH_ACCOUNT if longer else ""
    async with scene(tmp_path, printed(line), extra=extra, left=of_acks and subscribes) as at, routing(at) as watch:
        with trio.move_on_after(2.0):
            await watch.until("ROUTER_READY")
        await at.send()
        if "UNPIN" in subject:  # at the end
            await eventually(at.arrived)
        elif "MSG.GET" in subject:
            await at.streams.delete_consumer("IN", "stream")
        if "UNPIN" not in subject:
            await eventually(denied, 10, lambda: (at.refused(), watch.codes))
        if "(optional)" not in line:
            await eventually(lambda: any(map(is_of_permission, watch.events)), 10, lambda: watch.codes)
    assert denied()


def is_of_permission(event: Event) -> bool:
    """Return True if an event reports a permission that is missing."""
    if isinstance(event, PositionNotSaved):
        return "may not publish to" in event.detail
    return getattr(event, "reason", "") == "permission_denied"


async def test_after_the_first_start_nothing_needs_the_permissions_to_make_something(tmp_path: Path) -> None:
    """A thief of the credentials can then make no consumer that delivers messages elsewhere."""
    later = list(lines(everything(), "main", "server", after_first_start=True))
    marked = [one for one in printed() if one.endswith("(first start)")]
    subjects = [{subject_of(one) for one in several if '"' in one} for several in (printed(), later, marked)]
    assert subjects[0] - subjects[1] == subjects[2]
    assert {subject_of(one).split(".")[2] for one in marked} == {"CONSUMER", "STREAM"}
    assert not [one for one in later if "CREATE" in one]
    async with scene(tmp_path, printed()) as at:

        async def made_everything() -> bool:
            return "KV_router-positions" in (await at.streams.api("STREAM.NAMES"))["streams"]

        async with routing(at) as watch:
            await watch.until("ROUTER_READY")
            await eventually(made_everything)
        await at.server.reload(users(later))
        async with connect(at.server.url, user="router", password="router") as thief:
            subject = "$JS.API.CONSUMER.DURABLE.CREATE.IN.stream"
            await thief.publish(subject, b'{"stream_name": "IN", "config": {"deliver_subject": "loot"}}')
            await eventually(lambda: subject in at.refused())
        before = at.refused()
        async with routing(at) as watch:
            await watch.until("ROUTER_READY")
            await at.send()
            await eventually(at.arrived, 20, lambda: (at.heard, at.refused(), watch.codes))
        assert at.refused() == before
        assert not [one for one in watch.events if is_of_permission(one)]
