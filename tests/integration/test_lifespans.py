"""The lifespan of `router-trio run`, of its workers and of `router-trio test`."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from tests.integration.workers import CONFIG, publish, settled, workers
from tests.support.command import command, in_process, running
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer

MODULE = """
import asyncio, os, pathlib, threading, time
from contextlib import asynccontextmanager

HERE = pathlib.Path(__file__).parent

@asynccontextmanager
async def resources():
    await asyncio.sleep(0.3)
    yield {"pid": os.getpid(), "loop": asyncio.get_running_loop()}
    await asyncio.sleep(0.01)
    (HERE / f"left.{os.getpid()}").write_text("")

@asynccontextmanager
async def raises_at_the_end():
    yield
    raise OSError("no way back")

@asynccontextmanager
async def hangs_in_a_thread():
    yield
    await asyncio.to_thread(threading.Event().wait)

@asynccontextmanager
async def broken():
    raise OSError("no database")
    yield

@asynccontextmanager
async def lost():
    async def fails():
        while not (HERE / "lose").exists():
            await asyncio.sleep(0.02)
        raise ConnectionError("gone")

    async with asyncio.TaskGroup() as group:
        task = group.create_task(fails())
        yield {"pid": os.getpid(), "loop": asyncio.get_running_loop()}
        task.cancel()

async def alone(message):
    return message

async def handle(message, pool):
    await asyncio.sleep(0.001)
    assert pool["loop"] is asyncio.get_running_loop() and pool["pid"] == os.getpid()
    return message

@asynccontextmanager
async def blocks():
    yield
    time.sleep(60)
"""
ROUTE = """
[[routes]]
name = "passed"
handler = "shop:handle"
key = "subject"
concurrency = 8
from = { subject = "in.*", queue = "routers" }
to = [ { subject = "out.{{wildcard(1)}}" } ]
"""
TEST = """
[[tests]]
name = "it passes"
message = { subject = "in.1", json = 1 }
expect = [ { subject = "out.1", json = 1 } ]
"""


def configuration(lifespan: str, count: int) -> str:
    start = CONFIG[: CONFIG.index("[[routes]]")]
    router = f'[router]\nloop = "asyncio"\nlifespan = "shop:{lifespan}"'
    return start.replace("[router]", router).replace("workers = 2", f"workers = {count}") + ROUTE


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("left.*")}


@pytest.mark.parametrize("count", [1, 2])
async def test_each_process_enters_and_leaves_it(count: int, core_server: NatsServer, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(MODULE)
    config = configuration("resources", count)
    async with connect(core_server.url) as client, workers(core_server, tmp_path, config) as one:
        out = await client.subscribe("out.*")
        pids = list((await one.pids()).values()) if count > 1 else [one.run._process.pid]
        await publish(client, "in", 0, 400)
        await one.until(lambda status: settled(status, "passed")["routed"] == 400)
        await client.ping()
        assert len(out.waiting()) == 400
        one.run._process.send_signal(signal.SIGTERM)
        assert await one.run.ended() == 0
    assert left_in(tmp_path) == {f"left.{pid}" for pid in pids}


@pytest.mark.parametrize("count", [1, 2])
async def test_one_that_raises_ends_the_start_with_its_place(
    count: int, core_server: NatsServer, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(MODULE)
    path = tmp_path / "router.toml"
    path.write_text(configuration("broken", count).replace("URL", core_server.url))
    async with running("run", path, cwd=tmp_path) as run:
        assert await run.ended() == 1
    assert "Traceback" not in run.errors
    (line,) = [line for line in run.errors.splitlines() if line.startswith("router-trio: error: ")]
    assert "lifespan shop:broken raised OSError before the router has started: no database" in line
    assert f"{os.sep}shop.py:26 in broken" in line


async def test_one_that_is_lost_ends_the_router_with_its_place(core_server: NatsServer, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(MODULE)
    path = tmp_path / "router.toml"
    path.write_text(configuration("lost", 1).replace("URL", core_server.url))
    async with running("run", path, cwd=tmp_path) as run:
        await run.has_logged("ROUTER_STARTED")
        lose(tmp_path)
        assert await run.ended() == 1
    assert run.logged("ROUTER_LIFESPAN_LOST")
    assert run.logged("ROUTER_STOPPED")[0]["unsettled"] == 0
    (line,) = [line for line in run.errors.splitlines() if line.startswith("router-trio: error: ")]
    assert "lifespan shop:lost raised ConnectionError while the router was running: gone" in line
    assert line.endswith(" in fails)")
    assert "Traceback" not in run.errors


async def test_a_worker_that_has_lost_it_is_replaced_and_that_is_logged(
    core_server: NatsServer, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(MODULE)
    async with workers(core_server, tmp_path, configuration("lost", 2)) as one, connect(core_server.url) as client:
        lose(tmp_path)
        await one.run.has_logged("ROUTER_LIFESPAN_LOST")
        lost = await one.run.has_logged("ROUTER_WORKER_LOST")
        assert "lifespan shop:lost raised ConnectionError while the router was running: gone" in lost["reason"]
        lose(tmp_path, after=True)
        await one.run.has_logged("ROUTER_WORKER_STARTED", worker=lost["worker"], restarts=1)
        await one.ready()
        out = await client.subscribe("out.*")
        await publish(client, "in", 0, 100)
        await one.until(lambda status: settled(status, "passed")["routed"] == 100)
        await client.ping()
        assert len(out.waiting()) == 100
        one.run.send(signal.SIGTERM)
        assert await one.run.ended() == 0


def lose(folder: Path, *, after: bool = False) -> None:
    """Let the lifespan `lost` fail in each process, or no longer."""
    if after:
        (folder / "lose").unlink()
    else:
        (folder / "lose").touch()


@pytest.mark.parametrize("count", [1, 2])
async def test_one_that_raises_at_the_end_fails_the_command(
    count: int, core_server: NatsServer, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(MODULE)
    config = configuration("raises_at_the_end", count).replace("shop:handle", "shop:alone")
    async with workers(core_server, tmp_path, config) as one:
        one.run._process.send_signal(signal.SIGTERM)
        assert await one.run.ended() == 1
        assert "lifespan shop:raises_at_the_end raised OSError when the router ended" in one.run.errors
        assert "0 messages left unsettled" in one.run.errors


@pytest.mark.parametrize("count", [1, 2])
async def test_one_that_hangs_in_a_thread_does_not_keep_the_process_from_ending(
    count: int, core_server: NatsServer, tmp_path: Path
) -> None:
    """The interpreter waits for the threads of asyncio's pool, also after an error."""
    (tmp_path / "shop.py").write_text(MODULE)
    config = configuration("hangs_in_a_thread", count).replace("10s", "1s").replace("shop:handle", "shop:alone")
    async with workers(core_server, tmp_path, config) as one:
        one.run._process.send_signal(signal.SIGTERM)
        assert await one.run.ended() == 1
        assert "lifespan shop:hangs_in_a_thread did not end within shutdown_timeout" in one.run.errors
        assert "0 messages left unsettled" in one.run.errors
        if count == 1:  # else the supervisor may be the first to end it
            assert re.search("threads of handlers are still running: (asyncio|uvloop)_0", one.run.errors)


async def test_one_that_blocks_at_the_end_of_workers_leaves_no_message_unsettled(
    core_server: NatsServer, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(MODULE)
    config = configuration("blocks", 2).replace('loop = "asyncio"\n', "")
    config = config.replace("10s", "1s").replace("shop:handle", "shop:alone")
    async with workers(core_server, tmp_path, config) as one, connect(core_server.url) as client:
        await publish(client, "in", 0, 100)
        await one.until(lambda status: settled(status, "passed")["routed"] == 100)
        one.run._process.send_signal(signal.SIGTERM)
        assert await one.run.ended() == 1
        assert {line["unsettled"] for line in one.run.logged("ROUTER_STOPPED")} == {0}


def test_the_tests_of_a_configuration_enter_it(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(MODULE)
    path = tmp_path / "router.toml"
    path.write_text(configuration("resources", 1).replace("URL", "nats://127.0.0.1:4222") + TEST)
    done = command("test", path, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "ok      it passes\n1 passed, 0 failed\n"), done.stderr
    assert len(left_in(tmp_path)) == 1


@pytest.mark.parametrize("lifespan", ["nothing", "HERE"])
def test_a_lifespan_that_is_no_function_is_refused(lifespan: str, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(MODULE)
    path = tmp_path / "router.toml"
    path.write_text(configuration(lifespan, 1).replace("URL", "nats://127.0.0.1:4222"))
    done = in_process("check", path, cwd=tmp_path)
    assert done.returncode == 78
    assert "router.lifespan" in done.stdout + done.stderr
