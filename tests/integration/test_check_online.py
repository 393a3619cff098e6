"""`check --online` on real servers: it finds mistakes, finds nothing for the examples, and changes nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio import Router, Settings
from router_trio.cli.permissions import lines
from tests.support.command import ROOT, in_process, over_its_links
from tests.support.eventually import eventually
from tests.support.http_proxy import http_proxy
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.server_version import needs_server
from tests.support.servers import NatsServer, cluster, nats_server
from tests.support.websockets import websocket_server

EMBEDDED = re.compile(r"(\[connections\.\w+\][^\n]*\n)(?=\n)")
"""A connection without servers, which is that of the embedded server."""

TEXTS = {path.stem: path.read_text() for path in sorted((ROOT / "examples").glob("*.toml"))}
SCHEMAS = {path.name: path.read_text() for path in (ROOT / "examples").glob("*.schema.json")}
"""The files that examples name, which are beside them."""

COVERED = "$JS.API.STREAM.INFO.ORDERS"
"""A permission that an optional one, for the stream of the destination, covers."""

CONFIGURATION = """
[telemetry]
listen = ""
[connections.main]
servers = ["{url}"]
[[routes]]
name = "copy"
from = {{ stream = "ORDERS", durable = "router", filter = "orders.*" }}
[[routes.to]]
subject = "copies.{{{{wildcard(1)}}}}"
jetstream = true
"""


async def online(folder: Path, *more: str, path: str = "router.toml") -> tuple[int, dict[str, Any]]:
    """Run the command, and return the exit code and the report."""
    done = await over_its_links("check", path, "--online", "--json", *more, cwd=folder)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def named(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(one["name"], one["severity"], one["key"]) for one in report["findings"]]


async def make_buckets(settings: Settings) -> None:
    """Create the buckets of an example, which a router does not."""
    sources = {(route.source.connection, route.source.bucket) for route in settings.routes}
    destinations = {(one.connection, one.bucket) for route in settings.routes for one in route.to}
    for connection, bucket in sources | destinations:
        if bucket is None:
            continue
        async with connect(str(settings.connections[connection].servers[0])) as client:
            await JetStream(client).create_stream(
                f"KV_{bucket}", [f"$KV.{bucket}.>"], allow_rollup_hdrs=True, max_msgs_per_subject=5
            )


@pytest.mark.parametrize("example", TEXTS)
async def test_the_examples_give_no_finding(example: str, tmp_path: Path) -> None:
    async with nats_server(tmp_path, name="near") as near, nats_server(tmp_path, name="far") as far:
        text = TEXTS[example].replace("nats://127.0.0.1:4222", near.url).replace("nats://127.0.0.1:4223", far.url)
        text = text.replace("wss://nats.example.com/nats", far.url)
        text = text.replace('proxy = "http://proxy.example.com:3128"\n', "")
        text = EMBEDDED.sub(rf'\1servers = ["{near.url}"]\n', text)
        (tmp_path / "router.toml").write_text(text)
        for name, schema in SCHEMAS.items():
            (tmp_path / name).write_text(schema)
        settings = Settings.load(tmp_path / "router.toml")
        await make_buckets(settings)
        async with Router(settings, log=False).open(listen=""):
            await trio.sleep(0.5)  # it creates the streams and the durables
        code, report = await online(tmp_path)
        assert (code, report["findings"], report["missing"]) == (0, [], [])
        assert [one.split()[0] for one in report["unseen"]] == ["sync_interval"]


async def test_a_server_with_mistakes(tmp_path: Path, server: NatsServer) -> None:
    (tmp_path / "router.toml").write_text(CONFIGURATION.format(url=server.url))
    async with connect(server.url) as client:
        streams = JetStream(client)
        await streams.create_stream("ORDERS", ["sales.*"])
        await streams.create_consumer("ORDERS", "router", ack_policy="none", filter_subject="sales.*")
        code, report = await online(tmp_path)
        assert code == 78
        assert named(report) == [
            ("filter_matches_nothing", "error", "routes[0].from.filter"),
            ("durable_differs", "error", "routes[0].from.durable"),
            ("stream_missing", "error", "routes[0].to[0].subject"),
        ]
        await streams.delete_stream("ORDERS")


@needs_server(2, 12, lacks="partition of a subject as a whole")
async def test_the_partitions_of_a_route(tmp_path: Path, server: NatsServer) -> None:
    text = CONFIGURATION.format(url=server.url).replace('"orders.*" }', '"orders.*", partitions = 3 }')
    (tmp_path / "router.toml").write_text(text)
    here = "routes[0].from"
    async with connect(server.url) as client:
        streams = JetStream(client)
        for name in ("orders", "copies"):
            await streams.create_stream(name.upper(), [f"{name}.*"])
        code, report = await online(tmp_path)
        assert (code, named(report)) == (0, [("copied", "note", f"{here}.partitions")])
        assert "does not exist; the router creates it" in report["findings"][0]["message"]
        async with Router(Settings.load(tmp_path / "router.toml"), log=False).open() as live:
            await eventually(lambda: live.routes[0].partitions is not None and len(live.routes[0].partitions.led) == 3)
        code, report = await online(tmp_path)
        assert (code, report["missing"]) == (0, [])
        assert named(report) == [("copied", "note", f"{here}.partitions")]
        await streams.delete_consumer("ORDERS-router", "router-1")
        await streams.create_consumer("ORDERS-router", "router-1", filter_subject="1.orders.*")
        (tmp_path / "router.toml").write_text(text.replace("partitions = 3", "partitions = 4"))
        code, report = await online(tmp_path)
        assert code == 78
        assert sorted(named(report)) == [
            ("copied", "note", f"{here}.partitions"),
            ("durable_differs", "error", f"{here}.durable"),
            ("partitions_differ", "error", f"{here}.partitions"),
        ]
        # With a transform of its own the stream needs no copy.
        await streams.delete_stream("ORDERS-router")
        transform = {"src": ">", "dest": "{{partition(4)}}.>"}
        await streams.edit_stream("ORDERS", subject_transform=transform)
        assert await online(tmp_path) == (0, {"findings": [], "missing": [], "unseen": report["unseen"]})


async def test_nothing_is_published_or_changed(tmp_path: Path, server: NatsServer) -> None:
    (tmp_path / "router.toml").write_text(CONFIGURATION.format(url=server.url))
    async with connect(server.url) as client:
        streams = JetStream(client)
        for name, subject in (("ORDERS", "orders.*"), ("COPIES", "copies.*")):
            await streams.create_stream(name, [subject])
        await streams.publish("orders.7", b"7")
        await streams.create_consumer("ORDERS", "router", filter_subject="orders.*")

        async def state() -> list[dict[str, Any]]:
            info = [await streams.stream_info(name) for name in ("ORDERS", "COPIES")]
            info.append(await streams.consumer_info("ORDERS", "router"))
            return [{key: value for key, value in one.items() if key != "ts"} for one in info]

        subscription = await client.subscribe("copies.>")
        before = await state()
        assert (await online(tmp_path))[0] == 0
        assert await state() == before
        await client.publish("copies.end", b"")
        assert (await subscription.next()).subject == "copies.end"
        for name in ("ORDERS", "COPIES"):
            await streams.delete_stream(name)


async def test_a_server_that_does_not_answer(tmp_path: Path, server: NatsServer) -> None:
    text = CONFIGURATION.format(url=server.url) + 'connection = "main"\n'
    text = text.replace('stream = "ORDERS"', 'stream = "ORDERS", connection = "main"')
    text += '[connections.other]\nservers = ["nats://127.0.0.1:1"]\n'
    (tmp_path / "router.toml").write_text(text)
    async with connect(server.url) as client:
        streams = JetStream(client)
        for name, subject in (("ORDERS", "orders.*"), ("COPIES", "copies.*")):
            await streams.create_stream(name, [subject])
        code, report = await online(tmp_path)
        [missing] = report["missing"]
        assert (code, report["findings"], missing["key"]) == (1, [], "connections.other")
        assert "stream_missing" in missing["findings"]
        for name in ("ORDERS", "COPIES"):
            await streams.delete_stream(name)


async def test_a_server_behind_a_proxy_is_asked_by_websocket(tmp_path: Path) -> None:
    async with websocket_server(tmp_path) as (real, url), http_proxy(login="ann:right") as proxy:
        async with connect(real.url) as client:
            streams = JetStream(client)
            for name, subject in (("ORDERS", "orders.*"), ("COPIES", "copies.*")):
                await streams.create_stream(name, [subject])
        for password, code in (("right", 0), ("wrong", 1)):
            text = CONFIGURATION.format(url=url).replace(
                "[[routes]]", f'proxy = "http://ann:{password}@{proxy.address}"\n[[routes]]'
            )
            (tmp_path / "router.toml").write_text(text)
            done, report = await online(tmp_path)
            assert (done, report["findings"], len(report["missing"])) == (code, [], code)
        assert "refused user and password in `proxy`" in report["missing"][0]["message"]
        assert "wrong" not in json.dumps(report)


async def test_a_cluster(tmp_path: Path) -> None:
    """A stream with one replica is found, and replicas that are offline while others hold the stream."""
    async with cluster(tmp_path) as three:
        async with connect(three.urls[0]) as client:
            streams = JetStream(client)
            await streams.create_stream("ORDERS", ["orders.*"])
            await streams.create_stream("COPIES", ["copies.*"], num_replicas=3)
        leader, other = await three.stream_leader("COPIES"), await three.stream_leader("ORDERS")
        (tmp_path / "router.toml").write_text(CONFIGURATION.format(url=leader.url))
        async with connect(leader.url) as client:
            streams = JetStream(client)

            async def behind() -> bool:
                replicas = (await streams.stream_info("COPIES"))["cluster"]["replicas"]
                return any(one.get("offline") or not one["current"] for one in replicas)

            async def current() -> bool:
                return not await behind()

            await eventually(current)
            code, report = await online(tmp_path)
            assert (code, named(report)) == (78, [("one_replica", "warning", "routes[0].from.stream")])
            (away, *_) = (one for one in three.servers if one not in (leader, other))
            await away.kill()
            await eventually(behind, within=60)
            code, report = await online(tmp_path)
            assert ("replicas_behind", "warning", "routes[0].to[0].subject") in named(report)


async def test_the_last_line_of_a_check_that_could_not_ask_a_server_reports_it(tmp_path: Path) -> None:
    (tmp_path / "router.toml").write_text(CONFIGURATION.format(url="nats://127.0.0.1:1"))
    done = await over_its_links("check", "router.toml", "--online", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "online: 0 errors, 0 warnings, 0 notes, not everything was asked"


def test_json_needs_online_and_contains_the_problems_of_an_invalid_file(tmp_path: Path) -> None:
    (tmp_path / "router.toml").write_text("[routers]\n")
    done = in_process("check", "router.toml", "--json", cwd=tmp_path)
    assert done.returncode == 2
    assert "--json can only be used with --online" in done.stderr
    done = in_process("check", "router.toml", "--online", "--json", cwd=tmp_path)
    assert done.returncode == 78
    [first, *_] = json.loads(done.stdout)["findings"]
    assert (first["name"], first["severity"], first["key"], first["line"]) == ("configuration", "error", "routers", 1)


@needs_server(2, 11, lacks="message tracing")
async def test_permissions(tmp_path: Path) -> None:
    """The permissions that the command prints are enough; without each of them it is named."""
    (tmp_path / "router.toml").write_text(CONFIGURATION.format(url="nats://127.0.0.1:1"))
    printed = list(lines(Settings.load(tmp_path / "router.toml"), "main", "server"))
    # Without its inbox the user gets no answer at all.
    allowed = [line for line in printed if line.strip().startswith('"') and "_INBOX" not in line]
    cases = dict(enumerate([None, *allowed]))
    users = [
        "\n".join([f"{{ user: router{number}, password: router,", *(line for line in printed if line != left_out), "}"])
        for number, left_out in cases.items()
    ]
    config = "\n".join(["authorization { users: [", *users, "{ user: other, password: other }", "] }"])
    async with nats_server(tmp_path, config=config) as server:
        async with connect(server.url.replace("//", "//other:other@")) as client:
            streams = JetStream(client)
            await streams.create_stream("ORDERS", ["orders.*"])
            await streams.create_stream("COPIES", ["copies.*"])
        for number, left_out in cases.items():
            url = server.url.replace("//", f"//router{number}:router@")
            (tmp_path / "router.toml").write_text(CONFIGURATION.format(url=url))
            code, report = await online(tmp_path)
            names = [one["name"] for one in report["findings"]]
            subject = "" if left_out is None else left_out.split('"')[1]
            if subject in ("", COVERED):
                assert (code, names) == (0, []), report
            else:
                assert names == ["permission_missing"], (left_out, report)
                assert subject in report["findings"][0]["message"]
