"""A server that accepts no more subscriptions: the routes beyond its limit fail alone, and the link lives."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from router_trio.states import FAILED, RUNNING
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import nats_server
from tests.support.settings import core_route, settings
from tests.support.watch import watched


async def test_routes_beyond_the_servers_limit_of_subscriptions_fail_alone(tmp_path: Path) -> None:
    # One subscription is for the PubAcks.
    async with nats_server(tmp_path, config="max_subscriptions: 8\n") as server:
        routes = [core_route(f"in.{number}", f"out.{number}", name=f"route{number}") for number in range(20)]
        async with watched(settings(server.url, routes=routes)) as watch, connect(server.url) as client:
            live = watch.router
            await eventually(lambda: all(route.state in (RUNNING, FAILED) for route in live.routes))
            states = [route.state for route in live.routes]
            assert (states.count(RUNNING), states.count(FAILED)) == (7, 13)
            failed = next(route for route in live.routes if route.state == FAILED)
            assert failed.reason is not None
            assert "maximum subscriptions exceeded" in failed.reason
            assert "max_subscriptions" in failed.reason
            assert {event.reason for event in watch.of("NATS_SUBSCRIBE_ERROR")} == {"max_subscriptions"}
            heard = await client.subscribe("out.*")
            for number in range(20):
                await client.publish(f"in.{number}", b"x")
            running = {f"out.{number}" for number, state in enumerate(states) if state == RUNNING}
            assert {(await heard.next()).subject for _ in range(7)} == running
            assert not watch.of("NATS_CONNECTION_LOST")


async def test_a_route_subscribes_once_there_is_room_again(tmp_path: Path) -> None:
    async with nats_server(tmp_path, config="max_subscriptions: 2\n") as server:
        routes = [core_route(f"in.{number}", "out", name=f"route{number}") for number in range(2)]
        async with watched(settings(server.url, routes=routes)) as watch:
            live = watch.router
            await eventually(lambda: sorted(route.state for route in live.routes) == [FAILED, RUNNING])
            server.write_config(server._base + "max_subscriptions: 10\n")
            await server.restart()
            await eventually(lambda: all(route.state == RUNNING for route in live.routes))


async def test_a_stream_route_without_room_for_answers_names_them(tmp_path: Path) -> None:
    async with nats_server(tmp_path, config="max_subscriptions: 1\n") as server:
        stream = {"name": "stream", "from": {"stream": "IN", "durable": "d"}, "to": [{"subject": "out"}]}
        async with watched(settings(server.url, routes=[stream])) as watch:
            refused = await watch.until("NATS_SUBSCRIBE_ERROR")
            assert refused.reason == "max_subscriptions"
            assert "the answers of the JetStream API" in refused.detail
            server.write_config(server._base + "max_subscriptions: 10\n")
            await server.restart()
            async with connect(server.url) as client:
                await JetStream(client).create_stream("IN", ["in.*"])
                await eventually(lambda: watch.router.routes[0].state == RUNNING)


async def test_a_stream_route_without_room_for_its_inbox_fails_alone(tmp_path: Path) -> None:
    """There is room for PubAcks, the answers of the API, and the core route."""
    async with nats_server(tmp_path, config="max_subscriptions: 3\n") as server, connect(server.url) as setup:
        await JetStream(setup).create_stream("IN", ["in.*"])
        stream = {"name": "stream", "from": {"stream": "IN", "durable": "d"}, "to": [{"subject": "out"}]}
        routes = [core_route("in.1", "out.1", name="core"), stream]
        async with watched(settings(server.url, routes=routes)) as watch, connect(server.url) as client:
            core, other = watch.router.routes
            await eventually(lambda: core.state == RUNNING and other.state == FAILED)
            heard = await client.subscribe("out.1")
            await client.publish("in.1", b"x")
            await heard.next()
            await watch.until("NATS_SUBSCRIBE_ERROR", 2)
            assert watch.of("NATS_SUBSCRIBE_ERROR")[0].reason == "max_subscriptions"
            assert not watch.of("NATS_CONNECTION_LOST")


@pytest.mark.parametrize("error", ["Something New", "Invalid Subject", "Permissions Violation for Publish with Reply"])
async def test_an_error_that_the_server_survives_does_not_end_the_link(error: str) -> None:
    """Only the server's closing ends the link; then its error is the reason."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        close = trio.Event()

        async def serve(stream: trio.SocketStream) -> None:
            await stream.send_all(b'INFO {"max_payload": 1048576, "headers": true}\r\n')
            nursery.start_soon(answer, stream)
            await trio.sleep(0.3)
            await stream.send_all(f"-ERR '{error}'\r\n".encode())
            await close.wait()
            await stream.aclose()

        async def answer(stream: trio.SocketStream) -> None:
            try:
                async for data in stream:
                    await stream.send_all(b"PONG\r\n" * data.count(b"PING\r\n"))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

        nursery.start_soon(trio.serve_listeners, serve, listeners)
        url = f"nats://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        async with watched(settings(url)) as watch:
            await trio.sleep(0.8)
            assert not watch.of("NATS_CONNECTION_LOST")
            receipt = await watch.router.publish("out", b"x")
            assert (await receipt.settled()).name == "fenced"
            close.set()
            lost = await watch.until("NATS_CONNECTION_LOST")
            assert (error in lost.detail) == (error == "Something New")
        nursery.cancel_scope.cancel()
