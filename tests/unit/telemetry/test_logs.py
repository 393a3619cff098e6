"""Log lines: the keys of the contract, a line for every event, warnings of libraries, and no secrets."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from router_trio import events
from router_trio.events import Event, Level, catalogue
from router_trio.telemetry.logs.lines import log_codes
from router_trio.telemetry.logs.redact import redact
from tests.unit.telemetry.logs import QUEUED, lines, logged, logs_into

# By name: a dataclass with slots leaves a first class of the same name behind, and a catalogue may find that one.
KINDS: list[type[Event]] = [getattr(events, kind.__name__) for kind in catalogue()]


def example(kind: type[Event]) -> Event:
    """Return an event of a kind with every field set."""
    values: dict[str, Any] = {
        "str": "text",
        "int": 3,
        "bool": True,
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


async def test_a_log_line_has_the_keys_of_the_contract() -> None:
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
        "message": "Connection main lost its link to nats://h:4222: closed; reconnecting, 7 operations pending",
        "error_code": "NATS_CONNECTION_LOST",
        "error_tag": "nats_connection_failure",
        "connection": "main",
        "server": "nats://h:4222",
        "reason": "closed",
        "detail": "EOF",
        "pending_count": 7,
    }


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
async def test_every_event_becomes_a_valid_line(kind: type[Event]) -> None:
    assert "sentence" in vars(kind)
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
def test_every_sentence_works_without_optional_fields(kind: type[Event]) -> None:
    optional: dict[str, Any] = {name: None for name, written in kind.fields.items() if written.endswith("None")}
    assert example(kind).replace(**optional).sentence()


async def test_ids_of_a_span_are_in_the_line() -> None:
    sink: list[bytes] = []
    logs = logs_into(sink)
    async with logs.running():
        logs.write(QUEUED, ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"))
    [line] = lines(sink)
    assert line["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert line["span_id"] == "b7ad6b7169203331"


async def test_events_below_the_level_are_not_logged() -> None:
    info = events.RouterDraining(at=0.0, pending_count=1, timeout_seconds=10.0)
    assert len(await logged(info, QUEUED, level="info")) == 2
    assert [line["level"] for line in await logged(info, QUEUED, level="warning")] == ["WARN"]
    assert await logged(info, QUEUED, level="error") == []


async def test_unsettled_messages_make_the_last_line_a_warning() -> None:
    [line] = await logged(events.RouterStopped(at=0.0, ledger={}, unsettled=3), level="warning")
    assert (line["level"], line["message"]) == ("WARN", "Router stopped, 3 messages left unsettled")
    assert await logged(events.RouterStopped(at=0.0, ledger={}, unsettled=0), level="warning") == []


async def test_messages_that_streams_redeliver_are_not_a_warning() -> None:
    [line] = await logged(events.RouterStopped(at=0.0, ledger={}, unsettled=0, redelivered=30))
    assert line["level"] == "INFO"
    assert line["message"] == "Router stopped, 0 messages left unsettled, 30 to be redelivered"


async def test_a_server_has_its_scheme_in_every_line() -> None:
    found = await logged(
        events.ConnectionEstablished(at=0.0, connection="main", server="h:4222"),
        events.LameDuck(at=0.0, connection="main", server="nats://h:4222"),
        events.LameDuck(at=0.0, connection="main", server="tls://h:4222"),
    )
    assert [line["server"] for line in found] == ["nats://h:4222", "nats://h:4222", "tls://h:4222"]
    assert found[0]["message"] == "Connection main is connected to nats://h:4222"


async def test_an_attempt_is_no_reconnect_of_a_connection_that_never_was() -> None:
    attempt: dict[str, Any] = {"server": "nats://h:4222", "attempt": 2, "max_attempts": 10, "delay_ms": 100}
    (line,) = await logged(events.ReconnectAttempt(at=0.0, connection="main", **attempt))
    assert line["message"] == "Connection main is connecting to nats://h:4222, attempt 2 of 10"


async def test_a_count_of_one_is_singular() -> None:
    found = await logged(
        events.RouterStarted(at=0.0, name="r", connections=1, routes=2),
        events.RouterStopped(at=0.0, ledger={}, unsettled=1),
        events.RetryPending(at=0.0, connection="main", pending_count=1),
        events.ReconnectExhausted(at=0.0, connection="main", reconnect_attempts=1, action="stop"),
    )
    assert [line["message"] for line in found] == [
        "Router r is running: 1 connection, 2 routes",
        "Router stopped, 1 message left unsettled",
        "Connection main is sending 1 operation that was queued or unconfirmed during the outage",
        'Connection main failed to connect in 1 attempt; the router stops (on_reconnect_exhausted = "stop")',
    ]


async def test_a_failed_message_is_logged_with_its_sequence_and_the_place_where_the_handler_raised() -> None:
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


async def test_a_blocked_loop_is_logged_with_advice_about_the_handler() -> None:
    blocked = events.LoopBlocked(
        at=1.0, blocked_seconds=2.1, route="orders", subject="orders.7", place="shop.py:3 in f"
    )
    [line] = await logged(blocked)
    assert line["message"].startswith("Route orders: the event loop has been blocked for 2.1 s")
    assert "`thread = true`" in line["message"]
    assert "trio.to_thread.run_sync" in line["message"]
    [line] = await logged(events.LoopBlocked(at=1.0, blocked_seconds=2.1, place="router.py:3 in f"))
    assert "thread" not in line["message"]  # no handler is known to be in the way


async def test_a_failed_publish_is_logged_with_route_and_subject() -> None:
    publish = events.PublishWithAckFailed(
        at=0.0, connection="main", reason="limit", subject="eu.7", route="orders", detail="maximum messages exceeded"
    )
    [line] = await logged(publish)
    assert line["message"] == (
        "Route orders: JetStream publish to eu.7 on connection main failed: limit; the stream or the account is full; "
        "raise the limit, or delete messages"
    )
    assert (line["route"], line["subject"]) == ("orders", "eu.7")
    [line] = await logged(publish.replace(reason="too_large", sequence=17))
    assert (
        "JetStream publish to eu.7, of message 17 of its stream, on connection main failed: too_large"
        in (line["message"])
    )
    assert line["sequence"] == 17


async def test_the_ledger_is_in_the_last_line() -> None:
    ledger = {"main": {"accepted": 3, "settled": {"fenced": 3}}}
    [line] = await logged(events.RouterStopped(at=0.0, ledger=ledger, unsettled=0))
    assert line["ledger"] == ledger


async def test_bytes_that_are_not_utf_8_do_not_break_a_line() -> None:
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
def test_credentials_are_redacted(text: str, clean: str) -> None:
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


async def test_the_text_of_a_handler_error_is_not_logged() -> None:
    error = ValueError("invalid literal: 'the payload'")
    [line] = await logged(
        events.MessageFailed(at=0.0, route="r", reason="handler_error", error_type="ValueError", detail=str(error))
    )
    assert line["error_type"] == "ValueError"
    assert "payload" not in json.dumps(line)


async def test_the_detail_of_a_failure_of_the_router_is_logged() -> None:
    [line] = await logged(events.MessageFailed(at=0.0, route="r", reason="too_large", detail="more than 1 MiB"))
    assert line["detail"] == "more than 1 MiB"


# --- libraries ---


async def with_libraries(log: Callable[[], None], **options: Any) -> list[dict[str, Any]]:
    sink: list[bytes] = []
    async with logs_into(sink, **options).running():
        log()
    return lines(sink)


async def test_warnings_of_libraries_become_log_lines() -> None:
    def log() -> None:
        logging.getLogger("nats.aio.client").warning("can't reach %s", "nats://bob:s3cret@host:1")
        logging.getLogger("opentelemetry.sdk").error("bad\nrequest")
        logging.getLogger("opentelemetry.sdk").info("not of interest")

    found = await with_libraries(log)
    assert [(line["level"], line["message"], line["logger"], line["error_code"]) for line in found] == [
        ("WARN", "can't reach nats://host:1", "nats.aio.client", "LIBRARY"),
        ("ERROR", "bad request", "opentelemetry.sdk", "LIBRARY"),
    ]


async def test_an_exception_of_a_library_is_logged_with_type_and_place() -> None:
    def log() -> None:
        try:
            raise KeyError("the payload")
        except KeyError:
            logging.getLogger("nats.aio").exception("in a callback")

    [line] = await with_libraries(log)
    assert line["error_type"] == "KeyError"
    assert "test_logs.py:" in line["where"]
    assert "payload" not in json.dumps(line)


class InAsyncio:
    """An asyncio loop on which code of handlers fails that no handler waits for."""

    async def raises(self) -> None:
        raise ValueError("the payload")

    def called(self, payload: bytes) -> None:
        raise ValueError("the payload")

    async def run(self) -> None:
        for _ in range(3):
            task = asyncio.get_running_loop().create_task(self.raises())
            await asyncio.wait([task])
            del task
            gc.collect()
        asyncio.get_running_loop().call_soon(self.called, b"the payload")
        await asyncio.sleep(0)

    def log(self) -> None:
        thread = threading.Thread(target=asyncio.run, args=[self.run()])
        thread.start()
        thread.join()


async def test_errors_of_tasks_on_asyncio_are_logged_without_their_texts_and_merged() -> None:
    gc.collect()  # tasks of other tests
    found = await with_libraries(InAsyncio().log, clock=lambda: 0.0)  # the interval of merging lasts until the end
    assert "payload" not in json.dumps(found)
    assert {line["error_type"] for line in found} == {"ValueError"}
    of_task, of_callback = "Task exception was never retrieved", "Exception in callback InAsyncio.called"
    assert sum(line["count"] for line in found if line["message"].startswith(of_task)) == 3
    assert sum(line["count"] for line in found if line["message"].startswith(of_callback)) == 1
    assert len(found) == 3
    assert f"InAsyncio.raises() at {__file__}:" in found[0]["message"]


async def test_full_errors_of_handlers_include_those_of_tasks_on_asyncio() -> None:
    gc.collect()
    found = await with_libraries(InAsyncio().log, clock=time.monotonic, handler_errors="full")
    assert "exception=ValueError('the payload')" in found[0]["message"]


async def test_repeated_warnings_of_a_library_are_merged() -> None:
    def log() -> None:
        for number in range(50):
            logging.getLogger("opentelemetry.exporter").warning("attempt %d failed", number)

    found = await with_libraries(log)
    assert [line["count"] for line in found] == [1, 49]


async def test_the_log_level_applies_to_libraries_too() -> None:
    assert await with_libraries(lambda: logging.getLogger("nats").warning("quiet"), level="error") == []


async def test_log_handlers_are_removed_at_the_end() -> None:
    await with_libraries(lambda: None)
    assert logging.getLogger("nats").handlers == []


async def test_a_record_that_cannot_be_formatted_is_still_logged() -> None:
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


async def test_a_reload_that_leaves_something_says_what_and_another_one_nothing() -> None:
    nothing = events.RouterReloaded(at=0.0, added=(), removed=(), changed=(), unchanged=4, unsettled=0)
    left = nothing.replace(removed=("route a",), unsettled=1, left=("one durable", "another durable"))
    assert nothing.sentence() == (
        "Configuration reloaded: added nothing, removed nothing, changed nothing; connections and routes unchanged: 4"
    )
    assert left.sentence() == (
        "Configuration reloaded: added nothing, removed route a, changed nothing; connections and routes unchanged: 4, "
        "1 message left unsettled; one durable; another durable"
    )


async def test_the_names_in_the_line_of_a_reload_are_bounded() -> None:
    names = tuple(f"route {number}" for number in range(1000))
    reloaded = events.RouterReloaded(at=1.0, added=names, removed=(), changed=names, unchanged=7, unsettled=0)
    refused = events.ReloadRefused(at=1.0, count=1000, problems=("x" * 10_000,) * 1000)
    done, wrong = await logged(reloaded, refused)
    assert (done["added"], done["removed"]) == (list(names[: events.MOST_NAMES]), [])
    assert "route 4 and at least 95 more, removed nothing" in done["message"]
    assert (wrong["count"], len(wrong["problems"])) == (1000, events.MOST_NAMES)
    assert len(wrong["problems"][0]) < 2000


async def test_merged_events_are_logged_before_the_line_that_the_router_has_stopped() -> None:
    stopped = events.RouterStopped(at=0.0, ledger={}, unsettled=0)
    found = await logged(QUEUED, QUEUED, QUEUED, stopped)
    assert [line["error_code"] for line in found] == [QUEUED.code, QUEUED.code, stopped.code]
    assert found[1]["count"] == 2
