"""`router-trio trace`: the path of a message through servers and router, with nothing delivered or stored."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from router_trio import Router, Settings
from router_trio.embedded import HOST, reserve_port
from router_trio.nats.command_link import open_links
from router_trio.nats.message_trace import MessageTracer
from tests.support.command import over_its_links
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import RawClient, connect
from tests.support.raw_server import Published, Sent, raw_server
from tests.support.server_version import needs_server
from tests.support.servers import NatsServer, nats_server

pytestmark = needs_server(2, 11, lacks="message tracing")

CONFIGURATION = """
[router]
name = "orders-router"
[telemetry]
listen = ""
[connections.edge]
servers = ["{edge}"]
connect_timeout = "2s"
[connections.core]
servers = ["{core}"]
connect_timeout = "2s"
[[routes]]
name = "eu"
from = {{ connection = "edge", subject = "orders.*.*", queue = "routers" }}
[[routes.to]]
connection = "core"
subject = "eu.{{{{wildcard(1)}}}}"
jetstream = true
[[routes.to]]
connection = "core"
subject = "live.{{{{wildcard(2)}}}}"
when = 'headers["region"] == "eu"'
payload = 'string(body.total)'
"""


class Place:
    """Two servers and their clients, and what no message may reach."""

    def __init__(self, folder: Path, edge: NatsServer, core: NatsServer, there: RawClient, here: RawClient) -> None:
        self.folder = folder
        self.edge, self.core = edge, core
        self.here, self.there = here, there
        self.streams = JetStream(there)
        self.settings = Settings.parse(self.write().read_bytes())

    def write(self, text: str = CONFIGURATION, **urls: str) -> Path:
        path = self.folder / "router.toml"
        path.write_text(text.format(**({"edge": self.edge.url, "core": self.core.url} | urls)))
        return path

    async def trace(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return await over_its_links("trace", "router.toml", *arguments, cwd=self.folder)

    async def traced(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        """Return the exit code, and the JSON on stdout."""
        result = await self.trace(*arguments, "--json")
        assert result.stdout, result.stderr
        return result.returncode, json.loads(result.stdout)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with (
        nats_server(tmp_path, name="edge1") as edge,
        nats_server(tmp_path, name="core1") as core,
        connect(edge.url) as here,
        connect(core.url) as there,
    ):
        made = Place(tmp_path, edge, core, there, here)
        await made.streams.create_stream("EU", ["eu.*"])
        yield made


@asynccontextmanager
async def routing(place: Place) -> AsyncIterator[None]:
    async with Router(place.settings, log=False).open() as live:
        await eventually(lambda: all(route.state == "running" for route in live.routes))
        yield


ORDER = ("orders.7.created", "--header", "region=eu", "--data", '{"total": 150}')


async def test_the_path_leads_through_both_systems_and_nothing_is_delivered_or_stored(place: Place) -> None:
    spies = [await place.here.subscribe("orders.>"), await place.there.subscribe("live.*")]
    async with routing(place):
        code, found = await place.traced(*ORDER)
        text = await place.trace(*ORDER)
    assert (code, found["problems"]) == (0, [])
    assert (text.returncode, text.stderr) == (0, "")
    [arrives] = found["arrives"]
    assert (arrives["connection"], arrives["subject"]) == ("edge", "orders.7.created")
    [server] = arrives["servers"]
    assert server["server"] == "edge1"
    received, *sent = server["events"]
    assert (received["type"], received["account"]) == ("in", "$G")
    assert {(one["subscription"], one.get("queue")) for one in sent} == {("orders.*.*", "routers"), ("orders.>", None)}
    [router] = [one["name"] for one in sent if one.get("queue")]
    assert router.startswith("orders-router edge ")
    [route] = found["router"]["routes"]
    assert [one["subject"] for one in route["destinations"]] == ["eu.7", "live.created"]
    stored, live = found["copies"]
    assert (stored["connection"], stored["subject"]) == ("core", "eu.7")
    assert [one["stream"] for one in stored["servers"][0]["events"] if one["type"] == "js"] == ["EU"]
    assert [one["subscription"] for one in live["servers"][0]["events"] if one["type"] == "eg"] == ["live.*"]
    for words in ("edge: orders.7.created", "router orders-router", "route eu takes it", "stream EU would store it"):
        assert words in text.stdout
    for client in (place.here, place.there):
        await client.ping()
    assert [spy.waiting() for spy in spies] == [[], []]
    assert await place.streams.stream_messages("EU") == []


async def test_a_router_that_does_not_run_and_a_missing_stream_are_problems(place: Place) -> None:
    await place.streams.api("STREAM.DELETE.EU")
    code, found = await place.traced(*ORDER)
    assert code == 1
    assert found["problems"] == [
        "route eu: no client has the subscription orders.*.* in queue routers; is the router running and ready?",
        "core: eu.7: no stream takes this subject, so the copy is not stored",
        "core: live.created: nothing is subscribed to this subject, so the copy is lost",
    ]
    result = await place.trace(*ORDER)
    assert result.stderr.splitlines() == [f"router-trio: {problem}" for problem in found["problems"]]


async def test_a_message_that_no_route_takes_or_that_fails_is_a_problem(place: Place) -> None:
    async with routing(place):
        code, found = await place.traced("elsewhere.7")
        assert (code, found["problems"], found["copies"]) == (1, ["no route takes elsewhere.7"], [])
        assert [one["connection"] for one in found["arrives"]] == ["edge"]
        code, found = await place.traced("orders.7.created", "--header", "region=eu", "--data", "no JSON")
    assert code == 1
    [problem] = [one for one in found["problems"] if "route eu" in one]
    assert "live." in problem


async def test_a_route_from_a_stream_is_reached_by_its_stream(place: Place) -> None:
    streams = JetStream(place.here)
    text = CONFIGURATION.replace('subject = "orders.*.*", queue = "routers"', 'stream = "ORDERS", durable = "router"')
    place.write(text.replace("{{{{wildcard(1)}}}}", "all").replace("{{{{wildcard(2)}}}}", "all"))
    await streams.create_stream("OTHER", ["orders.*.*"])
    code, found = await place.traced("orders.7.created", "--header", "region=us", "--data", "{}")
    assert code == 1
    assert found["problems"] == ["route eu: stream ORDERS does not take this subject; it would be stored in OTHER"]
    await streams.api("STREAM.DELETE.OTHER")
    await streams.create_stream("ORDERS", ["orders.*.*"])
    code, found = await place.traced("orders.7.created", "--header", "region=us", "--data", "{}")
    assert (code, found["problems"]) == (0, [])
    assert await streams.stream_messages("ORDERS") == []


async def test_servers_between_are_shown_with_their_hops(place: Place, tmp_path: Path) -> None:
    """The router is connected to a server behind the one that the message is traced from."""
    with reserve_port() as port:
        hub = f'leafnodes {{ listen: "{HOST}:{port}" }}'
        leaf = f'leafnodes {{ remotes: [ {{ url: "nats://{HOST}:{port}" }} ] }}'
        async with (
            nats_server(tmp_path, jetstream=False, config=hub, name="hub") as far,
            nats_server(tmp_path, jetstream=False, config=leaf, name="leaf") as near,
        ):
            await eventually_connected(near)
            place.settings = Settings.parse(place.write(edge=far.url).read_bytes())
            async with routing(place):
                place.write(edge=near.url)
                code, found = await place.traced("orders.7.created", "--header", "region=us", "--data", "{}")
    assert (code, found["problems"]) == (0, [])
    first, second = found["arrives"][0]["servers"]
    assert [(first["server"], first["hop"]), (second["server"], second["hop"])] == [("leaf", ""), ("hub", "1")]
    assert any(one.get("queue") == "routers" for one in second["events"])


async def test_a_report_of_a_later_server_may_be_the_first_to_arrive() -> None:
    """The reports of two servers are sent independently of each other."""

    def report(server: str, header: dict[str, list[str]], hop: str) -> bytes:
        sent = [{"type": "eg", "kind": 2, "name": "hub", "hop": hop}] if hop else []
        return json.dumps({"server": {"name": server}, "request": {"header": header}, "events": sent}).encode()

    inbox = ""

    def answer(published: Published) -> Iterable[Sent]:
        if published.subject == "orders.7":
            yield Sent(inbox, report("hub", {"Nats-Trace-Hop": ["1"]}, ""))
            yield Sent(inbox, report("leaf", {}, "1"))

    async with raw_server(answer) as (_, url):
        settings = Settings.parse(f'[connections.main]\nservers = ["{url}"]\n'.encode())
        async with open_links(settings, "trace", ["main"]) as links:
            tracer = MessageTracer(links["main"])
            await tracer.open()
            inbox = f"{links['main'].requests.inbox.decode()}-trace.1"
            trace = await tracer.trace("orders.7")
    assert [(one.server, one.hop) for one in trace.reports] == [("leaf", ""), ("hub", "1")]
    assert trace.silent == ()


async def eventually_connected(server: NatsServer) -> None:
    async def connected() -> bool:
        return bool((await server.monitor("/leafz"))["leafs"])

    await eventually(connected)


async def test_nothing_is_sent_to_a_server_that_would_deliver_the_message(place: Place) -> None:
    def answer(published: Published) -> Iterable[Sent]:
        return ()

    async with raw_server(answer, version="2.10.26") as (old, url):
        place.write(edge=url)
        code, found = await place.traced(*ORDER)
        assert code == 1
        assert "nats-server 2.10.26 would deliver the message" in found["problems"][0]
        place.write(core=url)
        async with routing(place):
            code, found = await place.traced(*ORDER)
        assert code == 1
        assert [one.get("problem") is not None for one in found["copies"]] == [True, True]
        assert old.connections == 2
        assert old.published == []


@pytest.mark.parametrize("subject", ["$JS.API.STREAM.PURGE.EU", "$SYS.REQ.SERVER.PING"])
async def test_requests_that_a_server_would_answer_are_not_traced(place: Place, subject: str) -> None:
    result = await place.trace(subject)
    assert (result.returncode, result.stdout) == (2, "")
    assert "even if they are only traced" in result.stderr


async def test_a_connection_that_cannot_be_opened_leaves_the_rest_to_be_shown(place: Place) -> None:
    await place.core.kill()
    async with routing_to_edge(place):
        result = await place.trace(*ORDER)
    assert result.returncode == 1
    assert "route eu takes it" in result.stdout
    assert "core: eu.7: not traced: " in result.stderr


@asynccontextmanager
async def routing_to_edge(place: Place) -> AsyncIterator[None]:
    async with Router(place.settings, log=False).open():
        await eventually(lambda: subscribed(place))
        yield


async def subscribed(place: Place) -> bool:
    found = await place.edge.monitor("/subsz?subs=1")
    return any(one["subject"] == "orders.*.*" for one in found.get("subscriptions_list", ()))


async def test_a_message_that_its_server_would_refuse_for_its_size_is_not_sent(place: Place) -> None:
    result = await place.trace("orders.7.created", "--header", f"Large={'x' * 2_000}", "--header", "region=us")
    assert "larger than" not in result.stderr
    await place.edge.reload("max_payload: 1024")
    result = await place.trace("orders.7.created", "--header", f"Large={'x' * 2_000}", "--header", "region=us")
    assert result.returncode == 1
    assert "the message to orders.7.created is larger than its server accepts" in result.stderr
