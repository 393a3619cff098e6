"""Concurrent handler calls in the command: from a file, on a real server, with threads."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.support.command import command, running
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer

HANDLERS = """
import threading
import time

lock = threading.Lock()
at_work = []
most = 0


def slowly(message):
    global most
    key = message.headers["key"]
    with lock:
        assert key not in at_work
        at_work.append(key)
        most = max(most, len(at_work))
    time.sleep(0.2)
    with lock:
        at_work.remove(key)
    return message.replace(payload=message.payload + b" of %d" % most)


async def waits(message):
    return message
"""


def configuration(directory: Path, url: str, source: str, **more: str) -> Path:
    """Write a configuration with a route through a handler, and further lines."""
    (directory / "work.py").write_text(HANDLERS)
    path = directory / "router.toml"
    lines = "\n".join(f"{key} = {value}" for key, value in {"handler": '"work:slowly"', **more}.items())
    path.write_text(f"""
[telemetry]
listen = ""
[connections.main]
servers = ["{url}"]
[[routes]]
name = "route"
{lines}
from = {{ {source} }}
to = [{{ subject = "out.x", jetstream = true }}]
""")
    return path


@pytest.mark.parametrize("source", ['subject = "in.*"', 'stream = "SOURCE", durable = "router", filter = "in.*"'])
async def test_blocking_handlers_run_concurrently_and_in_order_of_each_key(
    server: NatsServer, tmp_path: Path, source: str
) -> None:
    configuration(tmp_path, server.url, source, key="'headers.key'", concurrency="3", thread="true")
    async with connect(server.url) as client:
        stream = JetStream(client)
        await stream.create_stream("SOURCE", ["in.*"])
        await stream.create_stream("SINK", ["out.*"])
        async with running("run", "router.toml", cwd=tmp_path) as process:
            await process.has_logged("ROUTE_READY")
            for number in range(12):
                await client.publish("in.x", b"%d" % number, [("key", f"k{number % 4}")])

            async def all_there() -> bool:
                return bool((await stream.stream_info("SINK"))["state"]["messages"] == 12)

            await eventually(all_there, 20)
        stored = await stream.stream_messages("SINK")
        for key in range(4):
            of_key = [one.payload.partition(b" of ")[0] for one in stored if one.header("key") == f"k{key}"]
            assert of_key == [b"%d" % number for number in (key, key + 4, key + 8)]
        assert max(int(one.payload.partition(b" of ")[2]) for one in stored) == 3


async def test_the_end_waits_for_a_call_in_a_thread_and_routes_its_message(server: NatsServer, tmp_path: Path) -> None:
    source = 'stream = "SOURCE", durable = "router", filter = "in.*"'
    path = configuration(tmp_path, server.url, source, thread="true")
    path.write_text('[router]\nshutdown_timeout = "0s"\n' + path.read_text())
    (tmp_path / "work.py").write_text(HANDLERS.replace("time.sleep(0.2)", 'print("begun", flush=True); time.sleep(2)'))
    async with connect(server.url) as client:
        stream = JetStream(client)
        await stream.create_stream("SOURCE", ["in.*"])
        await stream.create_stream("SINK", ["out.*"])
        await client.publish("in.x", b"1", [("key", "k")])
        async with running("run", "router.toml", cwd=tmp_path) as process:
            await process.has_printed("begun")
            process.send(signal.SIGTERM)
            await process.has_logged("ROUTER_STOPPED")
        assert await stream.stream_messages("SINK") == []
        (tmp_path / "work.py").write_text(HANDLERS)
        async with running("run", "router.toml", cwd=tmp_path):

            async def there() -> bool:
                return bool((await stream.stream_info("SINK"))["state"]["messages"] == 1)

            await eventually(there, 20)


def test_check_shows_the_promised_order_and_refuses_a_useless_thread(tmp_path: Path) -> None:
    source = 'stream = "S", durable = "d"'
    path = configuration(tmp_path, "nats://127.0.0.1:4222", source, key="'body.id'", concurrency="8")
    done = command("check", path.name, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == (
        "router.toml: route route: at least once; in order for each body.id within one process; "
        "up to 8 concurrent handler calls"
    )
    path.write_text(path.read_text().replace("work:slowly", "work:waits").replace("concurrency = 8", "thread = true"))
    done = command("check", path.name, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (
        78,
        "router.toml: routes[0].thread: is for a plain def that blocks, and the handler is async: it waits without a "
        "thread; remove it (line 10, route 'route')\n",
    )
    path.write_text(path.read_text().replace('handler = "work:waits"\n', ""))
    done = command("check", path.name, cwd=tmp_path)
    assert done.stdout == (
        "router.toml: routes[0].thread: calls a handler, and the route has none; name a handler, or remove it "
        "(line 9, route 'route')\n"
    )
