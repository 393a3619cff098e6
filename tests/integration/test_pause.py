"""`router-trio pause` and `resume`: durables paused on the server, and what routers report of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from getpass import getuser
from pathlib import Path
from socket import gethostname
from typing import Any

import pytest
import trio

from router_trio import Router, Settings
from router_trio.nats.info import ServerInfo
from router_trio.routing.stream.pulling import checks
from tests.integration.pages import get
from tests.support.command import over_its_links
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.server_version import needs_server
from tests.support.servers import NatsServer, nats_server
from tests.support.watch import Watch

CONFIGURATION = """
[telemetry]
listen = "127.0.0.1:0"
[connections.main]
servers = ["{url}"]
[[routes]]
name = "copy"
from = {{ stream = "SOURCE", durable = "router", filter = "source.*" }}
to = [ {{ subject = "sink.{{{{wildcard(1)}}}}", jetstream = true }} ]
[[routes]]
name = "core"
from = {{ subject = "core" }}
to = [ {{ subject = "heard" }} ]
"""
ME = f"{getuser()}@{gethostname()}"

pytestmark = needs_server(2, 11, lacks="pause of consumers")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "CHECK_EVERY", 0.3)


class Place:
    """A server with a source and a sink, and a configuration."""

    def __init__(self, folder: Path, url: str, streams: JetStream) -> None:
        self.folder = folder
        self.streams = streams
        (folder / "router.toml").write_text(CONFIGURATION.format(url=url))

    async def publish(self, count: int) -> None:
        await self.streams.publish_many((f"source.{n % 7}", b"%d" % n, None) for n in range(count))

    async def stored(self) -> int:
        found: int = (await self.streams.stream_info("SINK"))["state"]["messages"]
        return found

    async def command(self, name: str, *arguments: str, route: str = "copy") -> tuple[int, str, str]:
        result = await over_its_links(name, "router.toml", route, *arguments, cwd=self.folder)
        return result.returncode, result.stdout, result.stderr

    @asynccontextmanager
    async def router(self) -> AsyncIterator[Running]:
        watch = Watch()
        settings = Settings.load(self.folder / "router.toml")
        async with Router(settings, observers=[watch], log=False).open() as live:
            assert live.http_address is not None
            yield Running(watch, live.http_address[1])


class Running:
    """A router that runs: its log and its pages."""

    def __init__(self, watch: Watch, port: int) -> None:
        self.watch = watch
        self._port = port

    async def page(self, path: str) -> tuple[int, Any]:
        code, _, body = await get(("127.0.0.1", self._port), path)
        return code, json.loads(body)

    async def ready(self) -> tuple[int, list[str]]:
        code, body = await self.page("/readyz")
        return code, [one["reason"] for one in body["reasons"]]

    async def until_paused(self, text: str) -> str:
        """Wait until the router is not ready for this reason alone. Return the reason."""

        async def paused() -> bool:
            code, reasons = await self.ready()
            return code == 503 and len(reasons) == 1 and text in reasons[0]

        await eventually(paused)
        return (await self.ready())[1][0]

    async def until_ready(self) -> None:
        async def is_ready() -> bool:
            return (await self.ready())[0] == 200

        await eventually(is_ready)


@asynccontextmanager
async def place(folder: Path, url: str, user: str = "") -> AsyncIterator[Place]:
    async with connect(url, user=user or None, password=user or None) as client:
        streams = JetStream(client)
        await streams.create_stream("SOURCE", ["source.*"])
        await streams.create_stream("SINK", ["sink.*"])
        yield Place(folder, url, streams)


async def test_a_pause_lasts_over_restarts_and_is_reported_with_its_author_until_it_ends(
    tmp_path: Path, server: NatsServer
) -> None:
    async with place(tmp_path, server.url) as here:
        async with here.router() as running:
            await running.until_ready()
            await here.publish(10)
            await eventually(lambda: _is(here.stored, 10))
            code, printed, errors = await here.command("pause", "--for", "1h")
            assert (code, errors) == (0, "")
            assert printed.startswith(
                "route copy: the durable 'router' of stream 'SOURCE' is paused on the server until 20"
            )
            reason = await running.until_paused("is paused")
            assert reason in printed
            assert f" by {ME}; `router-trio resume`" in reason
            _, status = await running.page("/status")
            assert (status["routes"]["copy"]["state"], status["routes"]["copy"]["reason"]) == ("paused", reason)
            assert status["routes"]["core"]["state"] == "running"
            await here.publish(10)
            await trio.sleep(1)
            event = await running.watch.until("ROUTE_CONSUMER_PAUSED")
            assert (event.stream, event.durable, event.detail) == ("SOURCE", "router", reason)
            assert event.sentence() == f"Route copy receives nothing: {reason}"
        async with here.router() as running:
            assert await running.until_paused("is paused") == reason
            assert await here.stored() == 10
            code, printed, errors = await here.command("resume")
            assert (code, errors) == (0, "")
            assert printed == (
                "route copy: the durable 'router' of stream 'SOURCE' is not paused; 10 messages are not delivered yet\n"
            )
            await running.until_ready()
            await eventually(lambda: _is(here.stored, 20))
            assert running.watch.count("ROUTE_CONSUMER_PAUSED") == 1
            await running.watch.until("ROUTE_CONSUMER_RESUMED")
        metadata = (await here.streams.consumer_info("SOURCE", "router"))["config"]["metadata"]
        assert not [key for key in metadata if "paused" in key], "the record is removed"


@pytest.mark.parametrize("more", ["standby = true", "partitions = 4, partition_by = [1]"])
async def test_a_process_that_waits_for_a_lead_reports_a_pause_from_before_its_start(
    more: str, tmp_path: Path, server: NatsServer
) -> None:
    async with place(tmp_path, server.url) as here:
        file = tmp_path / "router.toml"
        file.write_text(file.read_text().replace('durable = "router"', f'durable = "router", {more}'))
        async with here.router() as running:
            await running.until_ready()
            await here.publish(10)
            await eventually(lambda: _is(here.stored, 10))
        assert (await here.command("pause", "--for", "1h"))[0] == 0
        async with here.router() as running:
            await here.publish(50)
            assert f" by {ME}; `router-trio resume`" in await running.until_paused("is paused")
            _, status = await running.page("/status")
            assert status["routes"]["copy"]["state"] == "paused"
            await running.watch.until("ROUTE_CONSUMER_PAUSED")
            assert (await here.command("resume"))[0] == 0
            await running.until_ready()
            await eventually(lambda: _is(here.stored, 60))
            await running.watch.until("ROUTE_CONSUMER_RESUMED")
            paused = running.watch.count("ROUTE_CONSUMER_PAUSED")
            assert (paused, running.watch.count("ROUTE_CONSUMER_RESUMED")) == (4 if "part" in more else 1,) * 2


async def _is(ask: Callable[[], Awaitable[int]], wanted: int) -> bool:
    return await ask() == wanted


async def test_a_pause_ends_by_itself(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server.url) as here, here.router() as running:
        await running.until_ready()
        assert (await here.command("pause", "--for", "2s"))[0] == 0
        await here.publish(10)
        await running.watch.until("ROUTE_CONSUMER_PAUSED")
        assert not await here.stored()
        await eventually(lambda: _is(here.stored, 10))
        await running.until_ready()
        await running.watch.until("ROUTE_CONSUMER_RESUMED")


async def test_a_pause_by_another_client_has_no_author_and_is_resumed_as_well(
    tmp_path: Path, server: NatsServer
) -> None:
    async with place(tmp_path, server.url) as here, here.router() as running:
        await running.until_ready()
        assert (await here.command("pause", "--until", "2100-01-01T00:00:00Z"))[0] == 0
        assert " until 2100-01-01T00:00:00Z by " in await running.until_paused("is paused")
        await here.streams.pause_consumer("SOURCE", "router", 3600)
        assert ME not in await running.until_paused("not by `router-trio pause`")
        assert (await here.command("resume"))[0] == 0
        await running.until_ready()
        assert (await here.command("resume"))[0] == 0, "nothing is done if it is not paused"


async def test_a_pause_changes_nothing_else_of_the_durable(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server.url) as here:
        own = {"team": "orders"}
        before = await here.streams.create_consumer("SOURCE", "router", filter_subject="source.*", metadata=own)
        await here.command("pause", "--for", "1h")
        await here.command("pause", "--for", "2h")
        paused = await here.streams.consumer_info("SOURCE", "router")
        assert (paused["paused"], paused["config"]["metadata"]["router-trio.paused-by"]) == (True, ME)
        assert paused["pause_remaining"] > 3600e9, "the second pause has replaced the first one"
        await here.command("resume")
        after = await here.streams.consumer_info("SOURCE", "router")
        assert after["config"] == before["config"]
        assert after["config"]["metadata"]["team"] == "orders"
        assert after["created"] == before["created"]


@pytest.mark.parametrize("command", ["pause", "resume"])
async def test_a_route_that_can_not_be_paused_is_refused_with_the_reason(
    command: str, tmp_path: Path, server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for_a_while = ["--for", "1h"] if command == "pause" else []
    async with place(tmp_path, server.url) as here:
        code, _, errors = await here.command(command, *for_a_while, route="core")
        assert (code, "can't pause a subscription" in errors) == (2, True), errors
        code, _, errors = await here.command(command, *for_a_while, route="cop")
        assert (code, "did you mean 'copy'?" in errors) == (2, True), errors
        code, _, errors = await here.command(command, *for_a_while)
        assert (code, "stream 'SOURCE' has no consumer 'router'" in errors) == (1, True), errors
        await here.streams.create_consumer("SOURCE", "router")
        monkeypatch.setattr(ServerInfo, "major_minor", (2, 10))
        code, _, errors = await here.command(command, *for_a_while)
        assert (code, "that needs 2.11 or later" in errors) == (1, True), errors


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "needs either --for or --until"),
        (["--for", "1h", "--until", "2100-01-01"], "needs either --for or --until"),
        (["--for", "0s"], "longer than 0s"),
        (["--for", "1"], "has no unit"),
        (["--for", "1d"], "write '24h'"),
        (["--for", "1w"], "a unit (h, m, s or ms)"),
        (["--until", "tomorrow"], "is not a time such as"),
        (["--until", "2020-01-01"], "2020-01-01T00:00:00Z is over"),
        (["--until", "9999-12-31T23:59:59-05:00"], "is not a time such as"),
        (["--until", "0001-01-01T00:00:00+05:00"], "is not a time such as"),
    ],
)
async def test_a_pause_needs_a_time_to_come(arguments: list[str], why: str, tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server.url) as here:
        await here.streams.create_consumer("SOURCE", "router")
        code, _, errors = await here.command("pause", *arguments)
        assert (code, why in errors) == (2, True), errors
        assert not (await here.streams.consumer_info("SOURCE", "router")).get("paused")


def users(*denied: str) -> str:
    return f"""
authorization {{ users: [
  {{ user: router, password: router, permissions: {{ publish: {{ deny: {json.dumps(denied)} }} }} }}
  {{ user: other, password: other }}
] }}
"""


async def test_a_user_who_may_not_change_the_durable_can_pause_it(tmp_path: Path) -> None:
    config = users("$JS.API.CONSUMER.DURABLE.CREATE.>")
    async with nats_server(tmp_path, config=config) as server, place(tmp_path, server.url, "other") as here:
        await here.streams.create_consumer("SOURCE", "router", filter_subject="source.*")
        (tmp_path / "router.toml").write_text(CONFIGURATION.format(url=_as_router(server.url)))
        code, printed, errors = await here.command("pause", "--for", "1h")
        assert (code, "not by `router-trio pause`" in printed) == (0, True), errors
        assert "this user may not change the durable" in errors
        assert "this user may not publish to $JS.API.CONSUMER.DURABLE.CREATE.SOURCE.router" in errors
        assert (await here.streams.consumer_info("SOURCE", "router"))["paused"]


async def test_a_user_who_may_not_pause_gets_the_subject_to_allow(tmp_path: Path) -> None:
    config = users("$JS.API.CONSUMER.PAUSE.>")
    async with nats_server(tmp_path, config=config) as server, place(tmp_path, server.url, "other") as here:
        await here.streams.create_consumer("SOURCE", "router", filter_subject="source.*")
        (tmp_path / "router.toml").write_text(CONFIGURATION.format(url=_as_router(server.url)))
        code, _, errors = await here.command("pause", "--for", "1h")
        assert (code, "$JS.API.CONSUMER.PAUSE.SOURCE.router" in errors) == (1, True), errors


def _as_router(url: str) -> str:
    return url.replace("nats://", "nats://router:router@")
