"""Network faults of the kernel: packets that are lost, late, or dropped silently.

Each test runs in a network namespace of its own, with its server and its router, so that nothing outside is affected.
That needs root and Linux, and some faults need a queueing discipline that not every kernel has.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from router_trio import Settings
from tests.resilience.chaos.load import numbers, payload, subject
from tests.resilience.chaos.verdict import out_of_order
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer, nats_server
from tests.support.settings import settings, stream_route
from tests.support.watch import assert_alive, until_stored, watched

INTERVAL = 2.0
"""The `liveness_interval` in seconds; large enough that its margin, an eighth of two, exceeds the lag of a busy
machine.
"""

MESSAGES = 2_000

_CLONE_NEWNET = 0x40000000


class Network:
    """The loopback interface of a namespace, and the fault applied to its packets. Only one at a time."""

    def netem(self, *faults: str) -> None:
        """Apply loss, delay and the like, in tc's words."""
        assert self._queue("netem", *faults)

    def congest(self) -> None:
        """Narrow the line, with a short queue: excess packets are dropped."""
        assert self._queue("tbf", "rate", "8mbit", "burst", "16kb", "limit", "24kb")

    def partition(self) -> None:
        """Drop all packets silently. The bucket is smaller than any packet."""
        assert self._queue("tbf", "rate", "8bit", "burst", "10", "limit", "10")

    def heal(self) -> None:
        """Remove the fault."""
        _ip("tc", "qdisc", "del", "dev", "lo", "root")

    def _queue(self, *discipline: str) -> bool:
        return _ip("tc", "qdisc", "replace", "dev", "lo", "root", *discipline)


@pytest.fixture
def network() -> Iterator[Network]:
    """Enter a namespace for this thread, and so for every socket and process that the test makes."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("network namespaces need Linux and root")
    if not (shutil.which("ip") and shutil.which("tc")):
        pytest.skip("`ip` and `tc` are missing: apt-get install iproute2")
    with _namespace():
        assert _ip("ip", "link", "set", "lo", "up", "mtu", "1500")
        yield Network()


@pytest.fixture
def netem(network: Network) -> Network:
    """Return a namespace on a kernel that can lose and delay packets at random."""
    if not _ip("tc", "qdisc", "replace", "dev", "lo", "root", "netem", "delay", "0ms"):
        pytest.skip("this kernel has no netem: `modprobe sch_netem`, or one that has CONFIG_NET_SCH_NETEM")
    network.heal()
    return network


@pytest.fixture
async def far_server(network: Network, tmp_path: Path) -> AsyncIterator[NatsServer]:
    """Yield a nats-server in the namespace."""
    async with nats_server(tmp_path) as running:
        yield running


async def test_a_silent_partition_is_detected_within_two_liveness_intervals(
    network: Network, far_server: NatsServer
) -> None:
    # The second connection has bytes under way when the packets stop, the first one is idle.
    one = {"servers": [far_server.url], "liveness_interval": INTERVAL, "connect_timeout": 0.5}
    config = Settings(telemetry={"listen": ""}, connections={"idle": one, "busy": one})
    async with watched(config) as watch:
        live = watch.live
        assert live is not None
        receipt = await live.publish("out", b"before", connection="busy")
        assert (await receipt.settled()).name == "fenced"
        partitioned_at = trio.current_time()
        network.partition()
        receipts = [await live.publish("out", b"x" * 100, connection="busy") for _ in range(100)]
        await watch.until("NATS_CONNECTION_LOST", times=2)
        silent = {event.connection: event.at - partitioned_at for event in watch.of("NATS_CONNECTION_LOST")}
        print(f"\nfound after {silent}, liveness_interval {INTERVAL} s")
        assert {event.reason for event in watch.of("NATS_CONNECTION_LOST")} == {"liveness"}
        assert max(silent.values()) <= 2 * INTERVAL
        assert {connection.state.gauge for connection in live.connections.values()} == {0.5}
        await watch.until("NATS_CONNECTION_FAILED")
        assert {event.reason for event in watch.of("NATS_CONNECTION_FAILED")} == {"timeout"}
        network.heal()
        await assert_alive(live)
        with trio.fail_after(10):
            assert {(await receipt.settled()).name for receipt in receipts} == {"fenced"}


async def test_packets_lost_on_a_narrow_line_cost_no_message(network: Network, far_server: NatsServer) -> None:
    await _fill(far_server)
    network.congest()
    await _route_all(network, far_server)


async def test_packets_lost_at_random_cost_no_message(netem: Network, far_server: NatsServer) -> None:
    await _fill(far_server)
    netem.netem("loss", "5%", "delay", "5ms", "3ms")
    await _route_all(netem, far_server)


async def test_a_long_round_trip_costs_time_once_and_not_per_message(netem: Network, far_server: NatsServer) -> None:
    await _fill(far_server)
    netem.netem("delay", "50ms")
    took = await _route_all(netem, far_server)
    round_trip = 0.1
    assert took < MESSAGES * round_trip / 20


async def _fill(server: NatsServer) -> None:
    async with connect(server.url) as client:
        stream = JetStream(client)
        await stream.create_stream("SOURCE", ["source.*"])
        await stream.create_stream("SINK", ["sink.*"])
        await stream.publish_many(
            [(subject("source", n), payload(n), [("Nats-Msg-Id", f"id-{n}")]) for n in range(MESSAGES)]
        )


async def _route_all(network: Network, server: NatsServer) -> float:
    """Route everything, heal the network, and check what arrived. Return the seconds that it took."""
    began = trio.current_time()
    route = stream_route("SOURCE", "sink.{{wildcard(1)}}", filter="source.*")
    async with watched(settings(server.url, routes=[route], liveness_interval=INTERVAL)) as watch:
        live = watch.live
        assert live is not None
        async with connect(server.url) as client:
            await until_stored(JetStream(client), "SINK", MESSAGES)
        took = trio.current_time() - began
        await eventually(lambda: not live.ledger()["main"]["in_flight"], 20, live.ledger)
        assert sum(live.routes[0].routed.values()) == MESSAGES
        network.heal()
        await assert_alive(live)
    async with connect(server.url) as client:
        stored = await JetStream(client).stream_messages("SINK")
    arrived = [found for message in stored for found in numbers(message.payload)]
    assert sorted(arrived) == list(range(MESSAGES))
    assert out_of_order(range(MESSAGES), arrived) == []
    return took


@contextmanager
def _namespace() -> Iterator[None]:
    """Move this thread into a new network namespace, and back."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net", "rb") as home:
        if libc.unshare(_CLONE_NEWNET):
            pytest.skip(f"no new network namespace: {os.strerror(ctypes.get_errno())}")
        try:
            yield
        finally:
            assert not libc.setns(home.fileno(), _CLONE_NEWNET), os.strerror(ctypes.get_errno())


def _ip(*command: str) -> bool:
    # Not a trio process: that would be started from a thread outside of the namespace.
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
