"""Exemplars: from a slow bucket of a histogram to the trace of a message in it, at the collector and in Prometheus."""

from __future__ import annotations

import re
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from router_trio.embedded import HOST, reserve_port
from tests.alerts.monitoring import monitoring, programs
from tests.integration.pages import Address, exchange
from tests.integration.traces import SAMPLED, TRACE
from tests.integration.workers import CONFIG, address_of
from tests.support.command import running
from tests.support.otlp_receiver import OtlpReceiver, otlp_receiver
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import RawClient, connect
from tests.support.servers import NatsServer, nats_server

ACCEPT = "application/openmetrics-text; version=1.0.0"


def configuration(folder: Path, server: NatsServer, collector: OtlpReceiver, listen: str, workers: int) -> Path:
    path = folder / "router.toml"
    text = CONFIG.replace("URL", server.url).replace("workers = 2", f"workers = {workers}")
    traced = f'otlp_endpoint = "{collector.endpoint}"\ntrace_sample_ratio = 0.0'
    path.write_text(text.replace('listen = "127.0.0.1:0"', f'listen = "{listen}"\n{traced}'))
    return path


async def prepare(client: RawClient) -> None:
    streams = JetStream(client)
    await streams.create_stream("ORDERS", ["orders.*"])
    await streams.create_stream("STORED", ["stored.*"])


async def traced_messages(client: RawClient, shown: Callable[[], Awaitable[bool]]) -> None:
    """Publish sampled messages among others until they are shown."""
    with trio.fail_after(20):
        while not await shown():
            for number in range(3):
                headers = {"traceparent": SAMPLED} if number == 1 else None
                await client.publish("orders.7", b"{}", headers=headers)
                await client.publish("in.7", b"{}", headers=headers)
            await trio.sleep(0.1)


async def exemplars(address: Address, route: str) -> list[str]:
    """Return the trace ids on the buckets of a route."""
    request = f"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: {ACCEPT}\r\nConnection: close\r\n\r\n"
    code, headers, body = await exchange(address, request.encode())
    assert (code, headers["content-type"].split(";")[0]) == (200, "application/openmetrics-text")
    assert body.endswith(b"\n# EOF\n")
    series = (
        rf'router_route_duration_seconds_bucket{{[^}}]*route="{route}",le="[^"]+"}} [0-9.]+ # {{trace_id="(\w+)"}} '
    )
    return re.findall(series, body.decode())


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_histogram_names_the_trace_that_the_collector_has(workers: int, tmp_path: Path) -> None:
    async with (
        nats_server(tmp_path) as server,
        otlp_receiver() as collector,
        connect(server.url) as client,
    ):
        await prepare(client)
        config = configuration(tmp_path, server, collector, "127.0.0.1:0", workers)
        async with running("run", config, cwd=tmp_path) as run:
            await run.has_logged("ROUTER_STARTED")
            address = await address_of(run)

            async def shown() -> bool:
                return all([await exemplars(address, route) for route in ("stored", "passed")])

            await traced_messages(client, shown)
            found = {*await exemplars(address, "stored"), *await exemplars(address, "passed")}
            assert found == {TRACE}
            run.send(signal.SIGTERM)  # the rest of the spans is exported
            assert await run.ended() == 0
        assert TRACE in {span.trace_id for span in collector.spans if span.name == "process stored"}


async def test_prometheus_stores_the_exemplars(tmp_path: Path) -> None:
    installed = programs()
    (tmp_path / "monitoring").mkdir()
    with reserve_port() as port:
        listen = f"{HOST}:{port}"
        async with (
            nats_server(tmp_path) as server,
            otlp_receiver() as collector,
            connect(server.url) as client,
        ):
            await prepare(client)
            config = configuration(tmp_path, server, collector, listen, workers=1)
            async with running("run", config, cwd=tmp_path) as run:
                await run.has_logged("ROUTER_STARTED")
                feature = "--enable-feature=exemplar-storage"
                async with monitoring(tmp_path / "monitoring", installed, [listen], feature) as seen:

                    async def stored() -> bool:
                        return bool(await seen.exemplars('router_route_duration_seconds_bucket{route="stored"}'))

                    await traced_messages(client, stored)
                    [series, *_] = await seen.exemplars('router_route_duration_seconds_bucket{route="stored"}')
                    assert series["exemplars"][0]["labels"] == {"trace_id": TRACE}
                    # The rules see the same series as before.
                    assert await seen.has('router_messages_received_total{route="stored"} > 0')
                    assert await seen.has("router_ready == 1")
