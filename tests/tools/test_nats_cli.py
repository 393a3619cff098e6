"""The `nats` command, as people use it, around routes: pub, sub, request, reply, info, service, check and bench."""

from __future__ import annotations

import json
import os
import subprocess
from base64 import b64decode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio import Message, Router, Settings
from router_trio.protocol.metadata import MONITOR
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import RawClient, connect
from tests.support.server_version import needs_server
from tests.support.servers import NatsServer, nats_server
from tests.support.settings import core_route, settings, stream_route
from tests.support.tools import tool
from tests.support.watch import Watch, until_settled, watched

pytestmark = pytest.mark.timeout(120)
ENDS_WITHIN = 60.0


class Cli:
    """`nats` with a server, without a user's contexts."""

    def __init__(self, program: Path, server: NatsServer, home: Path) -> None:
        self.server = server
        self._command = [str(program), "--server", server.url, "--no-context", "--timeout", "20s"]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("NATS_")}
        self._environment = kept | {"HOME": str(home), "XDG_CONFIG_HOME": str(home), "NO_COLOR": "1"}

    async def __call__(self, *arguments: str) -> str:
        """Run a command to its end and return what it printed. Raises `AssertionError` if it failed."""
        done = await self._run(arguments)
        assert done.returncode == 0, f"nats {' '.join(arguments)}: {done.stdout.decode()}{done.stderr.decode()}"
        return done.stdout.decode()

    async def json(self, *arguments: str) -> dict[str, Any]:
        """Run a command that prints JSON."""
        shown: dict[str, Any] = json.loads(await self(*arguments, "--json"))
        return shown

    @asynccontextmanager
    async def listening(self, subject: str, *arguments: str, ends: bool = True) -> AsyncIterator[list[str]]:
        """Run a command that subscribes to `subject`. The list has its output, once it has ended by itself.

        A command that does not end by itself (`ends`) is terminated when the context is left.
        """
        printed: list[str] = []

        async def run() -> None:
            done = await self._run(arguments)
            assert done.returncode == 0, done.stderr.decode()
            printed.append(done.stdout.decode())

        async def subscribed() -> bool:
            shown = await self.server.monitor("/subsz?subs=1")
            return subject in [one["subject"] for one in shown.get("subscriptions_list", ())]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await eventually(subscribed, ENDS_WITHIN)
            yield printed
            if not ends:
                nursery.cancel_scope.cancel()

    async def fails(self, *arguments: str) -> str:
        """Run a command that must fail, and return what it printed."""
        done = await self._run(arguments)
        assert done.returncode != 0, done.stdout.decode()
        return done.stdout.decode()

    async def _run(self, arguments: tuple[str, ...]) -> subprocess.CompletedProcess[bytes]:
        with trio.fail_after(ENDS_WITHIN):
            command = [*self._command, *arguments]
            return await trio.run_process(
                command, env=self._environment, capture_stdout=True, capture_stderr=True, check=False
            )


@pytest.fixture
async def cli(tmp_path: Path) -> AsyncIterator[Cli]:
    program = tool("nats")
    async with nats_server(tmp_path) as server:
        yield Cli(program, server, tmp_path)


def routing(cli: Cli, *routes: dict[str, Any]) -> Settings:
    return settings(cli.server.url, routes=list(routes), max_pending_operations=100_000)


def routed(watch: Watch) -> dict[str, Any]:
    """Return the ledger of the route `route`."""
    ledger: dict[str, Any] = watch.router.status()["routes"]["route"]["ledger"]
    return ledger


async def test_pub_reaches_sub(cli: Cli) -> None:
    async with (
        watched(routing(cli, core_route("orders.*", "eu.{{wildcard(1)}}"))),
        cli.listening("eu.>", "sub", "eu.>", "--count", "2") as printed,
    ):
        await cli("pub", "orders.7", "hello", "-H", "Customer:42")
        await cli("pub", "orders.8", "world")
    for shown in ('Received on "eu.7"', 'Received on "eu.8"', "Customer: 42", "hello", "world"):
        assert shown in printed[0]


async def test_req_is_answered_by_reply_behind_a_route(cli: Cli) -> None:
    async with (
        watched(routing(cli, core_route("ask.*", "service.{{wildcard(1)}}"))),
        cli.listening("service.*", "reply", "service.*", "--echo", ends=False),
    ):
        assert (await cli("req", "ask.time", "what time is it", "--raw")).strip() == "what time is it"


async def test_req_is_answered_by_a_handler(cli: Cli) -> None:
    watch = Watch()
    router = Router(routing(cli), observers=[watch])

    @router.route("shout.*", respond=True)
    def shout(message: Message) -> Message:
        return message.replace(payload=message.payload.upper())

    async with watched(router, watch):
        assert (await cli("req", "shout.now", "hello", "--raw")).strip() == "HELLO"


async def test_stream_and_consumer_show_the_routed_messages(cli: Cli) -> None:
    for name, subject in (("ORDERS", "orders.>"), ("EU", "eu.>")):
        await cli("stream", "add", name, "--subjects", subject, "--defaults")
    async with watched(routing(cli, stream_route("ORDERS", "eu.{{wildcard(1)}}", filter="orders.*"))) as watch:
        await cli("pub", "orders.7", "order {{Count}}", "--count", "50")
        await eventually(lambda: routed(watch)["settled"]["routed"] == 50, ENDS_WITHIN)

        async def acked() -> bool:
            return bool((await cli.json("consumer", "info", "ORDERS", "router"))["ack_floor"]["stream_seq"] == 50)

        await eventually(acked, ENDS_WITHIN)
        consumer = await cli.json("consumer", "info", "ORDERS", "router")
    assert (consumer["num_pending"], consumer["num_ack_pending"], consumer["num_redelivered"]) == (0, 0, 0)
    assert consumer["config"]["durable_name"] == "router"
    assert (await cli.json("stream", "info", "EU"))["state"]["messages"] == 50
    stored = await cli.json("stream", "get", "EU", "50")
    assert (stored["subject"], b64decode(stored["data"])) == ("eu.7", b"order 50")
    assert b"Nats-Msg-Id: " in b64decode(stored["hdrs"])


async def test_bench_through_a_route(cli: Cli) -> None:
    messages = "5000"
    async with watched(routing(cli, core_route("load.*", "sink.{{wildcard(1)}}"))) as watch:
        async with cli.listening("sink.1", "bench", "sub", "sink.1", "--msgs", messages, "--no-progress") as printed:
            await cli("bench", "pub", "load.1", "--msgs", messages, "--size", "64", "--no-progress")
            # Its subscriber ends by itself when it has all of them.
        await until_settled(watch.router)
        ledger = routed(watch)
    assert "subscriber stats" in printed[0]
    assert ledger["received"] == ledger["settled"]["routed"] == 5000


async def test_bench_of_a_stream_through_a_route(cli: Cli) -> None:
    for name, subject in (("ORDERS", "orders.>"), ("EU", "eu.>")):
        await cli("stream", "add", name, "--subjects", subject, "--defaults")
    async with watched(routing(cli, stream_route("ORDERS", "eu.{{wildcard(1)}}", filter="orders.*"))) as watch:
        await cli("bench", "js", "pub", "async", "orders.1", "--stream", "ORDERS", "--msgs", "5000", "--no-progress")
        await eventually(lambda: routed(watch)["settled"]["routed"] == 5000, ENDS_WITHIN)
    assert (await cli.json("stream", "info", "EU"))["state"]["messages"] == 5000


async def test_a_changed_key_is_routed_and_a_route_writes_keys(cli: Cli) -> None:
    await cli("kv", "add", "config")
    changes = stream_route("KV_config", "changed.{{wildcard(1)}}", filter="$KV.config.*", name="changes")
    changes["to"][0]["jetstream"] = False
    writes = core_route("settings.*", "$KV.config.{{wildcard(1)}}", name="writes")
    writes["to"][0]["jetstream"] = True
    async with watched(routing(cli, changes, writes)):
        async with cli.listening("changed.*", "sub", "changed.*", "--count", "2") as printed:
            await cli("kv", "put", "config", "colour", "blue")
            await cli("pub", "settings.size", "large")

        async def written() -> bool:
            return (await cli("kv", "get", "config", "size", "--raw")).strip() == "large"

        await eventually(written, ENDS_WITHIN)
    for shown in ('Received on "changed.colour"', "blue", 'Received on "changed.size"', "large"):
        assert shown in printed[0]


async def test_service_shows_each_process_and_route(cli: Cli) -> None:
    for name, subject in (("ORDERS", "orders.>"), ("EU", "eu.>")):
        await cli("stream", "add", name, "--subjects", subject, "--defaults")
    routes = (
        stream_route("ORDERS", "eu.{{wildcard(1)}}", name="kept", filter="orders.*"),
        core_route("load.*", "sink.{{wildcard(1)}}", name="load", queue="routers"),
    )
    async with watched(routing(cli, *routes)) as first, watched(routing(cli, *routes[1:])) as second:
        watches = (first, second)

        async def listed() -> bool:
            return (await cli("service", "ping")).count("router-trio ") == 2

        await eventually(listed, ENDS_WITHIN)
        await cli("bench", "pub", "load.1", "--msgs", "500", "--size", "64", "--no-progress")
        await cli("pub", "orders.7", "order {{Count}}", "--count", "20")
        for watch in watches:
            await until_settled(watch.router)
        counted = [watch.router.status()["routes"] for watch in watches]
        assert sum(one["load"]["received"] for one in counted) == 500
        stats = json.loads(await cli("service", "stats", "router-trio", "--json"))
        found = [{one["name"]: one for one in process["endpoints"]} for process in stats]
        assert len({process["id"] for process in stats}) == 2
        for shown in counted:
            (same,) = (one for one in found if {*one} == {*shown})
            for name, route in shown.items():
                assert same[name]["num_requests"] == route["received"]
                assert same[name]["num_errors"] == route["failed"] + route["dead_lettered"]
                assert same[name]["data"] == route["ledger"] | {"state": "running"}
        info = await cli("service", "info", "router-trio", stats[0]["id"])
        assert "load.*" in info
        shown = await cli("service", "ls")
        assert all(process["id"] in shown for process in stats)


def thresholds(info: dict[str, Any]) -> list[str]:
    """Return the flags of `nats server check consumer` for the thresholds in the metadata of a consumer."""
    found = {key.removeprefix(MONITOR): value for key, value in info["config"]["metadata"].items() if MONITOR in key}
    return [f"--{name}={value}" for name, value in found.items() if name.endswith("-critical")]


async def test_server_check_consumer_needs_no_thresholds_by_hand(cli: Cli) -> None:
    for name, subject in (("ORDERS", "orders.>"), ("EU", "eu.>")):
        await cli("stream", "add", name, "--subjects", subject, "--defaults")
    check = ("server", "check", "consumer", "--stream", "ORDERS", "--consumer", "router")
    async with watched(routing(cli, stream_route("ORDERS", "eu.{{wildcard(1)}}", filter="orders.*"))) as watch:
        await cli("pub", "orders.7", "order {{Count}}", "--count", "20")
        await eventually(lambda: routed(watch)["settled"]["routed"] == 20, ENDS_WITHIN)
        flags = thresholds(await cli.json("consumer", "info", "ORDERS", "router"))
        assert len(flags) == 3
        assert (await cli(*check, *flags)).startswith("OK ")
    await cli("bench", "js", "pub", "async", "orders.1", "--stream", "ORDERS", "--msgs", "5000", "--no-progress")
    stopped = await cli.fails(*check, *flags)
    assert stopped.startswith("CRITICAL ")
    assert "Unprocessed Messages" in stopped


@asynccontextmanager
async def orders_at_a_rate(client: RawClient) -> AsyncIterator[Callable[[], int]]:
    """Publish a thousand numbered orders a second while this is entered. Yields their count."""
    count = 0

    async def publish() -> None:
        nonlocal count
        begun = trio.current_time()
        while True:
            due = int(1000 * (trio.current_time() - begun))
            await client.publish_many([(f"orders.{number % 10}", b"%d" % number) for number in range(count, due)])
            count = due
            await trio.sleep(0.02)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish)
        yield lambda: count
        nursery.cancel_scope.cancel()


@needs_server(2, 14, lacks="reset of consumers")
async def test_a_durable_is_paused_reset_edited_and_removed_under_load(cli: Cli) -> None:
    for name, subject in (("ORDERS", "orders.>"), ("EU", "eu.>")):
        await cli("stream", "add", name, "--subjects", subject, "--defaults")
    durable = ("ORDERS", "router", "--force")
    async with (
        connect(cli.server.url) as client,
        watched(routing(cli, stream_route("ORDERS", "eu.{{wildcard(1)}}", filter="orders.*"))) as watch,
    ):
        async with orders_at_a_rate(client) as sent:

            async def passes() -> None:
                """Wait until everything sent up to now is routed."""
                wanted = sent()
                await eventually(lambda: routed(watch)["settled"]["routed"] >= wanted, ENDS_WITHIN)

            await trio.sleep(0.2)
            await cli("consumer", "pause", "ORDERS", "router", "2100-01-01 00:00:00", "--force")
            before = routed(watch)["settled"]["routed"]
            await cli("consumer", "resume", *durable)
            await passes()
            assert sent() > before, "it was paused for a moment"
            await cli("consumer", "reset", *durable)
            await passes()
            await cli("consumer", "edit", *durable, "--wait", "20s")
            await passes()
            await cli("consumer", "rm", *durable)
            await passes()
            edited = watch.of("ROUTE_CONSUMER_DIFFERS")
            await eventually(lambda: sent() >= 1000, ENDS_WITHIN)
        stored = await JetStream(client).stream_messages("ORDERS")
        await eventually(lambda: routed(watch)["settled"]["routed"] >= len(stored), ENDS_WITHIN)
        await until_settled(watch.router)
        ledger = routed(watch)
        copies = await JetStream(client).stream_messages("EU")
    assert len(stored) >= 1000
    assert sorted(int(one.payload) for one in copies) == sorted(int(one.payload) for one in stored)
    for number in range(10):
        of_subject = [int(one.payload) for one in copies if one.subject == f"eu.{number}"]
        assert of_subject == sorted(of_subject), "in order"
    assert ledger["received"] == sum(ledger["settled"].values())
    assert not edited or "ack_wait" in edited[0].detail
