"""The regression guard of the data plane: instructions per message, and their growth. Never seconds.

Each bound is a tenth above the count of the most expensive version of Python. A change that makes the data plane leaner
lowers it; a change that has to raise it explains why.
"""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from trio.testing import MockClock

from router_trio import Message
from router_trio.protocol.websocket import FrameReader, FrameWriter
from router_trio.telemetry.traces.tracer import Traces
from tests.performance.instructions import Bench, core_route, instructions, stream_route
from tests.support.compiled import looks_inside
from tests.support.websockets import BINARY, server_frame

pytestmark = looks_inside

MESSAGES = 1000
SCALE = Path(__file__).parents[2] / "docs" / "explanation" / "scale.md"


def a_message(run: Callable[[], None], messages: int = MESSAGES) -> float:
    """Return the instructions for each of the messages that `run` takes."""
    run()  # the caches of subjects are empty the first time
    return instructions(run) / messages


async def shout(message: Message) -> Message:
    return message.replace(payload=message.payload.upper())


async def test_core_to_core() -> None:
    assert a_message(Bench(1).core(MESSAGES)) < 160


@pytest.mark.parametrize(("size", "most"), [(100, 145), (1_000, 200), (70_000, 200)])
def test_a_websocket_costs_the_same_for_one_message_as_for_many(size: int, most: int) -> None:
    """Each read and each write has the costs of a frame, whatever it holds."""
    payload = b"x" * size
    frame = server_frame(BINARY, payload)
    reader, writer = FrameReader(), FrameWriter(masking=False)
    assert reader.feed(frame) == payload
    assert instructions(lambda: reader.feed(frame)) <= most
    assert instructions(lambda: writer.write_some(payload, len)) < 110


async def test_through_a_handler() -> None:
    assert a_message(Bench(1).handled(MESSAGES, shout)) < 267


@pytest.mark.parametrize(("handler", "more"), [(False, 14), (True, 22.8)])
async def test_one_in_a_hundred_is_traced(handler: bool, more: float) -> None:
    """A traced message costs more, but adds nothing to the others of its batch. Its trace learns its fate."""
    exporter = InMemorySpanExporter()
    traces = Traces(service_name="bench", sample_ratio=0.01, exporter=lambda _: exporter, random=Random(7))
    async with traces.running():
        await traces.begin_export()
        without, with_traces = Bench(1), Bench(1, tracing=traces)
        runs = [bench.handled(MESSAGES, shout) if handler else bench.core(MESSAGES) for bench in (without, with_traces)]
        assert a_message(runs[1]) < a_message(runs[0]) + more


class Tapped:
    """The taps on a route, which want no message now: beyond their rate, or not read."""

    def room(self, count: int) -> int:
        return 0

    def follow(self, raw: Any, span: Any) -> Any:
        raise AssertionError("there is no room for a message")


@pytest.mark.parametrize("kind", ["core", "handled", "stream"])
async def test_a_tap_that_wants_no_message_costs_next_to_nothing(kind: str) -> None:
    without, tapped = (Bench(1, stream=kind == "stream") for _ in range(2))
    more = (shout,) if kind == "handled" else ()
    runs = [getattr(bench, kind)(MESSAGES, *more) for bench in (without, tapped)]
    tapped.routings[0].tracing.follow_by(Tapped())
    assert a_message(runs[1]) < a_message(runs[0]) * 1.025


async def test_stream_to_stream() -> None:
    assert a_message(Bench(1, stream=True).stream(MESSAGES)) < 630


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the page has the counts of Python 3.11")
async def test_the_page_of_scale_contains_the_counted_figures() -> None:
    runs = (
        Bench(1).core(MESSAGES),
        Bench(1).handled(MESSAGES, shout),
        Bench(1, stream=True).stream(MESSAGES),
    )
    (row,) = re.findall(r"^\| \*\*all\*\* \| (.+) \|$", SCALE.read_text(encoding="utf-8"), re.MULTILINE)
    shown = [int(number) for number in re.findall(r"\d+", row)]
    assert shown == pytest.approx([a_message(run) for run in runs], rel=0.03)


@pytest.mark.parametrize(("covers", "more"), [(True, 9), (False, 80)])
async def test_whether_a_puback_counts_costs_a_lookup_where_a_stream_takes_all_of_a_destination(
    covers: bool, more: float
) -> None:
    """Otherwise the subject is looked up; the result, whether the stream takes it, is cached."""
    believing, asking = Bench(1, stream=True), Bench(1, stream=True)
    (to,) = stream_route()["to"]
    asking.outbox.belief.begin_link()
    asking.outbox.belief.learn({"OUT": ("out.>",)}, {"OUT": [("r", to["subject"])] if covers else []})
    assert a_message(asking.stream(MESSAGES)) < a_message(believing.stream(MESSAGES)) + more


FLOW: dict[str, dict[str, Any]] = {
    "limit": {"limit": {"rate": "1000000/s", "burst": 1_000_000}},
    "breaker": {"breaker": {"failures": 5, "pause": "10s"}},
}


# There is no breaker for core destinations: only a stream reports whether it took a message.
@pytest.mark.parametrize(("flow", "stream"), [("limit", False), ("limit", True), ("breaker", True)])
async def test_an_idle_limit_or_breaker_costs_nothing(flow: str, stream: bool) -> None:
    """It costs next to nothing: it is consulted for each read."""
    route = stream_route() if stream else core_route(0)
    held = copy.deepcopy(route)
    (held if flow == "limit" else held["to"][0]).update(FLOW[flow])
    without, with_flow = Bench(1, routes=[route]), Bench(1, routes=[held])
    runs = [bench.stream(MESSAGES) if stream else bench.core(MESSAGES) for bench in (without, with_flow)]
    assert a_message(runs[1]) < a_message(runs[0]) * 1.02


async def test_published_by_a_program(mock_clock: MockClock) -> None:
    """The clock stands still: messages accepted at one time stay together."""
    assert a_message(Bench(1).published(900), 900) < 385


@pytest.mark.parametrize(("routes", "times"), [(10, 1.18), (100, 1.25), (1000, 1.7)])
async def test_many_routes_that_get_messages_in_turn(routes: int, times: float) -> None:
    one, many = a_message(Bench(1).core(MESSAGES)), a_message(Bench(routes).core(MESSAGES))
    assert many < one * times


@pytest.mark.parametrize("stream", [False, True])
async def test_a_large_batch_costs_no_more_a_message_than_a_small_one(stream: bool, mock_clock: MockClock) -> None:
    """The clock stands still: otherwise the destination seems slow on a busy machine, and is held back."""
    small, large = Bench(1, stream=stream), Bench(1, stream=stream)
    runs = (small.stream(100), large.stream(3000)) if stream else (small.core(100), large.core(3000))
    assert a_message(runs[1], 3000) < a_message(runs[0], 100) * 1.1


async def test_counting_twice_gives_the_same_figures() -> None:
    run = Bench(1).core(MESSAGES)
    run()
    assert instructions(run) == instructions(run) > MESSAGES
