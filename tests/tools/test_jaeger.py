"""The view of a real router in a real Jaeger: one chain from producer to consumer, and an outage as one trace."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.tools import tool
from tests.tools.hop import Hop, hop

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENDPOINT", "TRACES_ENDPOINT", "COMPRESSION", "TIMEOUT", "HEADERS"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)


@pytest.fixture(name="hop")
async def _hop(tmp_path: Path) -> AsyncIterator[Hop]:
    async with hop(tool("jaeger"), tmp_path) as running:
        yield running


async def test_producer_router_over_two_connections_and_consumer_are_one_chain(hop: Hop) -> None:
    await hop.send_one()
    spans = await hop.collector.trace("shop", "send orders.7", 4)
    assert [(one.service, one.name, one.kind) for one in spans] == [
        ("shop", "send orders.7", "producer"),
        ("orders-router", "process eu", "consumer"),
        ("orders-router", "send eu.{{wildcard(1)}}", "producer"),
        ("billing", "process eu.7", "consumer"),
    ]
    assert [one.parent_id for one in spans] == ["", *(one.span_id for one in spans[:-1])]
    assert spans[2].warnings == [], "what the router sends lies within what it processes"
    assert spans[2].tags["router.connection"] == "core"
    assert spans[2].tags["messaging.system"] == "nats"
    assert await hop.collector.services() == ["billing", "orders-router", "shop"]


async def test_an_outage_is_one_trace_that_contains_its_attempts_and_its_drain(hop: Hop) -> None:
    watch = await hop.break_and_mend(100)
    attempts, failed = len(watch.of("NATS_RECONNECT_ATTEMPT")), len(watch.of("NATS_CONNECTION_FAILED"))
    outage, drain = await hop.collector.trace("orders-router", "nats outage", 2)
    assert (outage.name, outage.parent_id) == ("nats outage", "")
    assert (drain.name, drain.parent_id) == ("drain", outage.span_id)
    assert outage.begin <= drain.begin <= drain.end <= outage.end
    assert all(outage.begin <= at <= outage.end for at in outage.event_times)
    assert outage.events.count("reconnect attempt") == attempts >= 3
    assert outage.events.count("attempt failed") == failed >= 2
    assert outage.events[-1] == "restored"
    assert drain.tags["router.success_count"] == drain.tags["router.pending_count"] == 100
    assert (outage.warnings, drain.warnings) == ([], []), "such as clocks that do not fit"
