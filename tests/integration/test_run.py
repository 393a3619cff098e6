"""`router-trio run` and `demo` as processes, against real servers: what they do, and how they fail."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trio

from router_trio.embedded import HOST
from router_trio.router.garbage_collection import YOUNG_OBJECTS
from tests.integration.running import ROUTE, Write, writing
from tests.support.command import running
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import RawNatsError, connect
from tests.support.servers import NatsServer

URL = r"^nats://router:[A-Za-z0-9_-]{32}@127\.0\.0\.1:\d+\n"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return writing(tmp_path)


# --- it routes, and ends on a signal ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_routes_until_a_signal_and_drains(
    core_server: NatsServer, write: Write, number: signal.Signals
) -> None:
    config = write(core_server.url)
    async with running("run", config, cwd=config.parent) as run, connect(core_server.url) as client:
        await run.has_logged("ROUTER_STARTED")
        arrived = await client.subscribe("eu.*")
        await client.ping()
        await client.publish("orders.7", b"hello")
        message = await arrived.next()
        assert (message.subject, message.payload) == ("eu.7", b"hello")
        run.send(number)
        assert await run.ended() == 0
        (stopped,) = run.logged("ROUTER_STOPPED")
        assert stopped["unsettled"] == 0
        assert stopped["ledger"]["main"]["settled"]["fenced"] == 1
        assert run.output == ""


async def test_garbage_is_collected_once_it_runs(core_server: NatsServer, write: Write) -> None:
    config = write(core_server.url, rest=ROUTE.replace("from =", 'handler = "looking:look"\nfrom ='))
    config.with_name("looking.py").write_text(
        "import gc\n"
        "def look(message):\n"
        "    return message.replace(payload=b'%d %d' % (gc.isenabled(), gc.get_threshold()[0]))\n"
    )
    async with running("run", config, cwd=config.parent) as run, connect(core_server.url) as client:
        await run.has_logged("ROUTER_STARTED")
        arrived = await client.subscribe("eu.*")
        await client.ping()
        await client.publish("orders.7", b"is it?")
        assert (await arrived.next()).payload == b"1 %d" % YOUNG_OBJECTS
        run.send(signal.SIGTERM)
        assert await run.ended() == 0


async def test_the_configuration_is_router_toml_by_default(core_server: NatsServer, write: Write) -> None:
    config = write(core_server.url)
    async with running("run", cwd=config.parent) as run:
        await run.has_logged("ROUTER_STARTED")
        run.send(signal.SIGTERM)
        assert await run.ended() == 0


async def test_an_embedded_server_is_printed_used_and_stopped(write: Write) -> None:
    config = write()
    async with running("run", config, "--embedded-nats", cwd=config.parent) as run:
        url = (await run.has_printed(URL))[0].strip()
        pid = int((await run.has_printed(r"\Anats://.+\nnats-server: pid (\d+)\n"))[1])
        await run.has_logged("ROUTER_STARTED")
        async with connect(url) as client:
            assert client.info["jetstream"] is True
            if sys.platform == "linux":
                command_line = await trio.Path(f"/proc/{pid}/cmdline").read_bytes()
                assert command_line.partition(b"\0")[0].endswith(b"nats-server")
            arrived = await client.subscribe("eu.*")
            await client.ping()
            await client.publish("orders.7", b"hello")
            assert (await arrived.next()).subject == "eu.7"
            # As Ctrl-C in a terminal does: the process group. The drain needs the server for a while yet.
            run.send(signal.SIGINT)
            assert await run.ended() == 0
        assert run.logged("NATS_CONNECTION_LOST") == []
    with pytest.raises(OSError, match="connect"):
        await trio.open_tcp_stream(HOST, int(url.rpartition(":")[2]))


async def test_an_embedded_server_admits_only_clients_with_its_url(write: Write) -> None:
    config = write(connection='user = "ann"\npassword = "of another server"\n')
    async with running("run", config, "--embedded-nats", cwd=config.parent) as run:
        url = (await run.has_printed(URL))[0].strip()
        await run.has_logged("ROUTER_STARTED")
        await run.has_logged("ROUTE_READY")
        where = f"nats://{HOST}:{url.rpartition(':')[2]}"
        with pytest.raises(RawNatsError, match="Authorization Violation"):
            async with connect(where):
                pass
        with pytest.raises(RawNatsError, match="Authorization Violation"):
            async with connect(where, user="router", password="guessed"):
                pass
        async with connect(url):
            pass
        run.send(signal.SIGTERM)
        assert await run.ended() == 0
    password = urlsplit(url).password
    assert password
    assert password not in run.errors


async def test_an_embedded_server_that_is_killed_is_restarted(write: Write) -> None:
    config = write()
    async with running("run", config, "--embedded-nats", cwd=config.parent) as run:
        url = (await run.has_printed(URL))[0].strip()
        pid = int((await run.has_printed(r"nats-server: pid (\d+)\n"))[1])
        await run.has_logged("ROUTE_READY")
        os.kill(pid, signal.SIGKILL)
        await run.has_logged("ROUTER_SERVER_LOST", level="ERROR", reason="was killed by SIGKILL")
        await run.has_logged("ROUTER_SERVER_RESTARTED")
        await run.has_logged("NATS_CONNECTION_RESTORED")
        await eventually(lambda: len(run.logged("ROUTE_READY")) == 2)
        async with connect(url) as client:
            arrived = await client.subscribe("eu.*")
            await client.ping()
            await client.publish("orders.7", b"hello")
            assert (await arrived.next()).subject == "eu.7"
        run.send(signal.SIGTERM)
        assert await run.ended() == 0


async def test_a_killed_router_finds_its_streams_and_its_port_again(write: Write) -> None:
    config, urls = write(), []
    for last in (1, 2):
        async with running("run", config, "--embedded-nats", "--data", "site", cwd=config.parent) as run:
            urls.append((await run.has_printed(URL))[0].strip())
            await run.has_logged("ROUTER_STARTED")
            async with connect(urls[-1]) as client:
                if last == 1:
                    await JetStream(client).create_stream("S", ["s"])
                assert (await JetStream(client).publish("s"))["seq"] == last
            run.send(signal.SIGKILL)
            await run.ended()
    assert urls[0] == urls[1] == config.with_name("site").joinpath("url").read_text().strip()


async def test_an_unused_embedded_server_causes_a_warning(core_server: NatsServer, write: Write) -> None:
    config = write(core_server.url)
    async with running("run", config, "--embedded-nats", cwd=config.parent) as run:
        line = await run.has_logged("ROUTER_SETTING_IGNORED", key="--embedded-nats", level="WARN")
        assert line["message"].startswith("--embedded-nats has no effect: every connection has servers")
        run.send(signal.SIGTERM)
        assert await run.ended() == 0


async def test_an_embedded_server_is_for_connections_without_servers(core_server: NatsServer, write: Write) -> None:
    other = f'[connections.other]\nservers = ["{core_server.url}"]\n'
    config = write(rest=other + ROUTE.replace('to = [ { connection = "main"', 'to = [ { connection = "other"'))
    async with running("run", config, "--embedded-nats", cwd=config.parent) as run, connect(core_server.url) as client:
        url = (await run.has_printed(URL))[0].strip()
        await run.has_logged("ROUTER_STARTED")
        arrived = await client.subscribe("eu.*")
        await client.ping()
        async with connect(url) as publisher:
            await publisher.publish("orders.7", b"hello")
            assert (await arrived.next()).subject == "eu.7"
        run.send(signal.SIGTERM)
        assert await run.ended() == 0


def messages_that_wait(run_on: str, write: Write, shutdown_timeout: str) -> Path:
    """Return a configuration whose destination is away: routed messages wait."""
    with socket.socket() as nobody:
        nobody.bind((HOST, 0))
        away = f'[connections.away]\nservers = ["nats://{HOST}:{nobody.getsockname()[1]}"]\n'
    config = write(run_on, rest=away + ROUTE.replace('to = [ { connection = "main"', 'to = [ { connection = "away"'))
    text = config.read_text().replace('shutdown_timeout = "5s"', f'shutdown_timeout = "{shutdown_timeout}"')
    config.write_text(text)
    return config


async def test_messages_left_at_the_deadline_make_the_exit_code_1(core_server: NatsServer, write: Write) -> None:
    config = messages_that_wait(core_server.url, write, "300ms")
    async with running("run", config, cwd=config.parent) as run, connect(core_server.url) as client:
        await run.has_logged("ROUTER_STARTED")
        await client.publish("orders.7", b"hello")
        await run.has_logged("NATS_PUBLISH_QUEUED", connection="away")
        run.send(signal.SIGTERM)
        assert await run.ended() == 1
        (stopped,) = run.logged("ROUTER_STOPPED")
        assert (stopped["unsettled"], stopped["level"]) == (1, "WARN")
        assert stopped["ledger"]["away"]["settled"]["dropped"] == 1


async def test_a_second_signal_cuts_the_drain_short(core_server: NatsServer, write: Write) -> None:
    config = messages_that_wait(core_server.url, write, "10m")
    async with running("run", config, cwd=config.parent) as run, connect(core_server.url) as client:
        await run.has_logged("ROUTER_STARTED")
        await client.publish("orders.7", b"hello")
        await run.has_logged("NATS_PUBLISH_QUEUED", connection="away")
        run.send(signal.SIGTERM)
        await run.has_logged("ROUTER_DRAINING")
        run.send(signal.SIGTERM)
        assert await run.ended() == 1
        (stopped,) = run.logged("ROUTER_STOPPED")
        assert stopped["unsettled"] == 1


# --- it keeps running ---


STREAM_ROUTE = """
[[routes]]
name = "archive"
from = { connection = "main", stream = "ORDERS", durable = "router", filter = "kept.*" }
to = [ { connection = "main", subject = "archive.{{wildcard(1)}}" } ]
"""


async def test_a_missing_stream_stops_only_its_route(server: NatsServer, write: Write) -> None:
    config = write(server.url, rest=ROUTE + STREAM_ROUTE)
    async with running("run", config, cwd=config.parent) as run, connect(server.url) as client:
        await run.has_logged("ROUTER_STARTED")
        line = await run.has_logged("NATS_SUBSCRIBE_ERROR", route="archive")
        assert "there is no stream 'ORDERS'" in line["detail"]
        arrived = await client.subscribe("eu.*")
        await client.ping()
        await client.publish("orders.7", b"hello")
        assert (await arrived.next()).subject == "eu.7"
        run.send(signal.SIGTERM)
        assert await run.ended() == 0


async def test_a_durable_with_another_configuration_is_reported_with_the_difference(
    server: NatsServer, write: Write
) -> None:
    config = write(server.url, rest=ROUTE + STREAM_ROUTE)
    async with connect(server.url) as client:
        jetstream = JetStream(client)
        await jetstream.create_stream("ORDERS", ["kept.*"])
        await jetstream.create_consumer("ORDERS", "router", filter_subject="kept.other", ack_policy="explicit")
        async with running("run", config, cwd=config.parent) as run:
            line = await run.has_logged("NATS_SUBSCRIBE_ERROR", route="archive")
            assert "its filter is kept.other, the route's is kept.*" in line["detail"]
            arrived = await client.subscribe("eu.*")
            await run.has_logged("ROUTER_STARTED")
            await client.publish("orders.7", b"hello")
            assert (await arrived.next()).subject == "eu.7"
            run.send(signal.SIGTERM)
            assert await run.ended() == 0


async def test_a_filter_outside_of_its_stream_is_reported_with_the_subjects_of_the_stream(
    server: NatsServer, write: Write
) -> None:
    config = write(server.url, rest=STREAM_ROUTE)
    async with connect(server.url) as client:
        await JetStream(client).create_stream("ORDERS", ["orders.>", "other"])
        async with running("run", config, cwd=config.parent) as run:
            line = await run.has_logged("ROUTE_FILTER_OUTSIDE_STREAM", route="archive", filter="kept.*", level="WARN")
            assert line["subjects"] == "orders.>, other"
            run.send(signal.SIGTERM)
            assert await run.ended() == 0


async def test_the_url_of_the_status_page_is_one_line(core_server: NatsServer, write: Write) -> None:
    config = write(core_server.url, telemetry=f'listen = "{HOST}:0"')
    async with running("run", config, cwd=config.parent) as run:
        line = await run.has_logged("ROUTER_STATUS_PAGE")
        assert line["message"] == f"Status page: {line['url']}"
        assert "</html>" in await fetched(line["url"])
        run.send(signal.SIGTERM)
        assert await run.ended() == 0
        assert len(run.logged("ROUTER_STATUS_PAGE")) == 1


async def fetched(url: str) -> str:
    """Return the answer of a server."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    async with await trio.open_tcp_stream(parts.hostname, parts.port) as stream:
        request = f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n"
        await stream.send_all(request.encode())
        return b"".join([part async for part in stream]).decode()


async def test_a_server_that_is_away_at_the_start_is_waited_for(core_server: NatsServer, write: Write) -> None:
    config = write(core_server.url, connection='reconnect_delay = "20ms"\nmax_reconnect_delay = "50ms"\n')
    await core_server.kill()
    async with running("run", config, cwd=config.parent) as run:
        await run.has_logged("ROUTER_STARTED")
        await core_server.restart()
        await run.has_logged("ROUTE_READY", route="orders")
        run.send(signal.SIGTERM)
        assert await run.ended() == 0


# --- demo ---


async def test_the_demo_loses_nothing(tmp_path: Path) -> None:
    async with running("demo", "--duration", "4s", cwd=tmp_path) as demo:
        metrics = (await demo.has_printed(r"metrics: (http://127\.0\.0\.1:\d+/metrics)"))[1]
        page = await trio.to_thread.run_sync(lambda: urllib.request.urlopen(metrics, timeout=5).read())
        assert b"router_nats_connection_status" in page
        assert await demo.ended() == 0, demo.output
    text = demo.output
    assert demo.errors == ""
    assert "the server is killed (SIGKILL)" in text
    assert "the connection is lost" in text
    assert "reconnected after" in text
    exact = re.search(r"orders \(stream to stream\) +(\d+) of (\d+) arrived, each once and in order", text)
    assert exact is not None
    assert exact[1] == exact[2] != "0"
    assert "Nothing was lost." in text
    assert "\x1b" not in text


async def test_the_demo_can_be_interrupted_while_its_server_is_away(tmp_path: Path) -> None:
    async with running("demo", "--duration", "8s", cwd=tmp_path) as demo:
        await demo.has_printed("the connection is lost")
        demo.send(signal.SIGINT)
        with trio.fail_after(6):  # less than the default drain of a router
            assert await demo.ended() == 1
    assert demo.errors == "router-trio: the demo was interrupted before its end, so there is no verdict\n"


async def test_the_demo_can_be_interrupted(tmp_path: Path) -> None:
    async with running("demo", "--duration", "1m", cwd=tmp_path) as demo:
        url = (await demo.has_printed(r"nats-server with JetStream: nats://127\.0\.0\.1:(\d+)"))[1]
        await demo.has_printed("metrics")
        demo.send(signal.SIGINT)
        assert await demo.ended() == 1
    assert demo.errors == "router-trio: the demo was interrupted before its end, so there is no verdict\n"
    with pytest.raises(OSError, match="connect"):
        await trio.open_tcp_stream(HOST, int(url))
