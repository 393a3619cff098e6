"""Log lines: the contract's keys, one line a second with nothing lost from the sum, and no secret ever."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio
import trio.testing

from router_trio import events
from router_trio.events import Event, Level, catalogue
from router_trio.telemetry.logs.lines import Logs, log_codes
from router_trio.telemetry.logs.merge import Merger
from router_trio.telemetry.logs.redact import redact
from router_trio.telemetry.logs.sentences import SENTENCES, sentence
from router_trio.telemetry.logs.writer import LineWriter, write_to_stderr

# By name: a dataclass with slots leaves a first class of the same name behind, and a catalogue may find that one.
KINDS: list[type[Event]] = [getattr(events, kind.__name__) for kind in catalogue()]

QUEUED = events.PublishQueued(at=0.0, connection="main", pending_count=4)


def logs_into(sink: list[bytes], **options: Any) -> Logs:
    return Logs(write=sink.append, clock=trio.current_time, **options)


def lines(sink: list[bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in b"".join(sink).splitlines()]


async def logged(*what: Event, **options: Any) -> list[dict[str, Any]]:
    sink: list[bytes] = []
    logs = logs_into(sink, **options)
    async with logs.running():
        for event in what:
            logs.write(event)
    return lines(sink)


def example(kind: type[Event]) -> Event:
    """An event of a kind, every field set to something."""
    values: dict[str, Any] = {
        "str": "text",
        "int": 3,
        "float": 1.5,
        "str | None": "text",
        "int | None": 3,
        "dict[str, Any]": {"a": 1},
        "tuple[str, ...] | None": ("text",),
        "tuple[str, ...]": ("one", "another"),
    }
    return kind(**{name: values[written] for name, written in kind.fields.items()})


# --- what is in a line ---


async def test_each_line_of_a_worker_has_its_number() -> None:
    [line] = await logged(QUEUED, worker=2)
    assert line["worker"] == 2
    [line] = await logged(QUEUED)
    assert "worker" not in line


async def test_a_line_has_the_keys_of_the_contract() -> None:
    before = datetime.now(UTC)
    [line] = await logged(
        events.ConnectionLost(
            at=1.0, connection="main", server="nats://h:4222", reason="closed", detail="EOF", pending_count=7
        )
    )
    written_at = datetime.fromisoformat(line.pop("timestamp"))
    assert before - timedelta(seconds=1) <= written_at <= datetime.now(UTC)
    assert written_at.utcoffset() == timedelta(0)
    assert line == {
        "level": "ERROR",
        "message": "Connection main lost its link to nats://h:4222: closed; 7 operations are pending",
        "error_code": "NATS_CONNECTION_LOST",
        "error_tag": "nats_connection_failure",
        "connection": "main",
        "server": "nats://h:4222",
        "reason": "closed",
        "detail": "EOF",
        "pending_count": 7,
    }


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
async def test_every_event_becomes_a_good_line(kind: type[Event]) -> None:
    assert kind in SENTENCES
    event = example(kind)
    [line] = await logged(event, level="debug")
    assert line["error_code"] == kind.code
    assert line["level"] == event.severity.name
    assert "None" not in line["message"]
    assert "{" not in line["message"]
    hidden = {"detail", "traceback"} if kind is events.MessageFailed else set()
    assert dict(event.details()).keys() - hidden <= line.keys()
    assert line.get("error_tag") == kind.tag
    assert "at" not in line


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_sentence_does_without_optional_fields(kind: type[Event]) -> None:
    optional: dict[str, Any] = {name: None for name, written in kind.fields.items() if written.endswith("None")}
    assert sentence(example(kind).replace(**optional))


async def test_ids_of_a_span_are_in_the_line() -> None:
    sink: list[bytes] = []
    logs = logs_into(sink)
    async with logs.running():
        logs.write(QUEUED, ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"))
    [line] = lines(sink)
    assert line["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert line["span_id"] == "b7ad6b7169203331"


async def test_level_filters() -> None:
    info = events.RouterDraining(at=0.0, pending_count=1, timeout_seconds=10.0)
    assert len(await logged(info, QUEUED, level="info")) == 2
    assert [line["level"] for line in await logged(info, QUEUED, level="warning")] == ["WARN"]
    assert await logged(info, QUEUED, level="error") == []


async def test_what_was_left_unsettled_makes_the_last_line_a_warning() -> None:
    [line] = await logged(events.RouterStopped(at=0.0, ledger={}, unsettled=3), level="warning")
    assert (line["level"], line["message"]) == ("WARN", "Router has stopped; 3 messages were left unsettled")
    assert await logged(events.RouterStopped(at=0.0, ledger={}, unsettled=0), level="warning") == []


async def test_a_server_has_its_scheme_in_every_line() -> None:
    found = await logged(
        events.ConnectionEstablished(at=0.0, connection="main", server="h:4222"),
        events.LameDuck(at=0.0, connection="main", server="nats://h:4222"),
        events.LameDuck(at=0.0, connection="main", server="tls://h:4222"),
    )
    assert [line["server"] for line in found] == ["nats://h:4222", "nats://h:4222", "tls://h:4222"]
    assert found[0]["message"] == "Connection main is connected to nats://h:4222"


async def test_one_of_something_is_told_as_one() -> None:
    found = await logged(
        events.RouterStarted(at=0.0, name="r", connections=1, routes=2),
        events.RouterStopped(at=0.0, ledger={}, unsettled=1),
        events.RetryPending(at=0.0, connection="main", pending_count=1),
        events.ReconnectExhausted(at=0.0, connection="main", reconnect_attempts=1, action="stop"),
    )
    assert [line["message"] for line in found] == [
        "Router r is running: 1 connection, 2 routes",
        "Router has stopped; 1 message was left unsettled",
        "Connection main is sending 1 operation that was queued or unconfirmed",
        "Connection main used up its 1 attempt to reconnect; next: stop",
    ]


async def test_a_line_of_a_message_says_which_it_is_and_where_its_handler_raised() -> None:
    failed = events.MessageFailed(
        at=0.0,
        route="orders",
        reason="handler_error",
        subject="orders.7",
        stream="ORDERS",
        sequence=17,
        error_type="ValueError",
        place="/app/orders.py:12 in parse",
        detail="HUSH",
        traceback=("ValueError: HUSH",),
    )
    [line] = await logged(failed)
    assert line["message"] == (
        "Route orders: message 17 of stream ORDERS on orders.7 failed: handler_error (ValueError) at "
        "/app/orders.py:12 in parse"
    )
    assert "HUSH" not in json.dumps(line)
    [line] = await logged(failed, handler_errors="full")
    assert (line["detail"], line["traceback"]) == ("HUSH", ["ValueError: HUSH"])


async def test_a_line_of_a_publish_names_route_and_subject() -> None:
    publish = events.PublishWithAckFailed(
        at=0.0, connection="main", reason="limit", subject="eu.7", route="orders", detail="maximum messages exceeded"
    )
    [line] = await logged(publish)
    assert line["message"] == "Route orders: JetStream publish to eu.7 on main failed: limit"
    assert (line["route"], line["subject"]) == ("orders", "eu.7")


async def test_the_ledger_is_in_the_last_line() -> None:
    ledger = {"main": {"accepted": 3, "settled": {"fenced": 3}}}
    [line] = await logged(events.RouterStopped(at=0.0, ledger=ledger, unsettled=0))
    assert line["ledger"] == ledger


async def test_bytes_that_are_no_text_do_not_break_a_line() -> None:
    odd = b"caf\xe9".decode("utf-8", "surrogateescape")
    [line] = await logged(
        events.SubscribeFailed(at=0.0, connection="main", reason="x", detail=odd + "\nsecond line", route="r")
    )
    assert line["detail"] == odd + "\nsecond line"


# --- secrets ---


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("nats://bob:s3cret@host:4222", "nats://host:4222"),
        ("tls://s3cret@host", "tls://host"),
        ("can't reach nats://bob:s3/cr@et@host:4222 now", "can't reach nats://host:4222 now"),
        ("bob:s3cret@host:4222 refused", "host:4222 refused"),
        ("two: nats://a:s3cret@x:1, nats://b:s3cret@y:2", "two: nats://x:1, nats://y:2"),
        ("ask someone@example.com", "ask someone@example.com"),
        ("host:4222", "host:4222"),
    ],
)
def test_redact(text: str, clean: str) -> None:
    assert redact(text) == clean


async def test_no_line_shows_credentials() -> None:
    url = "nats://bob:s3cret@host:4222"
    found = await logged(
        events.ConnectionLost(at=0.0, connection="main", server=url, reason="r", detail=f"at {url}", pending_count=0),
        events.ConnectionFailed(
            at=0.0, connection="main", server=url, reason="r", detail=url, attempt=1, max_attempts=2
        ),
        events.ReconnectAttempt(at=0.0, connection="main", server=url, attempt=1, max_attempts=2, delay_ms=5),
        events.RouterStopped(at=0.0, ledger={"main": [url]}, unsettled=0),
    )
    assert len(found) == 4
    assert "s3cret" not in json.dumps(found)
    assert "bob" not in json.dumps(found)


async def test_what_a_handler_raises_is_not_quoted() -> None:
    error = ValueError("invalid literal: 'the payload'")
    [line] = await logged(
        events.MessageFailed(at=0.0, route="r", reason="handler_error", error_type="ValueError", detail=str(error))
    )
    assert line["error_type"] == "ValueError"
    assert "payload" not in json.dumps(line)


async def test_the_detail_of_the_router_itself_is_shown() -> None:
    [line] = await logged(events.MessageFailed(at=0.0, route="r", reason="too_large", detail="more than 1 MiB"))
    assert line["detail"] == "more than 1 MiB"


# --- merging ---


async def test_per_message_lines_are_merged_and_none_is_lost(autojump_clock: trio.testing.MockClock) -> None:
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


async def test_the_first_is_logged_at_once_and_the_rest_by_the_flush(autojump_clock: trio.testing.MockClock) -> None:
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


async def test_connections_and_codes_have_lines_of_their_own() -> None:
    other = events.PublishQueued(at=0.0, connection="edge", pending_count=1)
    full = events.QueueFull(at=0.0, connection="main", reason="rejected", queue_size=10, max_size=10)
    found = await logged(QUEUED, other, full, QUEUED)
    assert [(line["error_code"], line["connection"], line["count"]) for line in found] == [
        ("NATS_PUBLISH_QUEUED", "main", 1),
        ("NATS_PUBLISH_QUEUED", "edge", 1),
        ("NATS_QUEUE_FULL", "main", 1),
        ("NATS_PUBLISH_QUEUED", "main", 1),
    ]


async def test_one_line_for_several_reasons_says_how_many_of_each() -> None:
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


async def test_what_cannot_happen_per_message_is_never_merged() -> None:
    attempt = events.ReconnectAttempt(at=0.0, connection="m", server="s", attempt=1, max_attempts=2, delay_ms=1)
    assert len(await logged(*[attempt] * 5)) == 5


def test_the_merger_forgets_what_is_quiet() -> None:
    now = 0.0
    merger: Merger[str] = Merger(lambda: now)
    for number in range(100):
        merger.offer(number, "once")
    now = 1.5
    assert merger.due() == []
    assert not merger._windows


# --- the writer ---


async def test_a_stalled_output_costs_lines_and_never_blocks() -> None:
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
        started = time.perf_counter()
        for number in range(1000):
            writer.put(f"line {number}")
        assert time.perf_counter() - started < 0.5
        assert writer.dropped == 990
        released.set()
    assert b"".join(written).splitlines() == [b"first", *(b"line %d" % number for number in range(10))]
    assert writer.dropped == 990


async def test_leaving_is_bounded_when_the_output_is_stalled_for_good() -> None:
    released, entered = threading.Event(), threading.Event()

    def stalled(data: bytes) -> None:
        entered.set()
        released.wait(30)

    writer = LineWriter(stalled)
    started = time.perf_counter()
    try:
        async with writer.writing():
            writer.put("in the write")
            assert await trio.to_thread.run_sync(entered.wait, 10)
            writer.put("behind it")
        assert 0.9 < time.perf_counter() - started < 3
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


async def test_lines_before_running_wait_and_lines_after_it_are_counted() -> None:
    sink: list[bytes] = []
    writer = LineWriter(sink.append)
    writer.put("before")
    async with writer.writing():
        pass
    writer.put("after")
    assert sink == [b"before\n"]
    assert writer.dropped == 1


async def test_an_output_that_is_gone_costs_lines() -> None:
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


def test_a_full_pipe_that_does_not_block_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
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


# --- libraries ---


async def with_libraries(log: Callable[[], None], **options: Any) -> list[dict[str, Any]]:
    sink: list[bytes] = []
    async with logs_into(sink, **options).running():
        log()
    return lines(sink)


async def test_warnings_of_libraries_take_the_same_way() -> None:
    def log() -> None:
        logging.getLogger("nats.aio.client").warning("can't reach %s", "nats://bob:s3cret@host:1")
        logging.getLogger("opentelemetry.sdk").error("bad\nrequest")
        logging.getLogger("opentelemetry.sdk").info("not of interest")

    found = await with_libraries(log)
    assert [(line["level"], line["message"], line["logger"], line["error_code"]) for line in found] == [
        ("WARN", "can't reach nats://host:1", "nats.aio.client", "LIBRARY"),
        ("ERROR", "bad request", "opentelemetry.sdk", "LIBRARY"),
    ]


async def test_an_exception_of_a_library_is_named_and_placed() -> None:
    def log() -> None:
        try:
            raise KeyError("the payload")
        except KeyError:
            logging.getLogger("nats.aio").exception("in a callback")

    [line] = await with_libraries(log)
    assert line["error_type"] == "KeyError"
    assert "test_logs.py:" in line["where"]
    assert "payload" not in json.dumps(line)


async def test_a_library_that_repeats_itself_is_merged() -> None:
    def log() -> None:
        for number in range(50):
            logging.getLogger("opentelemetry.exporter").warning("attempt %d failed", number)

    found = await with_libraries(log)
    assert [line["count"] for line in found] == [1, 49]


async def test_the_level_holds_for_libraries_too() -> None:
    assert await with_libraries(lambda: logging.getLogger("nats").warning("quiet"), level="error") == []


async def test_handlers_are_taken_off_again() -> None:
    await with_libraries(lambda: None)
    assert logging.getLogger("nats").handlers == []


async def test_a_record_that_cannot_be_formatted_is_still_a_line() -> None:
    sink: list[bytes] = []
    logs = logs_into(sink)
    async with logs.running():
        logs.library(logging.LogRecord("nats", logging.WARNING, __file__, 1, "%d", ("no number",), None))
    [line] = lines(sink)
    assert line["message"] == "%d"


# --- the list of codes ---


def test_log_codes_are_those_of_the_events() -> None:
    codes = {one.code: one for one in log_codes()}
    assert codes.keys() == {kind.code for kind in catalogue()} | {"LIBRARY"}
    lost = codes["NATS_CONNECTION_LOST"]
    assert (lost.level, lost.help) == (Level.ERROR.name, "An established link was lost.")
    assert all(one.help and "\n" not in one.help for one in codes.values())


async def test_what_a_reload_lists_is_bounded() -> None:
    names = tuple(f"route {number}" for number in range(1000))
    reloaded = events.RouterReloaded(at=1.0, added=names, removed=(), changed=names, unchanged=7, unsettled=0)
    refused = events.ReloadRefused(at=1.0, count=1000, problems=("x" * 10_000,) * 1000)
    done, wrong = await logged(reloaded, refused)
    assert (done["added"], done["removed"]) == (list(names[: events.MOST_NAMES]), [])
    assert "route 4 and 95 more, removed nothing" in done["message"]
    assert (wrong["count"], len(wrong["problems"])) == (1000, events.MOST_NAMES)
    assert len(wrong["problems"][0]) < 2000
