"""The TCP proxy of the tests: how it cuts, holds back and delays."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from router_trio.embedded import HOST
from tests.support.proxy import TcpProxy
from tests.support.raw_nats import RawNatsClosed, connect
from tests.support.servers import NatsServer


class TestProxy:
    async def test_passes_everything_on_and_counts(self, proxy: TcpProxy) -> None:
        async with connect(proxy.url) as client, connect(proxy.url) as other:
            subscription = await other.subscribe("a")
            await client.publish("a", bytes(500_000))
            assert (await subscription.next()).payload == bytes(500_000)
            assert proxy.connections == proxy.open_connections == 2
            assert proxy.bytes_to_server > 500_000
            assert proxy.bytes_to_client > 500_000

    async def test_cut_ends_connections_but_not_the_next(self, proxy: TcpProxy, server: NatsServer) -> None:
        async with connect(proxy.url) as client:
            proxy.cut()
            await client.closed()
            assert proxy.open_connections == 0
            with pytest.raises(RawNatsClosed):
                await client.ping()
        async with connect(proxy.url):
            assert (await server.varz())["connections"] == 1

    async def test_reset_reaches_the_client_as_a_reset(self, proxy: TcpProxy) -> None:
        async with await trio.open_tcp_stream(HOST, proxy.port) as stream:
            await stream.receive_some()
            proxy.reset()
            with pytest.raises(trio.BrokenResourceError) as caught:
                await stream.receive_some()
            assert isinstance(caught.value.__cause__, ConnectionResetError)

    @pytest.mark.parametrize("direction", ["both", "to_server"])
    async def test_a_blackhole_holds_data_until_cleared(
        self, proxy: TcpProxy, server: NatsServer, direction: str
    ) -> None:
        async with connect(proxy.url) as client, connect(server.url) as witness:
            seen = await witness.subscribe("a")
            proxy.blackhole("both" if direction == "both" else "to_server")
            await client.publish("a", b"held")
            with pytest.raises(trio.TooSlowError):
                await client.ping(within=0.1)
            await witness.ping()
            assert seen.waiting() == []
            proxy.clear()
            assert (await seen.next()).payload == b"held"
            await client.ping()

    async def test_a_blackhole_towards_the_client_only(self, proxy: TcpProxy, server: NatsServer) -> None:
        async with connect(proxy.url) as client, connect(server.url) as witness:
            seen = await witness.subscribe("a")
            proxy.blackhole("to_client")
            await client.publish("a", b"through")
            assert (await seen.next()).payload == b"through"
            with pytest.raises(trio.TooSlowError):
                await client.ping(within=0.1)

    async def test_a_blackhole_hides_the_end_of_the_server(self, proxy: TcpProxy, server: NatsServer) -> None:
        async with connect(proxy.url) as client:
            proxy.blackhole()
            await server.kill()
            with pytest.raises(trio.TooSlowError):
                await client.ping(within=0.1)
            proxy.clear()
            await client.closed()

    async def test_delay_is_a_round_trip_and_clear_ends_it(self, proxy: TcpProxy) -> None:
        async with connect(proxy.url) as client:
            proxy.delay(0.1)
            start = trio.current_time()
            await client.ping()
            assert trio.current_time() - start >= 0.2
            proxy.delay(60)
            with trio.fail_after(10):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(client.ping)
                    await trio.testing.wait_all_tasks_blocked(0.02)
                    proxy.clear()

    async def test_throttle_limits_the_rate(self, proxy: TcpProxy) -> None:
        async with connect(proxy.url) as client:
            proxy.throttle(100_000, "to_server")
            start = trio.current_time()
            await client.publish("a", bytes(30_000))
            await client.ping()
            assert trio.current_time() - start >= 0.25

    async def test_cut_after_a_number_of_bytes(self, proxy: TcpProxy, server: NatsServer) -> None:
        async with connect(server.url) as witness, connect(proxy.url) as client:
            seen = await witness.subscribe("a")
            frame = b"PUB a 3\r\nabc\r\n"
            before = proxy.bytes_to_server
            proxy.cut_after(2 * len(frame) + 5, "to_server")
            await client.send(3 * frame)
            await client.closed()
            assert proxy.bytes_to_server - before == 2 * len(frame) + 5
            assert [(await seen.next()).payload, (await seen.next()).payload] == [b"abc", b"abc"]
            await witness.ping()
            assert seen.waiting() == []
            async with connect(proxy.url) as again:  # only once
                await again.send(3 * frame)
                await again.ping()

    async def test_refuse_and_accept(self, proxy: TcpProxy) -> None:
        async with connect(proxy.url) as client:
            proxy.refuse()
            with pytest.raises(OSError, match="all attempts to connect"):
                await trio.open_tcp_stream(HOST, proxy.port)
            await client.ping()
            proxy.accept()
            async with connect(proxy.url) as other:
                await other.ping()
        assert proxy.connections == 2

    async def test_outlives_its_target(self, proxy: TcpProxy, server: NatsServer) -> None:
        async with connect(proxy.url) as client:
            await server.kill()
            await client.closed()
        async with await trio.open_tcp_stream(HOST, proxy.port) as stream:
            assert await stream.receive_some() == b""
        await server.restart()
        async with connect(proxy.url) as client:
            await client.ping()
