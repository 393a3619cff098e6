"""JetStream outside of the server itself: of another domain behind a leaf node, and imported from another account."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio import Settings
from router_trio.embedded import HOST, reserve_port
from tests.support.command import command, over_its_links
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer, nats_server
from tests.support.settings import settings
from tests.support.streams import publish_numbered, route
from tests.support.watch import until_nothing_is_unacked, until_stored, watched

COUNT = 200


def jetstream_of(tmp_path: Path, domain: str) -> str:
    """Return the configuration of a server with a JetStream domain."""
    return f'server_name: {domain}\njetstream {{ store_dir: "{tmp_path / domain}", domain: {domain} }}\n'


@asynccontextmanager
async def hub_and_leaf(tmp_path: Path, leaf: str = "") -> AsyncIterator[tuple[str, str]]:
    """Yield the URLs of the servers of `servers_of_domains`."""
    async with servers_of_domains(tmp_path, leaf) as (hub, there):
        yield hub.url, there.url


@asynccontextmanager
async def servers_of_domains(tmp_path: Path, leaf: str = "") -> AsyncIterator[tuple[NatsServer, NatsServer]]:
    """Yield two servers, each with a domain of its own; the second, with `leaf`, is a leaf node of the first."""
    with reserve_port() as port:
        listen = f"leafnodes {{ listen: {HOST}:{port} }}\n"
        remotes = f'leafnodes {{ remotes: [ {{ url: "nats://{HOST}:{port}" }} ] }}\n'
        config = jetstream_of(tmp_path, "hub") + listen
        async with nats_server(tmp_path, name="hub", jetstream=False, config=config) as hub:
            config = jetstream_of(tmp_path, "leaf") + remotes + leaf
            async with nats_server(tmp_path, name="leaf", jetstream=False, config=config) as there:
                while not (await hub.monitor("/leafz"))["leafnodes"]:
                    await trio.sleep(0.05)
                yield hub, there


async def test_streams_of_a_hub_are_read_and_written_through_a_leaf_node(tmp_path: Path) -> None:
    async with hub_and_leaf(tmp_path) as (hub, leaf), connect(hub) as there, connect(leaf) as here:
        stream = JetStream(there)
        await stream.create_stream("SOURCE", ["source.*"])
        # A stream of the same name, which must not be used.
        await JetStream(here).create_stream("SOURCE", ["other.*"])
        await publish_numbered(stream, range(COUNT))
        config = settings(leaf, routes=[route()], domain="hub")
        made = {"connection": "main", "name": "SINK", "subjects": ["sink.*"]}
        config = Settings(**{name: getattr(config, name) for name in Settings.model_fields} | {"streams": [made]})
        async with watched(config) as watch:
            await until_stored(stream, "SINK", COUNT)
            await until_nothing_is_unacked(stream)
            live = watch.live
            assert live is not None
            await eventually(lambda: live.routes[0].state == "running")
        assert await JetStream(here).stream_messages("SOURCE") == []


async def test_messages_wait_at_a_leaf_node_while_its_hub_is_killed(tmp_path: Path) -> None:
    async with servers_of_domains(tmp_path) as (hub, leaf), connect(leaf.url) as here:
        made = settings(leaf.url)
        both = {name: made.connections["main"].model_copy() for name in ("site", "headquarters")}
        both["headquarters"] = both["headquarters"].model_copy(update={"domain": "hub"})
        config = made.adapted(connections=both).with_changes(
            streams=[
                {"connection": "site", "name": "SOURCE", "subjects": ["source.*"]},
                {"connection": "headquarters", "name": "SINK", "subjects": ["sink.*"], "duplicate_window": "1h"},
            ],
            routes=[
                {
                    "name": "forward",
                    "from": {"connection": "site", "stream": "SOURCE", "durable": "router", "filter": "source.*"},
                    "to": [{"connection": "headquarters", "subject": "sink.{{wildcard(1)}}", "jetstream": True}],
                }
            ],
        )
        async with watched(config) as watch:
            live = watch.live
            assert live is not None
            await eventually(lambda: live.routes[0].state == "running")
            await publish_numbered(JetStream(here), range(COUNT))
            async with connect(hub.url) as there:
                await until_stored(JetStream(there), "SINK", COUNT)
            await hub.kill()
            await publish_numbered(JetStream(here), range(COUNT, 2 * COUNT))
            await watch.until("NATS_DESTINATION_NOT_STORED")
            assert live.connections["headquarters"].connected
            await hub.restart()
            async with connect(hub.url) as there:
                await until_stored(JetStream(there), "SINK", 2 * COUNT)
                copies = await JetStream(there).stream_messages("SINK")
            assert sorted(int(copy.payload) for copy in copies) == list(range(2 * COUNT))
            await until_nothing_is_unacked(JetStream(here))


ACCOUNTS = """
accounts {
  OWNER: {
    jetstream: enabled
    users: [ { user: owner, password: owner } ]
    exports: [
      { service: "$JS.API.>", response_type: stream }
      { service: "$JS.ACK.>" }
      { service: "sink.*" }
    ]
  }
  GUEST: {
    users: [ { user: guest, password: guest } ]
    imports: [
      { service: { account: OWNER, subject: "$JS.API.>" }, to: "JS.OWNER.API.>" }
      { service: { account: OWNER, subject: "$JS.ACK.>" } }
      { service: { account: OWNER, subject: "sink.*" } }
    ]
  }
}
"""


async def test_streams_of_another_account_are_read_and_written_through_its_exports(tmp_path: Path) -> None:
    async with (
        nats_server(tmp_path, config=ACCOUNTS) as server,
        connect(server.url, user="owner", password="owner") as owner,
    ):
        stream = JetStream(owner)
        await stream.create_stream("SOURCE", ["source.*"])
        await stream.create_stream("SINK", ["sink.*"])
        await publish_numbered(stream, range(COUNT))
        guest: dict[str, Any] = {"user": "guest", "password": "guest", "api_prefix": "JS.OWNER.API"}
        async with watched(settings(server.url, routes=[route()], **guest)):
            await until_stored(stream, "SINK", COUNT)
            await until_nothing_is_unacked(stream)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ({"domain": "hbu"}, "no server answers below $JS.hbu.API; correct `domain` or `api_prefix` of the connection"),
        ({"api_prefix": "JS.no"}, "no server answers below JS.no; correct `domain` or `api_prefix` of the connection"),
    ],
)
async def test_an_api_without_responders_is_named(key: dict[str, str], text: str, tmp_path: Path) -> None:
    async with nats_server(tmp_path) as server, watched(settings(server.url, routes=[route()], **key)) as watch:
        live = watch.live
        assert live is not None
        await eventually(lambda: text in str(live.routes[0].trouble))


async def test_dead_letters_of_another_domain(tmp_path: Path) -> None:
    async with hub_and_leaf(tmp_path) as (hub, leaf), connect(hub) as there:
        stream = JetStream(there)
        await stream.create_stream("SOURCE", ["source.*"])
        # It refuses each message at once, where a missing stream would be waited for.
        await stream.create_stream("SINK", ["sink.*"], max_msg_size=1)
        await stream.create_stream("DEAD", ["dead.*"])
        letter = {"subject": "dead.{{wildcard(1)}}"}
        config = settings(leaf, routes=[route(retry={"attempts": 1}, dead_letter=letter)], domain="hub")
        path = tmp_path / "router.toml"
        path.write_text(
            f"""
            [connections.main]
            servers = ["{leaf}"]
            domain = "hub"
            [[routes]]
            name = "route"
            from = {{ stream = "SOURCE", durable = "router", filter = "source.*" }}
            to = [ {{ subject = "sink.{{{{wildcard(1)}}}}", jetstream = true }} ]
            retry = {{ attempts = 1 }}
            dead_letter = {{ subject = "dead.{{{{wildcard(1)}}}}" }}
            """
        )
        await publish_numbered(stream, [7])
        async with watched(config):
            await until_stored(stream, "DEAD", 1)
        done = command("dead-letters", path, "route", "list", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "source.7" in done.stdout


def denying(tmp_path: Path, *denied: str) -> str:
    """Return the configuration of a server with a domain, and a user who may not publish to these subjects."""
    users = (
        "{ user: admin, password: admin }, { user: router, password: router, permissions: { publish: { deny: [%s] } } }"
    )
    return jetstream_of(tmp_path, "hub") + f"authorization {{ users: [ {users % ', '.join(map(quoted, denied))} ] }}\n"


def quoted(subject: str) -> str:
    return f'"{subject}"'


@pytest.mark.parametrize(
    "denied",
    [
        "$JS.API.STREAM.INFO.SOURCE",
        "$JS.API.CONSUMER.INFO.SOURCE.router",
        "$JS.API.CONSUMER.DURABLE.CREATE.SOURCE.router",
        "$JS.API.CONSUMER.MSG.NEXT.SOURCE.router",
    ],
)
async def test_a_refusal_of_the_server_of_the_domain_itself_is_recognized(denied: str, tmp_path: Path) -> None:
    """That server maps `$JS.hub.API` to `$JS.API`, and names the latter."""
    async with (
        nats_server(tmp_path, name="hub", jetstream=False, config=denying(tmp_path, denied)) as server,
        connect(server.url, user="admin", password="admin") as admin,
    ):
        stream = JetStream(admin)
        await stream.create_stream("SOURCE", ["source.*"])
        await stream.create_stream("SINK", ["sink.*"])
        user = {"user": "router", "password": "router", "domain": "hub"}
        async with watched(settings(server.url, routes=[route()], **user)) as watch:
            live = watch.live
            assert live is not None
            await eventually(lambda: "ermission" in str(live.routes[0].trouble))
            assert denied in str(live.routes[0].trouble)


async def test_a_command_names_what_the_server_of_the_domain_itself_refuses(tmp_path: Path) -> None:
    denied = "$JS.API.STREAM.MSG.GET.SOURCE"
    async with (
        nats_server(tmp_path, name="hub", jetstream=False, config=denying(tmp_path, denied)) as server,
        connect(server.url, user="admin", password="admin") as admin,
    ):
        await JetStream(admin).create_stream("SOURCE", ["source.*"])
        (tmp_path / "router.toml").write_text(
            f'''
            [connections.main]
            servers = ["{server.url}"]
            user = "router"
            password = "router"
            domain = "hub"
            [[routes]]
            name = "copy"
            from = {{ stream = "SOURCE", durable = "router", filter = "source.*" }}
            to = [ {{ subject = "sink.all", jetstream = true }} ]
            '''
        )
        result = await over_its_links("find", "router.toml", "source.1", cwd=tmp_path)
    assert result.returncode == 1
    assert f"this user may not publish to {denied}: " in result.stderr
