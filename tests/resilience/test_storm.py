"""Many connections that lose the same server at the same moment: they reconnect, and not all at once."""

from __future__ import annotations

import resource
from collections import Counter, defaultdict

import pytest
import trio

from router_trio import Settings
from router_trio.connection.backoff import FIRST_RETRY_WITHIN
from router_trio.nats import handshake
from router_trio.settings import ConnectionSettings
from tests.support.eventually import eventually
from tests.support.servers import NatsServer
from tests.support.settings import settings
from tests.support.watch import Watch, watched

BUCKET = 0.1
"""Seconds."""

ATTEMPTS = 3
"""Number of attempts that every connection has begun before the server returns."""

BAR = 50

DESCRIPTORS = resource.getrlimit(resource.RLIMIT_NOFILE)[0]


@pytest.mark.parametrize(
    ("connections", "base", "longest"),
    [
        (60, 0.5, 2.0),
        pytest.param(
            500,
            1.0,
            5.0,
            marks=[
                pytest.mark.nightly,
                pytest.mark.timeout(180),
                pytest.mark.skipif(DESCRIPTORS < 500 * 4, reason="`ulimit -n` is below 2000, four a connection"),
            ],
        ),
    ],
)
async def test_connections_that_lose_one_server_reconnect_spread_over_time(
    server: NatsServer, connections: int, base: float, longest: float
) -> None:
    one = {
        "servers": [server.url],
        "reconnect_delay": base,
        "max_reconnect_delay": longest,
        "connect_timeout": 5.0,
        # A liveness fence that is late because five hundred handshakes share one core is outside of this test.
        "liveness_interval": 20.0,
    }
    config = Settings(telemetry={"listen": ""}, connections={f"c{number}": one for number in range(connections)})
    async with watched(config) as watch:
        await eventually(lambda: watch.count("NATS_CONNECTION_ESTABLISHED") == connections, 60)
        killed_at = trio.current_time()
        await server.kill()
        await eventually(lambda: len(_delays(watch)[ATTEMPTS]) == connections, 60)
        down_for = trio.current_time() - killed_at
        await server.restart()
        await eventually(
            lambda: watch.count("NATS_CONNECTION_RESTORED") == connections,
            longest + 60,
            lambda: f"{watch.count('NATS_CONNECTION_RESTORED')} of {connections} are back",
        )
    attempts = _attempts(watch, killed_at)
    outages = [event.outage_seconds for event in watch.of("NATS_CONNECTION_RESTORED")]
    tries = [event.reconnect_attempts for event in watch.of("NATS_CONNECTION_RESTORED")]
    print(f"\n{connections} connections, down for {down_for:.1f} s, {len(attempts)} attempts:")
    print(_histogram(attempts))
    print(
        f"back after {min(outages):.2f} to {max(outages):.2f} s, median {sorted(outages)[connections // 2]:.2f} s; "
        f"{min(tries)} to {max(tries)} attempts"
    )
    # The first retry is within a tenth of a second by promise; after that no two march in step. Judged by the delays
    # that were drawn: a busy machine may still start many attempts at once.
    delays = _delays(watch)
    assert max(delays[1]) <= FIRST_RETRY_WITHIN
    for number in range(2, ATTEMPTS + 1):
        assert max(Counter(int(delay / BUCKET) for delay in delays[number]).values()) <= connections * _share(base)
    # None starves: each reconnects within its last drawn delay plus the time of all the other handshakes.
    assert max(outages) < down_for + longest + connections * 0.05 + 2


async def test_a_plain_connection_does_not_load_the_certificate_authorities_of_the_system(
    core_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ConnectionSettings] = []
    monkeypatch.setattr(handshake, "tls_context", made.append)
    async with watched(settings(core_server.url)) as watch:
        assert watch.count("NATS_CONNECTION_ESTABLISHED") == 1
    assert made == [], "20 ms of the event loop for each connection that comes back"


def _attempts(watch: Watch, since: float) -> list[float]:
    """Return when each attempt began, in seconds since the server was killed."""
    return sorted(event.at - since for event in watch.of("NATS_RECONNECT_ATTEMPT"))


def _delays(watch: Watch) -> dict[int, list[float]]:
    """Return the delays before each attempt, by its number in its round."""
    delays = defaultdict(list)
    for event in watch.of("NATS_RECONNECT_ATTEMPT"):
        delays[event.attempt].append(event.delay_ms / 1000)
    return delays


def _share(base: float) -> float:
    """Return the largest share of all that one bucket may hold: twice that of an even spread below the first bound."""
    return 2 * BUCKET / base


def _histogram(attempts: list[float]) -> str:
    counts = Counter(int(at / BUCKET) for at in attempts)
    highest = max(counts.values())
    return "\n".join(
        f"{bucket * BUCKET:5.1f} s {counts[bucket]:4} {'#' * round(counts[bucket] / highest * BAR)}"
        for bucket in range(max(counts) + 1)
    )
