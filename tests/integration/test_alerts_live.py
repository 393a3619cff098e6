"""An outage, as the people on call see it: a real router, a real Prometheus, a real Alertmanager, and a webhook.

The rules are the project's own, with shorter durations. The durations are printed (`pytest -s`).
"""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import trio

from router_trio.embedded import HOST, reserve_port
from tests.alerts.monitoring import FASTER, Monitoring, monitoring, programs
from tests.support.command import running
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer, nats_server

QUEUE = 10

CONFIG = """
[telemetry]
listen = "{listen}"

[connections.source]
servers = ["{source}"]

[connections.target]
servers = ["{target}"]
reconnect_attempts = 1000
reconnect_delay = "50ms"
max_reconnect_delay = "100ms"
max_pending_operations = {queue}

[[routes]]
name = "orders"
from = {{ connection = "source", subject = "orders.*" }}
to = [ {{ connection = "target", subject = "eu.{{{{wildcard(1)}}}}" }} ]
"""


async def publish_every(url: str, seconds: float) -> None:
    """Publish a small, steady stream of messages, until cancelled."""
    async with connect(url) as client:
        while True:
            await client.publish("orders.7", b"hello")
            await trio.sleep(seconds)


@pytest.fixture
def installed() -> tuple[str, str]:
    """Return the paths of Prometheus and Alertmanager."""
    return programs()


@pytest.mark.timeout(120)
async def test_a_killed_server_raises_an_alert_and_its_return_resolves_it(
    tmp_path: Path, installed: tuple[str, str]
) -> None:
    (tmp_path / "monitoring").mkdir()
    with reserve_port() as port:
        listen = f"{HOST}:{port}"
        async with (
            nats_server(tmp_path, jetstream=False, name="source") as source,
            nats_server(tmp_path, jetstream=False, name="target") as target,
        ):
            config = tmp_path / "router.toml"
            config.write_text(CONFIG.format(listen=listen, source=source.url, target=target.url, queue=QUEUE))
            async with running("run", config, cwd=tmp_path) as router:
                await router.has_logged("ROUTER_STARTED")
                async with monitoring(tmp_path / "monitoring", installed, [listen]) as seen:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(publish_every, source.url, 0.02)
                        await nothing_fires(seen)
                        await outage(seen, target)
                        nursery.cancel_scope.cancel()
                    router.send(signal.SIGTERM)
                    assert await router.ended() == 0
                    await seen.webhook.hears("RouterAbsent", within=20, instance=listen)


async def nothing_fires(seen: Monitoring) -> None:
    """A healthy router: messages are counted, and the rules have been evaluated for a while without an alert."""
    await seen.has("increase(router_messages_routed_total[3s]) > 0")
    await seen.has("count_over_time(connection:router_nats_reconnect_failures:ratio_rate5m[5s]) >= 8")
    assert await seen.query('ALERTS{alertstate="firing"}') == []


async def outage(seen: Monitoring, target: NatsServer) -> None:
    """Kill the destination's server, and bring it back."""
    killed = time.monotonic()
    await target.kill()
    down = await seen.webhook.hears("RouterConnectionDown", within=20, connection="target")
    # The queue is full. The connection alert would be enough, but dropped messages raise one as well.
    dropped = await seen.webhook.hears("RouterMessagesDropped", within=20, reason="queue_full")
    assert (down.receiver, dropped.receiver) == ("pager", "pager")
    assert await seen.inhibited("RouterPendingQueueHigh", within=20) == "RouterConnectionDown"
    # Every warning is a consequence of this outage: no one gets a ticket.
    assert {one.receiver for one in seen.webhook.heard if one.at >= killed} == {"pager"}

    restarted = time.monotonic()
    await target.restart()
    up = await seen.webhook.hears("RouterConnectionDown", "resolved", within=20, connection="target")
    over = await seen.webhook.hears("RouterMessagesDropped", "resolved", within=30, reason="queue_full")

    print(f"\nwith every duration of the rules divided by {FASTER}, after the kill:")
    print(f"{down.at - killed:6.1f} s  RouterConnectionDown fires (for: 1m)")
    print(f"{dropped.at - killed:6.1f} s  RouterMessagesDropped fires")
    print("after the restart:")
    print(f"{up.at - restarted:6.1f} s  RouterConnectionDown resolves")
    print(f"{over.at - restarted:6.1f} s  RouterMessagesDropped resolves (window: 10m)")
