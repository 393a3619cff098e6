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
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer
from tests.support.watch import until_stored

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
    """Return the configuration with the core route alone, and this module as its handler."""
    (folder / "handlers.py").write_text(handler)
    start = CONFIG.index("[[routes]]")
    passed = CONFIG[CONFIG.index("[[routes]]", start + 1) :]
    return CONFIG[:start] + passed.replace(
        'name = "passed"', "\n".join(['name = "passed"', 'handler = "handlers:handle"', *more])
    )


@contextmanager
def ending_child(folder: Path) -> Iterator[None]:
    """End the child that a handler has forked, and recorded in a file."""
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
async def test_a_killed_worker_is_replaced_even_if_its_handler_has_forked(
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


async def test_a_killed_router_leaves_no_queue_member_in_a_child(core_server: NatsServer, tmp_path: Path) -> None:
    """With one process, too: the next one listens at its address, and gets all messages."""
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
async def test_no_counter_decreases_when_a_route_and_a_connection_are_removed_and_return(
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
            reasons.append({"worker": 2, "reason": "still runs with the settings from before reload 5"})
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


async def test_a_stuck_worker_is_replaced_at_the_deadline_of_a_reload(core_server: NatsServer, tmp_path: Path) -> None:
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
async def test_a_stuck_worker_does_not_outlive_a_killed_supervisor(
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


DEADLY = {
    "segmentation fault": ("import ctypes", "ctypes.string_at(0)"),
    "os._exit": ("import os", "os._exit(7)"),
    "SIGKILL": ("import os", "os.kill(os.getpid(), 9)"),
}
HANDLERS = {
    "def": "def handle(message):\n    if message.payload == b'deadly':\n        {end}\n    return message\n",
    "async def": (
        "import trio\n\nasync def handle(message):\n    await trio.sleep(0.005)\n"
        "    if message.payload == b'deadly':\n        {end}\n    await trio.sleep(0.005)\n    return message\n"
    ),
}
HANDLERS["thread"] = (
    HANDLERS["def"].replace("    if", "    time.sleep(0.002)\n    if").replace("def", "import time\n\ndef", 1)
)


def stream_route(folder: Path, handler: str, *more: str) -> str:
    """Return the configuration with the route from a stream alone, and this module as its handler."""
    (folder / "handlers.py").write_text(handler)
    config = CONFIG[: CONFIG.rindex("[[routes]]")]
    return (
        config.replace('"2s"', '"1s"').replace('name = "stored"', 'name = "stored"\nhandler = "handlers:handle"')
        + "\n".join(more)
        + "\n"
    )


@pytest.mark.timeout(150)  # five generations of a worker, one after the other
@pytest.mark.parametrize(("how", "end"), [*zip(HANDLERS, DEADLY, strict=True)])
async def test_a_message_that_ends_processes_is_named_and_given_up_and_the_others_pass(
    how: str, end: str, server: NatsServer, tmp_path: Path
) -> None:
    imports, body = DEADLY[end]
    config = stream_route(
        tmp_path,
        imports + "\n" + HANDLERS[how].format(end=body),
        "[routes.retry]",
        "attempts = 2",
        "[routes.dead_letter]",
        'subject = "dead.{{wildcard(1)}}"',
    )
    if how != "def":
        key = 'name = "stored"\nkey = "subject"\nconcurrency = 8'
        config = config.replace('name = "stored"', key + ("\nthread = true" if how == "thread" else ""))
    async with connect(server.url) as client:
        stored = JetStream(client)
        await stored.create_stream("ORDERS", ["orders.*"])
        await stored.create_stream("STORED", ["stored.*"])
        await stored.create_stream("DEAD", ["dead.*"])
        async with workers(server, tmp_path, config) as one:
            for number in range(200):
                await client.publish(f"orders.{number}", b"deadly" if number in (50, 150) else b"%d" % number)
            await client.ping()
            await one.until(lambda status: settled(status, "stored")["dead_lettered"] == 2, within=90)
            # What an ended process had is in no hand until it is delivered again.
            await until_stored(stored, "STORED", 198)
            status = await one.until(lambda status: status["routes"]["stored"]["ledger"]["in_hand"] == 0)
            assert_balanced(status)
            good = {int(message.payload) for message in await stored.stream_messages("STORED")}
            assert good == set(range(200)) - {50, 150}
            assert {message.subject for message in await stored.stream_messages("DEAD")} == {"dead.50", "dead.150"}
            named = one.run.logged("ROUTER_WORKER_LOST_IN_HANDLER")
            assert {(line["stream"], line["route"]) for line in named} == {("ORDERS", "stored")}
            deadly = {("orders.50", 51, 2), ("orders.150", 151, 2)}
            assert {
                (line["subject"], line["sequence"], line["deaths"]) for line in named if line["deaths"] == 2
            } == deadly
            most = 4 if how == "def" else 8  # with several in a handler none is counted
            assert 4 <= len(one.run.logged("ROUTER_WORKER_LOST")) <= most
            info = await stored.consumer_info("ORDERS", "router")
            assert (info["ack_floor"]["stream_seq"], info["num_ack_pending"]) == (200, 0)
            one.run.send(signal.SIGTERM)
            assert await one.run.ended() == 0


async def test_a_message_that_ends_processes_stays_in_its_stream_with_unlimited_attempts(
    server: NatsServer, tmp_path: Path
) -> None:
    config = stream_route(tmp_path, "import os\n" + HANDLERS["def"].format(end="os.abort()"))
    async with connect(server.url) as client:
        stored = JetStream(client)
        await stored.create_stream("ORDERS", ["orders.*"])
        await stored.create_stream("STORED", ["stored.*"])
        async with workers(server, tmp_path, config) as one:
            for number in range(100):
                await client.publish(f"orders.{number}", b"deadly" if number == 50 else b"%d" % number)
            await client.ping()
            await one.run.has_logged("ROUTE_MESSAGE_FAILED", error_type="HandlerEndedProcesses", sequence=51)
            await eventually(partial(has_stored, stored, 99))
            assert len(one.run.logged("ROUTER_WORKER_LOST")) == 3
            await eventually(partial(has_pending, stored, 1))
            one.run.send(signal.SIGTERM)
            await one.run.ended()


async def test_a_message_of_a_recreated_stream_is_not_given_up_for_an_earlier_one(
    server: NatsServer, tmp_path: Path
) -> None:
    """It has the subject and the sequence of a message that ended processes."""
    more = ["[routes.retry]", "attempts = 1", "[routes.dead_letter]", 'subject = "dead.{{wildcard(1)}}"']
    config = stream_route(tmp_path, "import os\n" + HANDLERS["def"].format(end="os.abort()"), *more)
    async with connect(server.url) as client:
        stored = JetStream(client)
        for name in ("orders", "stored", "dead"):
            await stored.create_stream(name.upper(), [f"{name}.*"])
        async with workers(server, tmp_path, config) as one:
            await client.publish("orders.7", b"deadly")
            await one.until(lambda status: settled(status, "stored")["dead_lettered"] == 1)
            await stored.delete_stream("ORDERS")
            await stored.create_stream("ORDERS", ["orders.*"])
            await stored.publish("orders.7", b"good")
            await eventually(partial(has_stored, stored, 1), 20)
            assert [message.payload for message in await stored.stream_messages("DEAD")] == [b"deadly"]
            one.run.send(signal.SIGTERM)
            await one.run.ended()


async def has_pending(stored: JetStream, count: int) -> bool:
    return bool((await stored.consumer_info("ORDERS", "router"))["num_ack_pending"] == count)


async def has_stored(stored: JetStream, count: int) -> bool:
    return len(await stored.stream_messages("STORED")) == count


async def test_a_core_message_that_ends_its_process_is_named(core_server: NatsServer, tmp_path: Path) -> None:
    config = core_route(tmp_path, "import os\n" + HANDLERS["def"].format(end="os.abort()"))
    async with connect(core_server.url) as client, workers(core_server, tmp_path, config) as one:
        await client.publish("in.deadly", b"deadly")
        named = await one.run.has_logged("ROUTER_WORKER_LOST_IN_HANDLER")
        assert (named["route"], named["subject"], named.get("sequence")) == ("passed", "in.deadly", None)
        await one.ready()
        await publish(client, "in", 0, 100)
        await one.until(lambda status: settled(status, "passed")["routed"] == 100)
        one.run.send(signal.SIGTERM)
        assert await one.run.ended() == 0
