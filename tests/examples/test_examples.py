"""The examples work as described: each runs as its first lines say, against real servers."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import trio

from router_trio.embedded import HOST
from tests.support.certificates import create_certificates
from tests.support.command import ROOT, RunningCommand, command, running
from tests.support.eventually import eventually
from tests.support.http_proxy import http_proxy
from tests.support.raw_jetstream import JetStream, StoredMessage
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer, nats_server
from tests.support.websockets import websocket_server

EXAMPLES = ROOT / "examples"
FILES = sorted(path for path in EXAMPLES.iterdir() if path.suffix in (".toml", ".py"))
CONFIGURATIONS = [path for path in FILES if path.suffix == ".toml"]
NO_HTTP = {"ROUTER_TRIO_TELEMETRY__LISTEN": ""}


def test_the_list_has_each_example_and_each_explains_how_to_run_it() -> None:
    listed = re.findall(
        r"^\| \[(\S+)\]\((\S+)\) \|", (EXAMPLES / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert sorted(listed) == [(path.name, path.name) for path in FILES]
    for path in FILES:
        assert f"examples/{path.name}" in path.read_text(encoding="utf-8").partition("\n\n[")[0]


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.name)
def test_a_configuration_is_accepted_and_its_tests_pass(path: Path, tmp_path: Path) -> None:
    assert command("check", path, cwd=tmp_path).returncode == 0
    if "[[tests]]" in path.read_text(encoding="utf-8"):
        done = command("test", path, cwd=tmp_path)
        assert (done.returncode, done.stdout.splitlines()[-1].endswith(" 0 failed")) == (0, True), done.stdout


async def stored(url: str, stream: str, count: int) -> Sequence[StoredMessage]:
    """Return the messages of a stream, as soon as there are `count`."""
    async with connect(url) as client:
        jetstream = JetStream(client)

        async def enough() -> bool:
            state = (await jetstream.stream_info(stream))["state"]
            return int(state["messages"]) >= count

        await eventually(enough, 20.0)
        return await jetstream.stream_messages(stream)


@asynccontextmanager
async def embedded(name: str, directory: Path) -> AsyncIterator[tuple[RunningCommand, str]]:
    """Run an example with an embedded server; yield the started router, and the URL of that server."""
    async with running("run", EXAMPLES / name, "--embedded-nats", cwd=directory, env=NO_HTTP) as router:
        url = (await router.has_printed(r"nats://\S+(?=\n)"))[0]
        await router.has_logged("ROUTER_STARTED")
        yield router, url


async def test_a_stream_is_copied_over_an_outage_of_headquarters(server: NatsServer, tmp_path: Path) -> None:
    async with nats_server(tmp_path, name="headquarters") as headquarters:
        env = NO_HTTP | {
            "ROUTER_TRIO_CONNECTIONS__SITE__SERVERS": json.dumps([server.url]),
            "ROUTER_TRIO_CONNECTIONS__HEADQUARTERS__SERVERS": json.dumps([headquarters.url]),
        }
        async with running("run", EXAMPLES / "copy_between_clusters.toml", cwd=tmp_path, env=env) as router:
            await router.has_logged("ROUTER_STARTED")
            async with connect(server.url) as client:
                site = JetStream(client)
                for number in range(20):
                    if number == 10:
                        await headquarters.kill()
                        await router.has_logged("NATS_CONNECTION_LOST")
                    await site.publish(f"readings.{number % 3}.heat", b"%d" % number)
                await headquarters.restart()
            copies = await stored(headquarters.url, "COPIES", 20)
            router.send(signal.SIGTERM)
            assert await router.ended() == 0
    assert sorted(int(copy.payload) for copy in copies) == list(range(20))
    assert {copy.subject for copy in copies} == {f"sites.berlin.readings.{number}.heat" for number in range(3)}


async def test_alarms_of_a_site_pass_its_proxy(tmp_path: Path, server: NatsServer) -> None:
    certificates = create_certificates(tmp_path / "certificates")
    async with (
        websocket_server(tmp_path, certificates, jetstream=False) as (headquarters, url),
        http_proxy(login="router:s3cret") as proxy,
        connect(headquarters.url) as there,
    ):
        env = NO_HTTP | {
            "ROUTER_TRIO_CONNECTIONS__SITE__SERVERS": json.dumps([server.url]),
            "ROUTER_TRIO_CONNECTIONS__HEADQUARTERS__SERVERS": json.dumps([f"{url}/nats"]),
            "ROUTER_TRIO_CONNECTIONS__HEADQUARTERS__PROXY": proxy.url,
            "ROUTER_TRIO_CONNECTIONS__HEADQUARTERS__TLS_CA_FILE": str(certificates.ca),
        }
        alarms = await there.subscribe("sites.>")
        async with running("run", EXAMPLES / "site_behind_a_proxy.toml", cwd=tmp_path, env=env) as router:
            await router.has_logged("ROUTER_STARTED")
            async with connect(server.url) as client:
                await client.publish("alarms.door.7", b"open")
            alarm = await alarms.next()
            router.send(signal.SIGTERM)
            assert await router.ended() == 0
    assert (alarm.subject, alarm.payload) == ("sites.berlin.alarms.door.7", b"open")


async def test_a_site_keeps_readings_on_its_disk_until_headquarters_is_there(tmp_path: Path) -> None:
    async with nats_server(tmp_path, name="headquarters") as headquarters:
        await headquarters.kill()
        env = NO_HTTP | {"ROUTER_TRIO_CONNECTIONS__HEADQUARTERS__SERVERS": json.dumps([headquarters.url])}
        options = (EXAMPLES / "store_and_forward.toml", "--embedded-nats", "--data", "site")
        url = tmp_path / "site" / "url"
        async with running("run", *options, cwd=tmp_path, env=env) as router:
            await router.has_logged("NATS_STREAM_CREATED", stream="READINGS")
            async with connect(url.read_text().strip()) as client:
                await JetStream(client).publish("readings.0.heat", b"0")
            router.send(signal.SIGKILL)
            await router.ended()
        async with running("run", *options, cwd=tmp_path, env=env) as router:
            await router.has_logged("ROUTER_STARTED")
            async with connect(url.read_text().strip()) as client:
                await JetStream(client).publish("readings.1.heat", b"1")
            await headquarters.restart()
            await router.has_logged("NATS_STREAM_CREATED", stream="COPIES")
            copies = await stored(headquarters.url, "COPIES", 2)
            router.send(signal.SIGTERM)
            assert await router.ended() == 0
    assert [(copy.subject, copy.payload) for copy in copies] == [
        ("sites.berlin.readings.0.heat", b"0"),
        ("sites.berlin.readings.1.heat", b"1"),
    ]


async def test_a_bucket_is_copied_to_a_site(server: NatsServer, tmp_path: Path) -> None:
    async with nats_server(tmp_path, name="site") as site:
        env = NO_HTTP | {
            "ROUTER_TRIO_CONNECTIONS__HEADQUARTERS__SERVERS": json.dumps([server.url]),
            "ROUTER_TRIO_CONNECTIONS__SITE__SERVERS": json.dumps([site.url]),
        }
        bucket = {"allow_rollup_hdrs": True, "discard": "new", "max_msgs_per_subject": 5}
        async with connect(server.url) as client, connect(site.url) as other:
            for one in (client, other):
                await JetStream(one).create_stream("KV_settings", ["$KV.settings.>"], **bucket)
            for key in ("all.colour", "berlin.door", "paris.door"):
                await JetStream(client).publish(f"$KV.settings.{key}", b"1")
            async with running("run", EXAMPLES / "copy_bucket.toml", cwd=tmp_path, env=env) as router:
                await stored(site.url, "KV_settings", 2)
                purge = [("KV-Operation", "PURGE"), ("Nats-Rollup", "sub")]
                await JetStream(client).publish("$KV.settings.berlin.door", b"", purge)
                await router.has_logged("ROUTER_STARTED")

                async def is_purged() -> bool:
                    found = await JetStream(other).stream_messages("KV_settings")
                    return {one.subject: one.header("KV-Operation") for one in found} == {
                        "$KV.settings.all.colour": None,
                        "$KV.settings.berlin.door": "PURGE",
                    }

                await eventually(is_purged)
                router.send(signal.SIGTERM)
                assert await router.ended() == 0


async def test_orders_are_sorted_by_their_content(tmp_path: Path) -> None:
    async with embedded("route_by_content.toml", tmp_path) as (router, url):
        async with connect(url) as client:
            orders = JetStream(client)
            eu = [("region", "eu")]
            await orders.publish("orders.1", b'{"id": "1", "priority": "high", "total": 12.5}', eu)
            await orders.publish("orders.2", b'{"id": "2", "total": 20}', eu)
            await orders.publish("orders.3", b'{"id": "3", "total": 150}', eu)
        messages = await stored(url, "SORTED", 2)
        router.send(signal.SIGTERM)
        assert await router.ended() == 0
    assert [(one.subject, json.loads(one.payload)) for one in messages] == [
        ("urgent.1", {"id": "1", "cents": 1250}),
        ("large.3", {"id": "3", "total": 150}),
    ]


async def test_orders_that_fit_are_masked_and_others_are_dead_letters_with_the_rule(tmp_path: Path) -> None:
    async with embedded("require_a_schema.toml", tmp_path) as (router, url):
        async with connect(url) as client:
            orders = JetStream(client)
            await orders.publish("orders.1", b'{"id": "1", "total": 5, "card": {"number": "4111", "code": "123"}}')
            await orders.publish("orders.2", b'{"id": "2", "total": 0, "card": {"number": "4111"}}')
        (billed,), (dead,) = await stored(url, "BILLING", 1), await stored(url, "DEAD", 1)
        router.send(signal.SIGTERM)
        assert await router.ended() == 0
    assert (billed.subject, billed.payload) == ("billing.1", b'{"card":{"number":"****"},"id":"1","total":5}')
    assert dead.header("Router-Dead-Letter-Reason") == "schema"
    rule = "/total must be more than 0 (#/properties/total/exclusiveMinimum)"
    assert dead.header("Router-Dead-Letter-Detail") == rule


async def test_many_sources_are_merged_into_one_stream_and_unreadable_messages_into_another(tmp_path: Path) -> None:
    async with embedded("fan_in_with_dead_letters.toml", tmp_path) as (router, url):
        async with connect(url) as client:
            devices = JetStream(client)
            await devices.publish("doors.17", b'{"open": true}')
            await devices.publish("meters.3", b'{"kwh": 2}')
            await devices.publish("meters.4", b"n/a")
            await client.publish("alarms.9", b"")
        events = await stored(url, "EVENTS", 3)
        (dead,) = await stored(url, "DEAD", 1)
        router.send(signal.SIGTERM)
        assert await router.ended() == 0
    assert {(one.subject, json.loads(one.payload)["value"]) for one in events} == {
        ("events.door.17", 1.0),
        ("events.meter.3", 2.0),
        ("events.alarm.9", 1.0),
    }
    assert (dead.subject, dead.payload, dead.header("Router-Dead-Letter-Reason")) == (
        "dead.meters.4",
        b"n/a",
        "expression",
    )


async def test_orders_get_names_from_a_database(server: NatsServer, tmp_path: Path) -> None:
    database = tmp_path / "customers.db"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("create table customers (id text primary key, name text)")
        connection.execute("insert into customers values ('7', 'Ada')")
    program = EXAMPLES / "enrich_from_database.py"
    async with running(program, server.url, database, cwd=tmp_path, python=[sys.executable]) as router:
        await router.has_logged("ROUTER_STARTED")
        async with connect(server.url) as client:
            orders = JetStream(client)
            await orders.publish("orders.1", b'{"customer": "7"}')
            await orders.publish("orders.2", b'{"customer": "8"}')
        (enriched,) = await stored(server.url, "ENRICHED", 1)
        (dead,) = await stored(server.url, "DEAD", 1)
        router.send(signal.SIGINT)
        assert await router.ended() == 0
        assert router.logged("ROUTER_STOPPED")
    assert json.loads(enriched.payload) == {"customer": "7", "name": "Ada"}
    assert dead.header("Router-Dead-Letter-Detail") == "unknown customer"


async def test_a_web_service_answers_201_only_when_a_stream_has_the_order(server: NatsServer, tmp_path: Path) -> None:
    program = EXAMPLES / "web_service.py"
    async with running(program, server.url, "0", cwd=tmp_path, python=[sys.executable]) as service:
        port = int((await service.has_printed(rf"http://{HOST}:(\d+)/orders/"))[1])
        assert await posted(port, "/orders/7", b'{"total": 12}') == 201
        assert await posted(port, "/elsewhere", b"") == 404
        assert await posted(port, "/orders/7", b"x" * 100_000) == 413
        (order,) = await stored(server.url, "ORDERS", 1)
        assert (order.subject, order.payload) == ("orders.7", b'{"total": 12}')
        await server.kill()
        await service.has_logged("NATS_CONNECTION_LOST")
        assert await posted(port, "/orders/8", b"{}") == 202
        await server.restart()
        await service.has_logged("NATS_CONNECTION_RESTORED")
        assert [one.subject for one in await stored(server.url, "ORDERS", 2)] == ["orders.7", "orders.8"]
        service.send(signal.SIGINT)
        assert await service.ended() == 0


async def test_a_fastapi_application_stores_orders_and_handles_them_in_one_loop(
    server: NatsServer, tmp_path: Path
) -> None:
    uvicorn = [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES), "--port", "0"]
    env = {"NATS_URL": server.url}
    async with running("fastapi_orders:app", cwd=tmp_path, python=uvicorn, env=env) as service:

        async def port_of() -> int:
            found = re.search(rf"running on http://{HOST}:(\d+)", service.errors)
            return int(found[1]) if found else 0

        await eventually(port_of, 40.0)  # importing FastAPI takes seconds on a busy machine
        port = await port_of()
        order = b'{"country": "DE", "net": 100}'
        assert await posted(port, "/orders/7", order, "application/json") == 201
        assert await posted(port, "/orders/8", b'{"country": "XX", "net": 1}', "application/json") == 201
        assert await posted(port, "/orders/7", b'{"net": 100}', "application/json") == 422
        (invoice,) = await stored(server.url, "INVOICES", 1)
        assert (invoice.subject, json.loads(invoice.payload)["gross"]) == ("invoices.7", 119.0)
        await server.kill()
        await service.has_logged("NATS_CONNECTION_LOST")
        assert await posted(port, "/orders/9", order, "application/json") == 202
        await server.restart()
        await service.has_logged("NATS_CONNECTION_RESTORED")
        assert {one.subject for one in await stored(server.url, "INVOICES", 2)} == {"invoices.7", "invoices.9"}
        service.send(signal.SIGINT)
        assert await service.ended() == 0
        assert service.logged("ROUTER_STOPPED")[0]["level"] == "INFO"


async def posted(port: int, path: str, body: bytes, content_type: str = "text/plain") -> int:
    """Return the status of the answer to a POST."""
    async with await trio.open_tcp_stream(HOST, port) as stream:
        head = f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: {content_type}\r\n"
        head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        await stream.send_all(head.encode() + body)
        answer = b""
        while b"\r\n" not in answer:
            more = await stream.receive_some()
            assert more, "it closed the connection without an answer"
            answer += more
        return int(answer.split()[1])


def test_the_tests_of_a_route_pass(tmp_path: Path) -> None:
    # A copy: pytest's own files are not for the tree.
    (tmp_path / "test_a_route.py").write_bytes((EXAMPLES / "test_a_route.py").read_bytes())
    done = command(
        "-q",
        "test_a_route.py",
        cwd=tmp_path,
        python=[sys.executable, "-m", "pytest", "-p", "no:cacheprovider"],
        within=50.0,
    )
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout
