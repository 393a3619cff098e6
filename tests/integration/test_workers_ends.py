"""The end of workers and their supervisor, and causes that keep them from starting."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.integration.test_systemd_notify import manager
from tests.integration.workers import CONFIG, assert_balanced, gone, publish, settled, workers
from tests.support.command import COMMAND, command, running
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
        assert await one.run.ended() == -signal.SIGKILL  # with everything that writes to its pipes
        await eventually(lambda: all(map(gone, pids)))
        assert {line["worker"] for line in one.run.logged("ROUTER_STOPPED")} == {1, 2}


async def test_signals_to_the_whole_group_drain_all(server: NatsServer, streams: JetStream, tmp_path: Path) -> None:
    """As Ctrl-C at a terminal does, and systemd, which signals all processes of a service."""
    async with workers(server, tmp_path, CONFIG, group=True) as one:
        one.run.send(signal.SIGINT)
        assert await one.run.ended() == 0
        assert not one.run.logged("ROUTER_WORKER_LOST")
        assert len(one.run.logged("ROUTER_STOPPED")) == 3


async def test_messages_left_unsettled_set_the_exit_code(server: NatsServer, tmp_path: Path) -> None:
    config = with_handler(tmp_path, "await trio.sleep_forever()", "1s")
    async with connect(server.url) as client, workers(server, tmp_path, config) as one:
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


def test_a_core_route_without_a_queue_is_refused_with_a_remedy(tmp_path: Path) -> None:
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


async def test_one_worker_is_one_process(server: NatsServer, streams: JetStream, tmp_path: Path) -> None:
    """This holds even for a file whose own number would be refused."""
    path = tmp_path / "router.toml"
    path.write_text(WITHOUT_QUEUE.replace("URL", server.url).replace("workers = 2", "workers = 1"))
    assert command("check", path, cwd=tmp_path).returncode == 0
    path.write_text(WITHOUT_QUEUE.replace("URL", server.url))
    async with running("run", "--workers", "1", path, cwd=tmp_path) as run:
        assert "worker" not in await run.has_logged("ROUTER_STARTED")
        run.send(signal.SIGTERM)
        assert await run.ended() == 0


def with_handler(folder: Path, body: str, timeout: str) -> str:
    """Return the core route alone, with a handler."""
    (folder / "slow.py").write_text(f"import trio\n\nasync def handle(message):\n    {body}\n")
    start = CONFIG.index("[[routes]]")
    passed = CONFIG[CONFIG.index("[[routes]]", start + 1) :]
    head = CONFIG[:start].replace('shutdown_timeout = "10s"', f'shutdown_timeout = "{timeout}"')
    return head + passed.replace('name = "passed"', 'name = "passed"\nhandler = "slow:handle"')


async def test_a_second_signal_cuts_the_drain_short(server: NatsServer, tmp_path: Path) -> None:
    config = with_handler(tmp_path, "await trio.sleep_forever()", "1h")
    async with connect(server.url) as client, workers(server, tmp_path, config) as one:
        await publish(client, "in", 0, 10)
        await one.until(lambda status: status["routes"]["passed"]["ledger"]["received"] == 10)
        one.run.send(signal.SIGTERM)
        for number in (1, 2):
            await one.run.has_logged("ROUTER_DRAINING", worker=number)
        one.run.send(signal.SIGTERM)
        assert await one.run.ended() == 1
        (last,) = [line for line in one.run.logged("ROUTER_STOPPED") if "worker" not in line]
        assert last["unsettled"] == 10


async def test_a_worker_that_hangs_is_killed_at_the_deadline_of_the_drain(
    server: NatsServer, streams: JetStream, tmp_path: Path
) -> None:
    config = CONFIG.replace('shutdown_timeout = "10s"', 'shutdown_timeout = "500ms"')
    async with workers(server, tmp_path, config) as one:
        pid = (await one.pids())["1"]
        os.kill(pid, signal.SIGSTOP)
        one.run.send(signal.SIGTERM)
        assert await one.run.ended() == 1
        assert gone(pid)
        assert {line.get("worker") for line in one.run.logged("ROUTER_STOPPED")} == {2, None}


async def test_a_terminated_worker_drains_and_is_replaced(
    server: NatsServer, streams: JetStream, tmp_path: Path
) -> None:
    async with connect(server.url) as client, workers(server, tmp_path) as one:
        await publish(client, "in", 0, 100)
        await one.until(lambda status: settled(status, "passed")["routed"] == 100)
        pid = (await one.pids())["2"]
        os.kill(pid, signal.SIGTERM)
        lost = await one.run.has_logged("ROUTER_WORKER_LOST", worker=2, pid=pid)
        assert (lost["reason"], lost["dropped"], lost["returned"], lost["lost"]) == ("has exited with 0", 0, 0, 0)
        await one.run.has_logged("ROUTER_WORKER_STARTED", worker=2, restarts=1)
        await one.ready()
        status = await one.status()
        assert settled(status, "passed")["routed"] == 100
        assert_balanced(status)
        one.run.send(signal.SIGTERM)
        assert await one.run.ended() == 0


def environment_of(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


async def test_systemd_is_notified_of_all_workers_by_their_supervisor(
    server: NatsServer, streams: JetStream, tmp_path: Path
) -> None:
    address = str(tmp_path / "notify")
    env = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "200000"}
    async with manager(address) as systemd, workers(server, tmp_path, env=env) as one:
        await systemd.until("READY=1")
        assert "STATUS=routing: 2 of 2 routes" in systemd.received
        assert any(received.startswith("STATUS=waiting: worker ") for received in systemd.received)
        await systemd.until("WATCHDOG=1")
        for pid in (await one.pids()).values():
            environ = environment_of(pid)
            assert not [one for one in environ if one.startswith((b"NOTIFY_SOCKET=", b"WATCHDOG_"))]
        one.run.send(signal.SIGTERM)
        await systemd.until("STOPPING=1")
        assert await one.run.ended() == 0
    assert systemd.received.count("READY=1") == 1


async def test_a_configuration_from_standard_input_is_read_once_for_all(
    server: NatsServer, streams: JetStream, tmp_path: Path
) -> None:
    path = tmp_path / "router.toml"
    path.write_text(CONFIG.replace("URL", server.url).replace("workers = 2\n", ""))
    piped = ["sh", "-c", f'cat {path} | exec "$@"', "sh", *COMMAND]
    async with running("run", "--workers", "3", "-", cwd=tmp_path, python=piped, group=True) as run:
        for number in (1, 2, 3):
            await run.has_logged("ROUTER_WORKER_STARTED", worker=number)
        await run.has_logged("ROUTER_STARTED", name="router-trio")
        run.send(signal.SIGTERM)
        await run.ended()
    assert [line["unsettled"] for line in run.logged("ROUTER_STOPPED")] == [0, 0, 0, 0]


async def test_fault_injection_is_refused_with_workers(tmp_path: Path) -> None:
    path = tmp_path / "router.toml"
    path.write_text(CONFIG.replace("URL", "nats://127.0.0.1:4222"))
    done = command("run", "--enable-fault-injection", path, cwd=tmp_path)
    assert done.returncode == 2
    assert "--enable-fault-injection works with one process only; add --workers 1" in done.stderr


async def test_an_address_in_use_is_reported_before_any_worker_starts(tmp_path: Path) -> None:
    path = tmp_path / "router.toml"
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        port = listener.socket.getsockname()[1]
        taken = CONFIG.replace("URL", "nats://127.0.0.1:4222").replace("127.0.0.1:0", f"127.0.0.1:{port}")
        path.write_text(taken)
        async with running("run", path, cwd=tmp_path) as run:
            assert await run.ended() == 1
    assert "another process uses it" in run.errors
    assert "ROUTER" not in run.errors
