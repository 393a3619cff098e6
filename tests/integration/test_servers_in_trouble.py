"""Links to real servers that die, freeze, refuse or move their clients."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from router_trio import Live, Receipt
from router_trio.connection.supervisor import HAND_OVER_WITHIN
from router_trio.embedded import HOST
from router_trio.errors import LinkError, PublishError, SourceError
from router_trio.nats.link import NatsLink
from tests.integration.dial import SECRET, USERS, link_to, refused, until_no_client, works
from tests.support.eventually import eventually
from tests.support.proxy import tcp_proxy
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.recorder import Recorder
from tests.support.servers import NatsServer, cluster, nats_server
from tests.support.settings import core_route, settings
from tests.support.watch import assert_alive, watched

# --- servers in trouble ---


async def test_a_killed_server_ends_the_link(core_server: NatsServer) -> None:
    async with watched(settings(core_server.url)) as watch:
        await core_server.kill()
        lost = await watch.until("NATS_CONNECTION_LOST")
        assert lost.reason == "closed"
        assert (await watch.until("NATS_CONNECTION_FAILED")).reason == "network"
        await core_server.restart()
        await watch.until("NATS_CONNECTION_RESTORED")


async def test_a_frozen_server_is_lost_within_two_intervals(core_server: NatsServer) -> None:
    interval = 0.8
    async with watched(settings(core_server.url, liveness_interval="800ms")) as watch:
        await trio.sleep(0.5)
        core_server.stop()
        frozen_at = trio.current_time()
        try:
            lost = await watch.until("NATS_CONNECTION_LOST")
        finally:
            core_server.cont()
        assert lost.reason == "liveness"
        assert lost.at - frozen_at <= 2 * interval
        await watch.until("NATS_CONNECTION_RESTORED")


async def test_a_server_that_stops_in_order_says_goodbye(core_server: NatsServer) -> None:
    async with watched(settings(core_server.url)) as watch:
        await core_server.restart()
        await watch.until("NATS_CONNECTION_LOST")
        await watch.until("NATS_CONNECTION_RESTORED")


async def test_a_full_server_is_reported_as_full(tmp_path: Path) -> None:
    async with nats_server(tmp_path, config="max_connections: 1\n", jetstream=False) as server:
        await until_no_client(server)
        async with connect(server.url), watched(settings(server.url)) as watch:
            failed = await watch.until("NATS_CONNECTION_FAILED", 2)
            assert failed.reason == "max_connections", failed
        await until_no_client(server)
        await works(server.url)


async def test_a_login_timeout_is_no_refusal(tmp_path: Path) -> None:
    config = USERS.replace("{ users", "{ timeout: 0.2, users")
    async with nats_server(tmp_path, config=config, jetstream=False) as server, tcp_proxy(HOST, server.port) as proxy:
        proxy.delay(0.5, "to_server")
        error = await refused(LinkError, proxy.url, user="router", password=SECRET)
        assert error.reason == "timeout"
        proxy.clear()
        await works(proxy.url, user="router", password=SECRET)


async def test_revoked_permissions_are_noticed(tmp_path: Path) -> None:
    def config(denied: str) -> str:
        allowed = f'permissions: {{ subscribe: {{ deny: ["{denied}"] }}, publish: {{ deny: ["{denied}"] }} }}'
        users = f"{{ user: router, password: p, {allowed} }}, {{ user: u, password: p }}"
        return f"authorization {{ users: [ {users} ] }}\n"

    async with nats_server(tmp_path, config=config("nothing"), jetstream=False) as server:
        route = core_route("in.*", "out.{{wildcard(1)}}")
        async with watched(settings(server.url, routes=[route], user="router", password="p")) as watch:
            assert watch.live is not None
            await server.reload(config("in.>"))
            refusal = await watch.until("NATS_SUBSCRIBE_ERROR")
            assert refusal.reason == "permission_denied"
            assert watch.live.routes[0].state != "running"
            receipt = await watch.live.publish("in.1", b"x")
            fate = await receipt.settled()
            assert (fate.name, fate.reason) == ("failed", "permission_denied")
            await server.reload(config("nothing"))
            await assert_alive(watch.live, within=15)
            async with connect(server.url, user="u", password="p") as client:
                subscription = await client.subscribe("out.*")
                await client.publish("in.2", b"routed again")
                assert (await subscription.next()).payload == b"routed again"


async def test_a_user_that_was_removed_is_refused_and_waited_for(tmp_path: Path) -> None:
    async with nats_server(tmp_path, config=USERS, jetstream=False) as server:
        async with watched(settings(server.url, user="router", password=SECRET)) as watch:
            await server.reload(USERS.replace("router", "somebody-else"))
            await watch.until("NATS_CONNECTION_LOST")
            failed = await watch.until("NATS_CONNECTION_FAILED")
            assert failed.reason == "authorization"
            await server.reload(USERS)
            await watch.until("NATS_CONNECTION_RESTORED")
        assert not any(SECRET in str(event) for event in watch.events)


def denied_to_subscribe(subject: str) -> str:
    permissions = f'permissions: {{ subscribe: {{ deny: ["{subject}"] }} }}'
    return f"authorization {{ users: [ {{ user: u, password: p, {permissions} }} ] }}\n"


async def test_without_an_inbox_publishes_with_ack_fail_with_the_reason(tmp_path: Path) -> None:
    async with (
        nats_server(tmp_path, config=denied_to_subscribe("_INBOX.>")) as server,
        watched(settings(server.url, user="u", password="p")) as watch,
    ):
        assert watch.live is not None
        with pytest.raises(PublishError) as caught:
            await watch.live.publish_with_ack("out", b"x")
        assert caught.value.reason == "permission_denied"
        (failed,) = watch.of("NATS_PUBLISH_WITH_ACK_ERROR")
        assert "allow this user to subscribe to _INBOX.>" in failed.detail
        receipt = await watch.live.publish("out", b"x")
        assert (await receipt.settled()).name == "fenced"


async def test_two_refused_subscriptions_to_one_subject_are_both_reported(tmp_path: Path) -> None:
    reasons: list[str] = []

    async def subscribe(link: NatsLink) -> None:
        with pytest.raises(SourceError) as caught:
            await link.subscribe("secret", Recorder())
        reasons.append(caught.value.reason)

    async with (
        nats_server(tmp_path, config=denied_to_subscribe("secret"), jetstream=False) as server,
        link_to(server.url, user="u", password="p") as link,
    ):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(subscribe, link)
        assert reasons == ["permission_denied"] * 3
        await link.fence()


# --- a cluster ---


async def test_a_cluster_is_discovered_and_a_lame_duck_is_left_without_a_loss(tmp_path: Path) -> None:
    # It closes nothing before the router has waited, if it must, for PubAcks that were lost with the stream's leader.
    grace = f'lame_duck_grace_period: "{HAND_OVER_WITHIN + 2:g}s"\nlame_duck_duration: "30s"\n'
    async with cluster(tmp_path, config=grace) as group:
        first = group.servers[0]
        async with connect(group.urls[1]) as client:
            stream = JetStream(client)
            await stream.create_stream("OUT", ["out.>"], num_replicas=3)
            # Only one is configured: the others are known from its announcements.
            config = settings(first.url, liveness_interval="2s", max_pending_operations=10_000)
            async with watched(config) as watch:
                live = watch.live
                assert live is not None
                receipts: list[Receipt] = []
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(publish_numbers, live, receipts)
                    await eventually(lambda: len(receipts) > 200)
                    first.lame_duck()
                    announced = await watch.until("NATS_LAME_DUCK")
                    restored = await watch.until("NATS_CONNECTION_RESTORED")
                    assert restored.server in group.urls[1:]
                    assert restored.at - announced.at < 4.5
                    moved_at = len(receipts)
                    await eventually(lambda: len(receipts) > moved_at + 200)
                    nursery.cancel_scope.cancel()
                with trio.fail_after(30):
                    fates = [await receipt.settled() for receipt in receipts]
                assert {fate.name for fate in fates} == {"acked"}
                assert watch.of("NATS_CONNECTION_LOST")[0].reason == "lame_duck"
                assert watch.count("NATS_CONNECTION_LOST") == 1
            stored = [int(message.payload) for message in await stream.stream_messages("OUT")]
            assert stored[: len(receipts)] == list(range(len(receipts)))
            assert len(stored) <= len(receipts) + 1, "one was under way when its publisher was cancelled"


async def publish_numbers(live: Live, receipts: list[Receipt]) -> None:
    while True:
        receipts.append(await live.publish_with_ack("out.1", b"%d" % len(receipts), timeout=20.0))
