"""Workers whose handlers fork, hang or kill their process, with a real server."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.integration.pages import get
from tests.integration.workers import CONFIG, Workers, assert_balanced, gone, publish, settled, workers
from tests.support.command import ROOT
from tests.support.eventually import eventually
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer

FORKS = {
    "os.fork": """
import os, time

def handle(message):
    if message.payload == b"fork" and not os.fork():
        os.closerange(1, 3)  # the pipes of the test
        open("child", "w").write(str(os.getpid()))
        time.sleep(60)
        os._exit(0)
    return message
""",
    "ProcessPoolExecutor": """
import os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

pool = ProcessPoolExecutor(1, mp_context=get_context("fork"))

def work():
    os.closerange(1, 3)
    open("child", "w").write(str(os.getpid()))
    time.sleep(60)

def handle(message):
    if message.payload == b"fork":
        pool.submit(work)
    return message
""",
    "a thread": """
import os, time

def handle(message):
    if message.payload == b"fork" and not os.fork():
        os.closerange(1, 3)  # the pipes of the test
        open("child", "w").write(str(os.getpid()))
        time.sleep(60)
        os._exit(0)
    return message
""",
}


def core_route(folder: Path, handler: str, *more: str) -> str:
    """The configuration with the core route alone, and this module as its handler."""
    (folder / "handlers.py").write_text(handler)
    start = CONFIG.index("[[routes]]")
    passed = CONFIG[CONFIG.index("[[routes]]", start + 1) :]
    return CONFIG[:start] + passed.replace(
        'name = "passed"', "\n".join(['name = "passed"', 'handler = "handlers:handle"', *more])
    )


@contextmanager
def ending_child(folder: Path) -> Iterator[None]:
    """End the child that a handler has forked, and told of in a file."""
    try:
        yield
    finally:
        with suppress(OSError, ValueError):
            os.kill(int((folder / "child").read_text()), signal.SIGKILL)


def child_of(folder: Path) -> int:
    path = folder / "child"
    return int(path.read_text()) if path.exists() and path.read_text() else 0


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("how", FORKS)
async def test_a_worker_that_is_killed_is_replaced_though_its_handler_has_forked(
    how: str, core_server: NatsServer, tmp_path: Path
) -> None:
    config = core_route(tmp_path, FORKS[how], *(["thread = true"] if how == "a thread" else []))
    with ending_child(tmp_path):
        async with connect(core_server.url) as client, workers(core_server, tmp_path, config) as one:
            out = await client.subscribe("out.*")
            await client.publish("in.fork", b"fork")
            await eventually(lambda: child_of(tmp_path))
            pids = await one.pids()
            parent = parent_of(child_of(tmp_path))
            (number,) = [number for number, pid in pids.items() if pid == parent]
            await one.until(lambda status: settled(status, "passed")["routed"] == 1)
            os.kill(parent, signal.SIGKILL)
            await one.run.has_logged("ROUTER_WORKER_LOST", pid=parent)
            await one.run.has_logged("ROUTER_WORKER_STARTED", worker=int(number), restarts=1)
            await one.ready()
            assert not gone(child_of(tmp_path)), "it is still there, and holds nothing"
            await publish(client, "in", 0, 400)
            await one.until(lambda status: settled(status, "passed")["routed"] == 401)
            await client.ping()
            assert len(out.waiting()) == 401, "the server gives nothing to the member that is dead"
            assert_balanced(await one.status())
            one.run.send(signal.SIGTERM)
            assert await one.run.ended() == 0


async def test_a_router_that_is_killed_leaves_no_member_in_a_child(core_server: NatsServer, tmp_path: Path) -> None:
    """Of one process, too: the next one listens at its address, and gets all messages."""
    config = core_route(tmp_path, FORKS["os.fork"]).replace("workers = 2", "workers = 1")
    with ending_child(tmp_path):
        async with connect(core_server.url) as client:
            async with workers(core_server, tmp_path, config) as one:
                await client.publish("in.fork", b"fork")
                await eventually(lambda: child_of(tmp_path))
                one.run.send(signal.SIGKILL)
                await one.run._process.wait()
                host, port = one.address
            assert not gone(child_of(tmp_path))
            out = await client.subscribe("out.*")
            again = config.replace("127.0.0.1:0", f"{host}:{port}")
            async with workers(core_server, tmp_path, again) as one:
                await publish(client, "in", 0, 200)
                await one.until(lambda status: settled(status, "passed")["routed"] == 200)
                await client.ping()
                assert len(out.waiting()) == 200
                one.run.send(signal.SIGTERM)
                assert await one.run.ended() == 0


async def test_workers_need_no_folder_for_temporary_files(core_server: NatsServer, tmp_path: Path) -> None:
    """As in a container whose root is read-only."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("import tempfile\ntempfile.tempdir = '/nowhere'\n")
    config = core_route(tmp_path, "def handle(message):\n    return message\n")
    env = {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    async with workers(core_server, tmp_path, config, env=env) as one:
        one.run.send(signal.SIGTERM)
        assert await one.run.ended() == 0


ROUTE = """
[[routes]]
name = "{name}"
from = {{ connection = "{connection}", subject = "{subject}.*", queue = "routers" }}
to = [ {{ connection = "{connection}", subject = "out.{{{{wildcard(1)}}}}" }} ]
"""


@pytest.mark.parametrize("number", [1, 2])
async def test_no_counter_goes_back_when_a_route_and_a_connection_are_removed_and_return(
    number: int, core_server: NatsServer, tmp_path: Path
) -> None:
    head = CONFIG[: CONFIG.index("[[routes]]")].replace("workers = 2", f"workers = {number}")
    stays = ROUTE.format(name="stays", connection="main", subject="stays")
    second = f'\n[connections.second]\nservers = ["{core_server.url}"]\n'
    goes = ROUTE.format(name="goes", connection="second", subject="goes")
    path = tmp_path / "router.toml"

    async with (
        connect(core_server.url) as client,
        workers(core_server, tmp_path, head + second + stays + goes) as one,
    ):

        async def reload(text: str) -> None:
            before = len(one.run.logged("ROUTER_RELOADED"))
            path.write_text(text.replace("URL", core_server.url))
            one.run.send(signal.SIGHUP)
            await eventually(lambda: len(one.run.logged("ROUTER_RELOADED")) == before + number)
            await one.ready()

        highest: dict[str, float] = {}

        async def watch_counters() -> None:
            while True:
                for name, number in (await counters(one)).items():
                    assert number >= highest.get(name, 0.0), name
                    highest[name] = number

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch_counters)
            for turn in range(1, 5):
                await publish(client, "goes", 0, 100)
                status = await one.until(partial(has_routed, 100 * turn))
                assert settled(status, "goes")["routed"] == 100 * turn
                assert_balanced(status)
                await reload(head + stays)
                if turn == 2 and number > 1:
                    os.kill((await one.pids())["1"], signal.SIGKILL)
                    await one.run.has_logged("ROUTER_WORKER_STARTED", worker=1, restarts=1)
                    await one.ready()
                await reload(head.replace("10s", "11s") + stays)
                await reload(head + second + stays + goes)
            nursery.cancel_scope.cancel()
        status = await one.status()
        assert settled(status, "goes")["routed"] == 400
        assert_balanced(status)
        one.run.send(signal.SIGTERM)
        assert await one.run.ended() == 0


def has_routed(most: int, status: dict[str, Any]) -> bool:
    return settled(status, "goes")["routed"] >= most


def has_reloaded(one: Workers, times: int) -> bool:
    return len(one.run.logged("ROUTER_RELOADED")) == times


async def counters(one: Workers) -> dict[str, float]:
    _, _, body = await get(one.address, "/metrics")
    found = {}
    for line in body.decode().splitlines():
        name, _, number = line.rpartition(" ")
        if re.match(r"\w+(_total|_bucket|_sum|_seconds_count)\b", line):
            found[name] = float(number)
    return found


async def test_the_last_of_several_reloads_reaches_a_worker_that_was_suspended_over_them(
    core_server: NatsServer, tmp_path: Path
) -> None:
    config = core_route(tmp_path, "def handle(message):\n    return message\n").replace("10s", "30s")
    path = tmp_path / "router.toml"
    async with connect(core_server.url) as client, workers(core_server, tmp_path, config) as one:
        out = await client.subscribe("*.*")
        pid = (await one.pids())["2"]
        os.kill(pid, signal.SIGSTOP)
        try:
            for number in range(1, 6):
                path.write_text(config.replace("URL", core_server.url).replace('"out.', f'"out{number}.'))
                one.run.send(signal.SIGHUP)
                await eventually(partial(has_reloaded, one, number), within=20)
            reasons = [{"worker": 2, "reason": "silent"}]
            reasons.append({"worker": 2, "reason": "still has the settings from before reload 5"})
            _, _, body = await get(one.address, "/readyz")
            assert json.loads(body)["reasons"] == reasons
        finally:
            os.kill(pid, signal.SIGCONT)
        await one.ready()
        assert (await one.pids())["2"] == pid
        await publish(client, "in", 0, 200)
        await one.until(lambda status: settled(status, "passed")["routed"] == 200)
        await client.ping()
        subjects = {message.subject.partition(".")[0] for message in out.waiting()}
        assert subjects == {"in", "out5"}
        one.run.send(signal.SIGTERM)
        assert await one.run.ended() == 0


STUCK = """
import time

def handle(message):
    if message.payload == b"stuck":
        time.sleep(3600)
    return message
"""


async def test_a_worker_that_is_stuck_is_replaced_when_a_reload_should_be_over(
    core_server: NatsServer, tmp_path: Path
) -> None:
    config = core_route(tmp_path, STUCK).replace("10s", "1s")
    path = tmp_path / "router.toml"
    async with connect(core_server.url) as client, workers(core_server, tmp_path, config) as one:
        out = await client.subscribe("*.*")
        await client.publish("in.stuck", b"stuck")
        path.write_text(config.replace("URL", core_server.url).replace('"out.', '"changed.'))
        one.run.send(signal.SIGHUP)
        lost = await one.run.has_logged("ROUTER_WORKER_LOST")
        assert "killed by the supervisor" in lost["reason"]
        assert "reload 1" in lost["reason"]
        await one.run.has_logged("ROUTER_WORKER_STARTED", restarts=1)
        await one.ready()
        await publish(client, "in", 0, 200)
        await one.until(lambda status: settled(status, "passed")["routed"] == 200)
        await client.ping()
        assert {message.subject.partition(".")[0] for message in out.waiting()} == {"in", "changed"}
        one.run.send(signal.SIGTERM)
        assert await one.run.ended() == 0


@pytest.mark.parametrize("how", ["handler", "SIGSTOP"])
async def test_a_worker_that_is_stuck_does_not_outlive_a_supervisor_that_is_killed(
    how: str, core_server: NatsServer, tmp_path: Path
) -> None:
    config = core_route(tmp_path, STUCK).replace("10s", "1s")
    async with connect(core_server.url) as client, workers(core_server, tmp_path, config) as one:
        pids = [*(await one.pids()).values()]
        try:
            if how == "SIGSTOP":
                os.kill(pids[1], signal.SIGSTOP)
            else:
                await client.publish("in.stuck", b"stuck")
                await client.ping()
            one.run.send(signal.SIGKILL)
            with trio.fail_after(15):
                while not all(map(gone, pids)):
                    await trio.sleep(0.05)
        finally:
            for pid in pids:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
