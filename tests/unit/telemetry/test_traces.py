"""Traces: which messages are sampled, and which spans are dropped when the collector is down."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from math import inf

import pytest
import trio
import trio.testing
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from router_trio.protocol.framing import publish_prefix
from router_trio.routing.tracing import NoTracing, Tracing
from router_trio.telemetry.traces.spans import MAX_QUEUED
from router_trio.telemetry.traces.traceparent import parse, write
from router_trio.telemetry.traces.tracer import BURST_SECONDS, Traces, traces_wanted
from tests.performance.instructions import instructions
from tests.support.compiled import looks_inside
from tests.support.measured import needs_full_speed
from tests.unit.telemetry.traces import SPAN, TRACE, Recorded, begin, carrying, received, recording

# --- sampling ---


@pytest.mark.parametrize("flags", ["01", "03", "ff"])
async def test_a_message_with_a_sampled_parent_is_traced(flags: str) -> None:
    async with recording(ratio=0.0) as recorded:
        begin(recorded.traces, carrying(f"00-{TRACE}-{SPAN}-{flags}")).end(0.25)
    span = recorded.spans()["process eu"]
    assert f"{span.context.trace_id:032x}" == TRACE
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == SPAN
    assert span.parent.is_remote


@pytest.mark.parametrize("flags", ["00", "02"])
async def test_a_message_with_an_unsampled_parent_is_not_traced(flags: str) -> None:
    async with recording() as recorded:
        assert recorded.traces.sampled([carrying(f"00-{TRACE}-{SPAN}-{flags}")]) == []
    assert recorded.spans() == {}


async def test_the_header_is_also_found_as_go_clients_spell_it() -> None:
    async with recording(ratio=0.0) as recorded:
        begin(recorded.traces, carrying(f"00-{TRACE}-{SPAN}-01", name="Traceparent")).end(0.25)
    assert f"{recorded.spans()['process eu'].context.trace_id:032x}" == TRACE


@pytest.mark.parametrize(
    "invalid",
    [
        "",
        "x",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}",
    ],
)
async def test_an_invalid_traceparent_is_ignored(invalid: str) -> None:
    assert parse(invalid.encode()) is None
    async with recording(ratio=1.0) as always:
        begin(always.traces, carrying(invalid)).end(0.25)
    assert always.spans()["process eu"].parent is None
    async with recording(ratio=0.0) as never:
        assert never.traces.sampled([carrying(invalid)]) == []


def test_a_traceparent_of_a_later_version_may_have_more_fields() -> None:
    parent = parse(f"01-{TRACE}-{SPAN}-01-more".encode())
    assert parent is not None
    assert parent.sampled
    assert write(*parent) == f"00-{TRACE}-{SPAN}-01".encode()


@pytest.mark.parametrize(
    ("ratio", "least", "most"),
    [(0.0, 0, 0), (1e-18, 0, 0), (0.01, 150, 250), (0.5, 9700, 10300), (1.0, 20000, 20000)],
)
async def test_the_sample_ratio_is_the_share_of_messages_that_start_a_trace(
    ratio: float, least: int, most: int
) -> None:
    async with recording(ratio=ratio) as recorded:
        skips = recorded.traces._skip
        assert least <= sum(len(skips.among(1)) for _ in range(20_000)) <= most


@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.3, 1.0])
async def test_a_batch_is_sampled_like_its_messages_one_by_one(ratio: float) -> None:
    """Sampling depends on the random numbers alone, not on the batch sizes, with and without headers."""
    plain, other = received(), received(headers={"Other": "x"})
    sizes = [1, 2, 64, 0, 7, 500, 3, 1000] * 10
    async with recording(ratio, inf) as singly, recording(ratio, inf) as batched, recording(ratio, inf) as mixed:
        expected = [singly.traces._skip.among(1) == [0] for _ in range(sum(sizes))]
        for recorded, messages in ((batched, [plain]), (mixed, [plain, other])):
            sampled: list[bool] = []
            for size in sizes:
                batch = (messages * size)[:size]
                found = recorded.traces.sampled(batch)
                sampled += [index in found for index in range(size)]
                assert list(found) == sorted(found)
            assert sampled == expected


async def test_the_sample_ratio_holds_over_many_batches() -> None:
    async with recording(ratio=0.01, max_per_second=inf) as recorded:
        batch = [received()] * 50
        found = sum(len(recorded.traces.sampled(batch)) for _ in range(20_000))
    # Of a million messages 1 %: three standard deviations are 300.
    assert abs(found - 10_000) < 300


async def test_in_a_batch_a_parent_decides_for_its_own_message_only() -> None:
    yes, no = carrying(f"00-{TRACE}-{SPAN}-01"), carrying(f"00-{TRACE}-{SPAN}-00", name="Traceparent")
    plain, broken = received(), carrying("x")
    mention = received(b"traceparent: x", headers={"Other": f"traceparent: 00-{TRACE}-{SPAN}-01"})
    batch = [plain, yes, no, broken, yes, no, mention]
    async with recording(ratio=0.0) as never:
        assert never.traces.sampled(batch) == [1, 4]
        trace = never.traces.begin("eu", "orders.*", yes)
        assert trace is not None
        trace.end(0.25)
    assert f"{never.spans()['process eu'].context.trace_id:032x}" == TRACE
    async with recording(ratio=1.0) as always:
        assert always.traces.sampled(batch) == [0, 1, 3, 4, 6]
        assert always.traces.sampled([no] * 5) == []


async def test_frames_are_sampled_like_their_messages() -> None:
    yes, no = carrying(f"00-{TRACE}-{SPAN}-01"), carrying(f"00-{TRACE}-{SPAN}-00", name="Traceparent")
    mention = received(b"\r\ntraceparent: x\r\n\r\n", headers={"Other": "x"})
    for batch in ([], [received()] * 300, [received(), yes, no, mention, carrying("x"), yes] * 50):
        frames = [(b"H" if raw[2] else b"") + publish_prefix(b"out") + raw[4] for raw in batch]
        async with recording(ratio=0.1) as one, recording(ratio=0.1) as other:
            assert [*one.traces.sampled_frames(frames)] == [*other.traces.sampled(batch)]
    async with recording(ratio=0.1) as one, recording(ratio=0.1) as other:
        assert [*one.traces.sampled_plain(300)] == [*other.traces.sampled([received()] * 300)] != []


async def test_at_most_max_traces_per_second_of_sampled_parents_are_traced(
    autojump_clock: trio.testing.MockClock,
) -> None:
    yes, plain = carrying(f"00-{TRACE}-{SPAN}-01"), received()
    frame = b"H" + publish_prefix(b"out") + yes[4]
    bound = 100
    async with recording(ratio=0.0) as recorded:
        traces = recorded.traces
        assert traces.sampled([yes, plain] * (bound // 2)) == list(range(0, bound, 2))
        assert len(traces.sampled_frames([frame] * bound)) == bound // 2
        assert (traces.sampled([yes] * 3), traces.not_followed) == ([], bound // 2 + 3)
        await trio.sleep(0.1)
        assert len(traces.sampled([yes] * bound)) == bound // 10
        await trio.sleep(3600)
        assert len(traces.sampled([yes] * 3 * bound)) == bound


async def test_at_most_max_traces_per_second_are_started_over_ten_seconds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    plain, most = received(), int(100 * BURST_SECONDS)
    frames = [publish_prefix(b"out") + plain[4]] * most
    async with recording(ratio=0.9) as recorded:
        traces = recorded.traces
        begun = len(traces.sampled_plain(most))
        assert (begun < most, traces.not_begun) == (True, 0)
        begun += len(traces.sampled([plain] * most)) + len(traces.sampled_frames(frames))
        assert begun == most
        assert most < traces.not_begun < 2 * most
        await trio.sleep(1)
        assert len(traces.sampled_plain(most)) == 100
        await trio.sleep(3600)
        assert len(traces.sampled_plain(2 * most)) == most


async def test_sampled_parents_and_started_traces_have_separate_limits(autojump_clock: trio.testing.MockClock) -> None:
    yes, plain = carrying(f"00-{TRACE}-{SPAN}-01"), received()
    async with recording(ratio=1.0) as recorded:
        recorded.traces.sampled([yes] * 1000)
        assert len(recorded.traces.sampled([plain] * 1000)) == 1000
        assert recorded.traces.sampled([yes, plain]) == [1]


async def test_a_message_without_a_parent_does_not_read_the_clock() -> None:
    def clock() -> float:
        raise AssertionError("the clock was read")

    traces = Traces(service_name="x", sample_ratio=0.0, exporter=lambda _: InMemorySpanExporter(), clock=clock)
    async with traces.running():
        traces.sampled([received(), received(headers={"Other": "x"}), carrying(f"00-{TRACE}-{SPAN}-00")])


async def test_no_batch_is_sampled_outside_of_running() -> None:
    recorded = Recorded()
    assert list(recorded.traces.sampled([received()])) == []
    assert list(recorded.traces.sampled_frames([b"PUB out 0\r\n\r\n"])) == []
    assert list(recorded.traces.sampled_plain(1000)) == []
    assert recorded.traces.begin("eu", "orders.*", received()) is None


@looks_inside
@needs_full_speed
async def test_a_batch_without_headers_costs_less_than_its_messages_one_by_one() -> None:
    batch = [received()] * 256
    async with recording(ratio=1e-18) as recorded:
        traces = recorded.traces
        batched = instructions(lambda: traces.sampled(batch))
        singly = instructions(lambda: [traces.sampled((raw,)) for raw in batch])
    assert batched < singly / 3


async def test_nothing_is_sampled_outside_of_running() -> None:
    recorded = Recorded()
    raw = carrying(f"00-{TRACE}-{SPAN}-01")
    assert not recorded.traces.active
    assert recorded.traces.begin("eu", "orders.*", raw) is None
    async with recorded.traces.running():
        assert recorded.traces.active
    assert not recorded.traces.active
    assert recorded.traces.begin("eu", "orders.*", raw) is None


def test_real_and_disabled_tracing_have_the_same_interface() -> None:
    tracings: list[Tracing] = [NoTracing(), Recorded().traces]
    assert [tracing.active for tracing in tracings] == [False, False]


@pytest.mark.parametrize(
    ("endpoint", "environment", "wanted"),
    [
        ("", {}, False),
        ("http://localhost:4318", {}, True),
        ("", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"}, True),
        ("", {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://localhost:4318/v1/traces"}, True),
        ("", {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ("http://localhost:4318", {"OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_traces_are_made_if_an_endpoint_is_configured(
    monkeypatch: pytest.MonkeyPatch, endpoint: str, environment: dict[str, str], wanted: bool
) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert traces_wanted(endpoint) is wanted


# --- dropped spans ---


class StalledExporter(SpanExporter):
    """An exporter whose first export blocks until `release` is set or it is shut down."""

    def __init__(self, result: SpanExportResult) -> None:
        self.entered, self.release = threading.Event(), threading.Event()
        self._result = result
        self.exported = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.entered.set()
        assert self.release.wait(10)
        self.exported += len(spans)
        return self._result

    def shutdown(self) -> None:
        self.release.set()


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("result", list(SpanExportResult))
async def test_dropped_spans_are_counted(result: SpanExportResult, early: bool) -> None:
    """Also spans that end before the SDK has been imported."""
    exporter = StalledExporter(result)
    traces = Traces(service_name="r", sample_ratio=1.0, exporter=lambda _: exporter)
    total = MAX_QUEUED + 500
    async with traces.running():
        if not early:
            await traces.begin_export()
        for _ in range(total):
            begin(traces, received()).end(0.25)
        assert traces.dropped == 500
        exporter.release.set()
    assert exporter.exported == MAX_QUEUED
    assert traces.dropped == (500 if result is SpanExportResult.SUCCESS else total)


async def test_an_exporter_that_can_not_be_created_is_logged_and_drops_spans(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(endpoint: str) -> SpanExporter:
        raise ValueError("s3cret")

    traces = Traces(service_name="r", sample_ratio=1.0, exporter=refuse)
    async with traces.running():
        begin(traces, received()).end(0.25)
        await traces.begin_export()
        assert not traces.active
        assert traces.dropped == 1
    [message] = caplog.messages
    assert message.startswith("no spans are exported: OpenTelemetry's exporter can't be created (ValueError); correct ")


async def test_an_exporter_that_raises_drops_spans_only() -> None:
    class Broken(InMemorySpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            raise RuntimeError("broken")

    traces = Traces(service_name="r", sample_ratio=1.0, exporter=lambda _: Broken())
    async with traces.running():
        begin(traces, received()).end(0.25)
    assert traces.dropped == 1


async def test_leaving_takes_bounded_time_if_the_collector_hangs() -> None:
    exporter = StalledExporter(SpanExportResult.SUCCESS)
    traces = Traces(service_name="r", sample_ratio=1.0, exporter=lambda _: exporter)
    started = time.perf_counter()
    async with traces.running():
        begin(traces, received()).end(0.25)
    assert 1.0 < time.perf_counter() - started < 2.5
    assert exporter.release.is_set()
    assert traces.dropped == 0
