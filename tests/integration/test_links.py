"""Links to real servers: how names are resolved, how links are cancelled, and that they leave nothing behind."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from router_trio.embedded import HOST, reserve_port
from router_trio.errors import LinkError, SourceError
from router_trio.link import Link
from tests.integration.dial import link_to, refused, until_no_client, works
from tests.support.certificates import Certificates
from tests.support.eventually import eventually
from tests.support.proxy import TcpProxy
from tests.support.recorder import Recorder, operation
from tests.support.servers import NatsServer
from tests.support.websockets import websocket_server

# --- names ---


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 64, "x" * 64 + ".example.com"])
async def test_an_impossible_name_is_a_failure_with_its_own_reason(host: str) -> None:
    error = await refused(LinkError, f"nats://{host}:4222")
    assert error.reason == "dns"
    assert repr(host) in str(error)


async def test_a_slow_resolver_delays_no_cancellation(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answer = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()

    def slow(*question: Any) -> list[Any]:
        if question[-1] & socket.AI_NUMERICHOST:  # the check whether it is an address, which Trio doesn't wait for
            raise socket.gaierror(socket.EAI_NONAME, "not a number")
        trio.from_thread.run_sync(asked.set, trio_token=token)
        answer.wait(10)
        raise socket.gaierror(socket.EAI_NONAME, "at last")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    try:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(use, link_to("nats://nats.example.com:4222"))
                await asked.wait()
                cancelled_at = trio.current_time()
                scope.cancel()
        assert scope.cancelled_caught
        assert trio.current_time() - cancelled_at < 0.5
    finally:
        answer.set()


async def use(link: Any) -> None:
    async with link:
        await trio.sleep_forever()


async def test_a_port_without_a_listener_refuses_the_connection() -> None:
    with reserve_port() as port:
        error = await refused(LinkError, f"nats://{HOST}:{port}")
    assert error.reason == "network"
    assert "is the server running?" in str(error)


# --- cancelled in mid-life ---


@pytest.mark.parametrize(
    ("scheme", "count"), [("tls", 60), ("wss", 40), pytest.param("tls", 300, marks=pytest.mark.nightly)]
)
async def test_links_that_are_cancelled_at_any_time_leave_nothing_behind(
    tmp_path: Path, certificates: Certificates, scheme: str, count: int
) -> None:
    tls = certificates.server_config() if scheme == "tls" else ""
    async with websocket_server(tmp_path, certificates, config=tls, jetstream=False) as (server, websocket_url):
        url = server.url if scheme == "tls" else websocket_url
        await works(url, tls_ca_file=certificates.ca)
        before = busy_threads(), descriptors(), tasks()
        for number in range(count):
            # From the first microseconds of the dial to a link in use.
            with trio.move_on_after((number % 20) * 0.004):
                async with link_to(url, tls_ca_file=certificates.ca) as link:
                    await link.subscribe("echo", Recorder())
                    while True:
                        await link.send([operation(1, b"echo", b"x" * 10_000)])
                        await link.fence()
        # A thread that reads files for a cancelled dial ends on its own.
        await eventually(lambda: busy_threads() <= before[0])
        assert descriptors() <= before[1]
        assert tasks() == before[2]
        await until_no_client(server)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def busy_threads() -> int:
    """Count threads, except for idle workers, which Trio keeps for ten seconds: a busy one has the name of its job."""
    return sum(not thread.name.startswith("Trio thread") for thread in threading.enumerate())


def tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


@pytest.mark.parametrize("moment", ["dialling", "blackholed", "sending"])
async def test_a_link_is_cancelled_at_once_whatever_the_peer_does(proxy: TcpProxy, moment: str) -> None:
    if moment == "dialling":
        proxy.blackhole()
    began: Callable[[], bool] = lambda: proxy.open_connections > 0  # noqa: E731 - one of three
    ready = trio.Event()

    async def live() -> None:
        async with link_to(proxy.url) as link:
            if moment != "dialling":
                proxy.blackhole()
            ready.set()
            while True:
                if moment == "sending":
                    await link.send([operation(1, b"x", b"x" * 500_000)])
                else:
                    await link.fence()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(live)
        await eventually(began)
        if moment != "dialling":
            await ready.wait()
        if moment == "sending":
            await trio.sleep(0.2)
        cancelled_at = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - cancelled_at < 0.5


# --- lookups of routes, which may outlive their link ---


@pytest.mark.parametrize("ends", ["killed", "left"])
async def test_lookups_that_outlive_their_link_raise_link_errors(ends: str, server: NatsServer) -> None:
    failed: list[str] = []

    async def look_up(link: Link) -> None:
        with pytest.raises(LinkError) as caught:
            await link.newest("ORDERS", "orders.1")
        failed.append(caught.value.reason)

    async with trio.open_nursery() as nursery:
        with suppress(LinkError):
            async with link_to(server.url) as link:
                with pytest.raises(SourceError):
                    await link.newest("ORDERS", "orders.1")  # there is no such stream; the client for lookups runs now
                server.stop()
                for _ in range(3):
                    nursery.start_soon(look_up, link)
                await wait_all_tasks_blocked(0.05)
                if ends == "killed":
                    await server.kill()
                    await trio.sleep_forever()
    assert failed == ["not_connected"] * 3
    await look_up(link)


async def test_a_lookup_raises_a_link_error_if_its_link_ends_before_its_client_runs(server: NatsServer) -> None:
    async with trio.open_nursery() as nursery, link_to(server.url) as link:
        nursery.start_soon(_fails, link)
    await _fails(link)


async def _fails(link: Link) -> None:
    with pytest.raises(LinkError):
        await link.newest("ORDERS", "orders.1")
