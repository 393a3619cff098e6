"""Merging of log lines, and writing without blocking."""

from __future__ import annotations

import json
import logging
import os
import threading
import time

import pytest
import trio
import trio.testing

from router_trio import events
from router_trio.events import Event
from router_trio.telemetry.logs.lines import Logs
from router_trio.telemetry.logs.merge import Merger
from router_trio.telemetry.logs.writer import LineWriter, write_to_stderr
from tests.unit.telemetry.logs import QUEUED, lines, logged, logs_into

# --- merging ---


async def test_per_message_events_are_merged_and_all_are_counted(autojump_clock: trio.testing.MockClock) -> None:
    sink: list[bytes] = []
    logs = logs_into(sink)
    async with logs.running(), trio.open_nursery() as nursery:
        nursery.start_soon(logs.flush_regularly)
        for number in range(3500):
            logs.write(events.PublishQueued(at=0.0, connection="main", pending_count=number))
            await trio.sleep(0.001)
        await trio.sleep(3)
        nursery.cancel_scope.cancel()
    found = lines(sink)
    assert sum(line["count"] for line in found) == 3500
    assert found[0]["count"] == 1
    assert found[-1]["pending_count"] == 3499
    assert 4 <= len(found) <= 5


async def test_the_first_event_is_logged_at_once_and_the_rest_by_the_flush(
    autojump_clock: trio.testing.MockClock,
) -> None:
    sink: list[bytes] = []
    logs = logs_into(sink)
    async with logs.running():
        logs.write(QUEUED)
        for _ in range(9):
            logs.write(QUEUED)
        logs.flush()
        await trio.sleep(0.99)
        logs.flush()
        await trio.sleep(0.02)
        logs.flush()
        logs.flush()
    assert [line["count"] for line in lines(sink)] == [1, 9]


async def test_events_are_merged_by_connection_and_code() -> None:
    other = events.PublishQueued(at=0.0, connection="edge", pending_count=1)
    full = events.QueueFull(at=0.0, connection="main", reason="rejected", queue_size=10, max_size=10)
    found = await logged(QUEUED, other, full, QUEUED)
    assert [(line["error_code"], line["connection"], line["count"]) for line in found] == [
        ("NATS_PUBLISH_QUEUED", "main", 1),
        ("NATS_PUBLISH_QUEUED", "edge", 1),
        ("NATS_QUEUE_FULL", "main", 1),
        ("NATS_PUBLISH_QUEUED", "main", 1),
    ]


async def test_a_merged_line_counts_each_reason() -> None:
    def failed(reason: str) -> Event:
        return events.PublishFailed(at=0.0, connection="main", reason=reason)

    found = await logged(failed("too_large"), failed("too_large"), failed("permission_denied"))
    assert [line["count"] for line in found] == [1, 2]
    assert "reasons" not in found[0]
    assert found[1]["reasons"] == {"too_large": 1, "permission_denied": 1}


async def test_counts_of_events_are_summed() -> None:
    def dropped(count: int) -> Event:
        return events.PendingDropped(at=0.0, connection="main", reason="expired", count=count)

    assert [line["count"] for line in await logged(dropped(5), dropped(7), dropped(11))] == [5, 18]


async def test_events_that_can_not_happen_per_message_are_never_merged() -> None:
    attempt = events.ReconnectAttempt(at=0.0, connection="m", server="s", attempt=1, max_attempts=2, delay_ms=1)
    assert len(await logged(*[attempt] * 5)) == 5


def test_the_merger_forgets_quiet_keys() -> None:
    now = 0.0
    merger: Merger[str] = Merger(lambda: now)
    for number in range(100):
        merger.offer(number, "once")
    now = 1.5
    assert merger.due() == []
    assert not merger._windows


# --- the writer ---


async def test_a_stalled_output_drops_lines_and_never_blocks() -> None:
    released, entered = threading.Event(), threading.Event()
    written: list[bytes] = []

    def stalled(data: bytes) -> None:
        entered.set()
        assert released.wait(10)
        written.append(data)

    writer = LineWriter(stalled, max_lines=10)
    async with writer.writing():
        writer.put("first")
        assert await trio.to_thread.run_sync(entered.wait, 10)
        for number in range(1000):
            writer.put(f"line {number}")
        assert not written, "the output is still stalled, and no line has waited for it"
        assert writer.dropped == 990
        released.set()
    assert b"".join(written).splitlines() == [b"first", *(b"line %d" % number for number in range(10))]
    assert writer.dropped == 990


async def test_leaving_takes_bounded_time_if_the_output_stays_stalled() -> None:
    released, entered = threading.Event(), threading.Event()
    written: list[bytes] = []

    def stalled(data: bytes) -> None:
        entered.set()
        released.wait(30)
        written.append(data)

    writer = LineWriter(stalled)
    started = time.perf_counter()
    try:
        async with writer.writing():
            writer.put("in the write")
            assert await trio.to_thread.run_sync(entered.wait, 10)
            writer.put("behind it")
        assert time.perf_counter() - started > 0.9, "the output has had its time"
        assert not written, "the output is still stalled, and the writer has not waited for it"
        assert writer.dropped == 2
    finally:
        released.set()


async def test_leaving_flushes_also_when_cancelled() -> None:
    sink: list[bytes] = []
    writer = LineWriter(sink.append)
    with trio.CancelScope() as scope:
        async with writer.writing():
            scope.cancel()
            for number in range(500):
                writer.put(str(number))
    assert b"".join(sink).splitlines() == [b"%d" % number for number in range(500)]
    assert writer.dropped == 0


async def test_lines_before_running_are_written_then_and_lines_after_it_count_as_dropped() -> None:
    sink: list[bytes] = []
    writer = LineWriter(sink.append)
    writer.put("before")
    async with writer.writing():
        pass
    writer.put("after")
    assert sink == [b"before\n"]
    assert writer.dropped == 1


async def test_lines_for_a_closed_output_count_as_dropped() -> None:
    def broken(data: bytes) -> None:
        raise BrokenPipeError

    writer = LineWriter(broken)
    async with writer.writing():
        writer.put("one")
        writer.put("two")
    assert writer.dropped == 2


async def test_lines_reach_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    async with Logs().running():
        logging.getLogger("nats").warning("over stderr")
    assert json.loads(capfd.readouterr().err)["message"] == "over stderr"


def test_a_full_non_blocking_pipe_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with os.fdopen(writer, "w") as stream, os.fdopen(reader, "rb") as source:
        monkeypatch.setattr("sys.stderr", stream)
        data = b"x" * 300_000
        got: list[bytes] = []
        thread = threading.Thread(target=lambda: got.append(source.read(len(data))))
        thread.start()
        write_to_stderr(data)
        thread.join()
        assert got == [data]
