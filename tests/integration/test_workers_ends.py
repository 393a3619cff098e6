"""How workers and their supervisor end, and what keeps them from beginning."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.workers import CONFIG, gone, publish, workers
from tests.support.command import command, running
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer


@pytest.fixture
async def streams(server: NatsServer) -> AsyncIterator[JetStream]:
    async with connect(server.url) as client:
        stored = JetStream(client)
        await stored.create_stream("ORDERS", ["orders.*"])
        await stored.create_stream("STORED", ["stored.*"])
        yield stored


WITHOUT_QUEUE = CONFIG.replace(', queue = "routers"', "")


async def test_workers_end_when_their_supervisor_is_killed(
    server: NatsServer, streams: JetStream, tmp_path: Path
) -> None:
    async with workers(server, tmp_path) as one:
        pids = [*(await one.pids()).values()]
        one.run.send(signal.SIGKILL)
        assert await one.run.ended() == -signal.SIGKILL  # with all that writes to its pipes
        await eventually(lambda: all(map(gone, pids)))
        assert {line["worker"] for line in one.run.logged("ROUTER_STOPPED")} == {1, 2}


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
