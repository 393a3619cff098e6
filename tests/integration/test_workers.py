"""Several workers under one supervisor, with a real server: who gets what, what is counted, and how it all ends."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.integration.pages import get
from tests.support.command import RunningCommand, command, running
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import RawClient, connect
from tests.support.servers import NatsServer

CONFIG = """
[router]
shutdown_timeout = "10s"
workers = 2

[telemetry]
listen = "127.0.0.1:0"

[connections.main]
servers = ["URL"]

[[routes]]
name = "stored"
from = { stream = "ORDERS", durable = "router", filter = "orders.*", ack_wait = "2s" }
to = [ { subject = "stored.{{wildcard(1)}}", jetstream = true } ]

[[routes]]
name = "passed"
from = { subject = "in.*", queue = "routers" }
to = [ { subject = "out.{{wildcard(1)}}" } ]
"""


@pytest.fixture
async def streams(server: NatsServer) -> AsyncIterator[JetStream]:
    async with connect(server.url) as client:
        stored = JetStream(client)
        await stored.create_stream("ORDERS", ["orders.*"])
        await stored.create_stream("STORED", ["stored.*"])
        yield stored


class Workers:
    """A `router-trio run` with workers."""

    def __init__(self, run: RunningCommand, address: tuple[str, int]) -> None:
        self.run = run
        self.address = address

    async def status(self) -> dict[str, Any]:
        code, _, body = await get(self.address, "/status")
        assert code == 200
        status: dict[str, Any] = json.loads(body)
        return status

    async def ready(self) -> None:
        with trio.fail_after(20):
            while (await get(self.address, "/readyz"))[0] != 200:
                await trio.sleep(0.02)

    async def metric(self, name: str, **labels: str) -> float:
        _, _, body = await get(self.address, "/metrics")
        for line in body.decode().splitlines():
            if line.startswith(name) and all(f'{label}="{value}"' in line for label, value in labels.items()):
                return float(line.rpartition(" ")[2])
        raise AssertionError(f"no {name} with {labels}")

    async def until(self, is_so: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        with trio.fail_after(30):
            while not is_so(status := await self.status()):
                await trio.sleep(0.02)
        return status

    async def pids(self) -> dict[str, int]:
        return {number: one["pid"] for number, one in (await self.status())["workers"].items()}


@asynccontextmanager
async def workers(
    server: NatsServer, folder: Path, config: str = CONFIG, *arguments: str, **more: Any
) -> AsyncIterator[Workers]:
    path = folder / "router.toml"
    path.write_text(config.replace("URL", server.url))
    async with running("run", *arguments, path, cwd=folder, **more) as run:
        url = (await run.has_logged("ROUTER_STATUS_PAGE"))["url"]
        found = re.fullmatch(r"http://([\d.]+):(\d+)/", url)
        assert found is not None
        one = Workers(run, (found[1], int(found[2])))
        await one.ready()
        yield one


def assert_balanced(status: Mapping[str, Any]) -> None:
    """Each ledger adds up."""
    for ledger in status["ledger"].values():
        settled = sum(ledger["settled"].values())
        assert ledger["accepted"] == ledger["pending"] + ledger["in_flight"] + settled, ledger
    for route in status["routes"].values():
        ledger = route["ledger"]
        assert ledger["received"] == ledger["in_hand"] + sum(ledger["settled"].values()), ledger


def settled(status: Mapping[str, Any], route: str) -> dict[str, int]:
    fates: dict[str, int] = status["routes"][route]["ledger"]["settled"]
    return fates


async def publish(client: RawClient, subject: str, first: int, count: int) -> None:
    await client.publish_many([(f"{subject}.{number}", b"%d" % number) for number in range(first, first + count)])
    await client.ping()


def gone(pid: int) -> bool:
    """Return True if there is no such process, or only what its parent has not asked for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


async def test_two_workers_share_a_durable_and_a_queue_group_and_everything_comes_once(
    server: NatsServer, streams: JetStream, tmp_path: Path
) -> None:
    async with connect(server.url) as client, workers(server, tmp_path) as one:
        out = await client.subscribe("out.*")
        await client.ping()
        for first in range(0, 2000, 100):
            await publish(client, "orders", first, 100)
            await publish(client, "in", first, 100)
        status = await one.until(
            lambda status: all(settled(status, name)["routed"] >= 2000 for name in ("stored", "passed"))
        )
        assert_balanced(status)
        assert [status["routes"][name]["ledger"]["received"] for name in ("stored", "passed")] == [2000, 2000]
        assert status["ledger"]["main"]["settled"]["acked"] == 2000
        stored = [message.payload for message in await streams.stream_messages("STORED")]
        assert sorted(map(int, stored)) == list(range(2000))
        await client.ping()
        assert sorted(int(message.payload) for message in out.waiting()) == list(range(2000))
        assert await one.metric("router_messages_routed_total", route="stored") == 2000
        assert await one.metric("router_route_duration_seconds_count", route="passed") == 2000
        assert await one.metric("router_nats_connection_established_total") == 2
        assert await one.metric("router_ledger_unbalanced") == 0
        assert await one.metric("router_info") == 1
        assert {name: worker["state"] for name, worker in status["workers"].items()} == {"1": "running", "2": "running"}
        one.run.send(signal.SIGTERM)
        assert await one.run.ended() == 0
        stopped = one.run.logged("ROUTER_STOPPED")
        assert [line.get("worker") for line in stopped[:2]] in ([1, 2], [2, 1])
        assert (stopped[2].get("worker"), stopped[2]["unsettled"]) == (None, 0)
        assert stopped[2]["ledger"]["main"]["accepted"] == 4000
        by_worker = [line["ledger"]["main"]["accepted"] for line in stopped[:2]]
        assert sum(by_worker) == 4000
        assert min(by_worker) > 0, "both have taken part"
        for line in one.run.errors.splitlines():
            assert "error_code" in json.loads(line), "lines are whole"


async def test_of_a_worker_that_is_killed_nothing_is_unaccounted_for(
    server: NatsServer, streams: JetStream, tmp_path: Path
) -> None:
    async with connect(server.url) as client, workers(server, tmp_path) as one:
        out = await client.subscribe("out.*")
        await client.ping()
        sent, killed = 0, list[int]()
        for kill_at in (2000, 5000):
            while sent < kill_at:
                await publish(client, "orders", sent, 100)
                await publish(client, "in", sent, 100)
                sent += 100
            pid = (await one.pids())["1"]
            await publish(client, "orders", sent, 1000)
            await publish(client, "in", sent, 1000)
            sent += 1000
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
            await one.until(lambda status: status["workers"]["1"]["pid"] not in (None, *killed))
            await one.ready()
        status = await one.until(lambda status: settled(status, "stored")["routed"] >= sent)
        # What was redelivered to the others is settled, too.
        status = await one.until(
            lambda status: all(route["ledger"]["in_hand"] == 0 for route in status["routes"].values())
        )
        assert_balanced(status)
        assert status["workers"]["1"]["restarts"] == 2
        lost = one.run.logged("ROUTER_WORKER_LOST")
        assert [(line["level"], line["worker"], line["pid"]) for line in lost] == [("ERROR", 1, pid) for pid in killed]
        assert all(line["reason"] == "was killed by SIGKILL" for line in lost)
        assert all(0 < line["delay_ms"] <= 400 for line in lost)
        assert [line["restarts"] for line in one.run.logged("ROUTER_WORKER_STARTED") if line["worker"] == 1] == [
            0,
            1,
            2,
        ]
        # What the log says was left is what the sums say.
        fates = status["ledger"]["main"]["settled"]
        assert fates["dropped"] == sum(line["dropped"] for line in lost)
        assert settled(status, "stored")["returned"] >= sum(line["returned"] for line in lost)
        assert settled(status, "passed")["lost"] == sum(line["lost"] for line in lost)
        assert (
            await one.metric("router_nats_pending_operations_dropped_total", reason="worker_lost") == fates["dropped"]
        )
        # The stream has each message once, and acked all of them.
        stored = [message.payload for message in await streams.stream_messages("STORED")]
        assert sorted(map(int, stored)) == list(range(sent))
        info = await streams.consumer_info("ORDERS", "router")
        assert (info["ack_floor"]["stream_seq"], info["num_ack_pending"]) == (sent, 0)
        # Of core messages what was routed has come, and nothing came that was neither routed nor counted as lost.
        await client.ping()
        came = len(out.waiting())
        passed = settled(status, "passed")
        assert passed["routed"] <= came <= passed["routed"] + passed["lost"]
        one.run.send(signal.SIGTERM)
        assert await one.run.ended() == 0


async def test_a_reload_reaches_all_workers_or_none(server: NatsServer, streams: JetStream, tmp_path: Path) -> None:
    async with connect(server.url) as client, workers(server, tmp_path) as one:
        path = tmp_path / "router.toml"
        good = path.read_text()
        path.write_text(good.replace("out.{{", "OUT.{{").replace('queue = "routers"', 'queue = ""'))
        one.run.send(signal.SIGHUP)
        refused = await one.run.has_logged("ROUTER_RELOAD_REFUSED")
        assert "worker" not in refused
        path.write_text(good.replace(', queue = "routers"', ""))
        one.run.send(signal.SIGHUP)
        await eventually(lambda: len(one.run.logged("ROUTER_RELOAD_REFUSED")) == 2)
        assert "queue" in one.run.logged("ROUTER_RELOAD_REFUSED")[1]["problems"][0]
        path.write_text(good.replace("out.{{", "OUT.{{"))
        one.run.send(signal.SIGHUP)
        for number in (1, 2):
            told = await one.run.has_logged("ROUTER_RELOADED", worker=number)
            assert told["changed"] == ["route passed"]
        out = await client.subscribe("OUT.*")
        await client.ping()
        await publish(client, "in", 0, 200)
        await one.until(lambda status: settled(status, "passed")["routed"] >= 200)
        await client.ping()
        assert len(out.waiting()) == 200
        # A worker that is started later has the new settings.
        os.kill((await one.pids())["2"], signal.SIGKILL)
        await one.run.has_logged("ROUTER_WORKER_STARTED", worker=2, restarts=1)
        await one.ready()
        await publish(client, "in", 200, 200)
        await one.until(lambda status: settled(status, "passed")["routed"] >= 400)
        await client.ping()
        assert len(out.waiting()) == 200
        assert not one.run.logged("ROUTER_RESTART_NEEDED")
        one.run.send(signal.SIGTERM)
        assert await one.run.ended() == 0


async def test_workers_end_when_their_supervisor_is_killed(
    server: NatsServer, streams: JetStream, tmp_path: Path
) -> None:
    async with workers(server, tmp_path) as one:
        pids = [*(await one.pids()).values()]
        one.run.send(signal.SIGKILL)
        assert await one.run.ended() == -signal.SIGKILL  # with all that writes to its pipes
        await eventually(lambda: all(map(gone, pids)))
        assert {line["worker"] for line in one.run.logged("ROUTER_STOPPED")} == {1, 2}


async def test_a_worker_that_hangs_holds_up_no_page_and_is_not_ready(
    server: NatsServer, streams: JetStream, tmp_path: Path
) -> None:
    async with connect(server.url) as client, workers(server, tmp_path) as one:
        await publish(client, "orders", 0, 100)
        await one.until(lambda status: settled(status, "stored")["routed"] == 100)
        pid = (await one.pids())["2"]
        os.kill(pid, signal.SIGSTOP)
        try:
            with trio.fail_after(20):
                while (answer := await get(one.address, "/readyz"))[0] == 200:
                    await trio.sleep(0.05)
            assert json.loads(answer[2])["reasons"] == [{"worker": 2, "reason": "silent"}]
            with trio.fail_after(5):
                status = await one.status()
                assert await one.metric("router_messages_received_total", route="stored") == 100
            assert status["workers"]["2"]["state"] == "silent"
            assert_balanced(status)
        finally:
            os.kill(pid, signal.SIGCONT)
        await one.ready()
        one.run.send(signal.SIGTERM)
        assert await one.run.ended() == 0


async def test_signals_to_the_whole_group_drain_all(server: NatsServer, streams: JetStream, tmp_path: Path) -> None:
    """As Ctrl-C at a terminal, and as systemd, which ends all processes of a service."""
    async with workers(server, tmp_path, CONFIG, group=True) as one:
        one.run.send(signal.SIGINT)
        assert await one.run.ended() == 0
        assert not one.run.logged("ROUTER_WORKER_LOST")
        assert len(one.run.logged("ROUTER_STOPPED")) == 3


async def test_messages_left_unsettled_make_the_exit_code(server: NatsServer, tmp_path: Path) -> None:
    config = CONFIG.replace('shutdown_timeout = "10s"', 'shutdown_timeout = "1s"')
    start = config.index("[[routes]]")
    end = config.index("[[routes]]", start + 1)
    (tmp_path / "slow.py").write_text("import trio\n\nasync def handle(message):\n    await trio.sleep_forever()\n")
    routes = config[end:].replace('name = "passed"', 'name = "passed"\nhandler = "slow:handle"')
    async with connect(server.url) as client, workers(server, tmp_path, config[:start] + routes) as one:
        await publish(client, "in", 0, 10)
        await one.until(lambda status: status["routes"]["passed"]["ledger"]["received"] == 10)
        one.run.send(signal.SIGTERM)
        assert await one.run.ended() == 1
        (last,) = [line for line in one.run.logged("ROUTER_STOPPED") if "worker" not in line]
        assert (last["level"], last["unsettled"]) == ("WARN", 10)


async def test_a_server_that_refuses_ends_all_with_the_reason(tmp_path: Path, server: NatsServer) -> None:
    config = CONFIG.replace('servers = ["URL"]', 'servers = ["URL"]\ntoken = "wrong"')
    await server.reload('authorization { token: "right" }\n')
    path = tmp_path / "router.toml"
    path.write_text(config.replace("URL", server.url))
    async with running("run", path, cwd=tmp_path) as run:
        assert await run.ended() == 1
        assert "router-trio: error: " in run.errors
        assert "Traceback" not in run.errors


def refused(tmp_path: Path, config: str, *arguments: str) -> list[str]:
    path = tmp_path / "router.toml"
    path.write_text(config.replace("URL", "nats://127.0.0.1:4222"))
    done = command(*arguments, path, cwd=tmp_path)
    assert done.returncode == 78
    return (done.stdout + done.stderr).splitlines()


WITHOUT_QUEUE = CONFIG.replace(', queue = "routers"', "")


def test_a_core_route_without_a_queue_is_refused_and_the_cure_said(tmp_path: Path) -> None:
    for line in (
        *refused(tmp_path, WITHOUT_QUEUE, "check"),
        *refused(tmp_path, WITHOUT_QUEUE, "run"),
        *refused(tmp_path, WITHOUT_QUEUE.replace("workers = 2\n", ""), "run", "--workers", "2"),
    ):
        assert "routes[1].from.queue: missing; each of 2 workers would route every message of 'in.*'" in line
        assert "such as queue = 'routers'" in line


def test_standby_is_refused(tmp_path: Path) -> None:
    config = CONFIG.replace('durable = "router"', 'durable = "router", standby = true')
    (line,) = refused(tmp_path, config, "check")
    assert "routes[0].from.standby: gives all messages to one process, so 2 workers can't share them" in line


def test_one_worker_is_one_process(tmp_path: Path) -> None:
    path = tmp_path / "router.toml"
    path.write_text(WITHOUT_QUEUE.replace("URL", "nats://127.0.0.1:4222").replace("workers = 2", "workers = 1"))
    assert command("check", path, cwd=tmp_path).returncode == 0
