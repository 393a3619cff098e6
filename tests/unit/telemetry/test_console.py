"""Log lines for a terminal: one line per event, the message first, and no fact twice."""

from __future__ import annotations

import os
import pty
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio

from router_trio import events
from router_trio.events import Event
from router_trio.telemetry.logs.lines import Logs

REFUSED = events.ConnectionFailed(
    at=0.0,
    connection="main",
    server="nats://127.0.0.1:4222",
    reason="network",
    detail="connection refused by 127.0.0.1:4222; is the server running?",
    attempt=1,
    max_attempts=10,
)
FAILED = events.MessageFailed(
    at=0.0,
    route="orders",
    reason="handler_error",
    subject="orders.7",
    stream="ORDERS",
    sequence=17,
    error_type="ValueError",
    place="/app/orders.py:12 in parse",
)


async def written(*what: Event, form: str = "console") -> list[str]:
    sink: list[bytes] = []
    logs = Logs(form=form, write=sink.append, clock=trio.current_time)
    async with logs.running():
        for event in what:
            logs.write(event)
    return b"".join(sink).decode().splitlines()


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (
            REFUSED,
            "WARN  Connection main could not connect (attempt 1 of 10): connection refused by 127.0.0.1:4222; "
            "is the server running?  [reason=network NATS_CONNECTION_FAILED]",
        ),
        (
            FAILED,
            "WARN  Route orders: message 17 of stream ORDERS on orders.7 failed: handler_error (ValueError) at "
            "/app/orders.py:12 in parse  [ROUTE_MESSAGE_FAILED]",
        ),
        (
            events.RouteReady(at=0.0, route="orders", connection="main", source="orders.*"),
            "INFO  Route orders is receiving from orders.* on connection main  [ROUTE_READY]",
        ),
        (
            events.PublishQueued(at=0.0, connection="main", pending_count=4, count=3),
            "WARN  Connection main is not connected: core publishes are queued, 4 pending  "
            "[count=3 NATS_PUBLISH_QUEUED]",
        ),
        (
            events.ConnectionLost(
                at=0.0, connection="main", server="nats://h:1", reason="closed", detail="end\nof file", pending_count=1
            ),
            "ERROR Connection main lost its link to nats://h:1: closed; reconnecting, 1 operation pending  "
            '[detail="end\\nof file" NATS_CONNECTION_LOST]',
        ),
        (
            events.RouterStopped(at=0.0, ledger={"main": {"accepted": 3}}, unsettled=0),
            'INFO  Router stopped, 0 messages left unsettled  [ledger={"main":{"accepted":3}} ROUTER_STOPPED]',
        ),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, Event) else "",
)
async def test_an_event_is_one_line(event: Event, line: str) -> None:
    [found] = await written(event)
    time, _, rest = found.partition(" ")
    assert re.fullmatch(r"[0-2][0-9]:[0-5][0-9]:[0-5][0-9]", time)
    # Compared as a set, because the count of merged events has the place of the event's own field.
    assert sorted(re.split(r"[\[\] ]", rest)) == sorted(re.split(r"[\[\] ]", line))
    assert rest.startswith(line.partition("  [")[0])


async def test_the_server_address_is_added_if_the_error_lacks_it() -> None:
    late = events.ConnectionFailed(
        at=0.0,
        connection="main",
        server="nats://h:4222",
        reason="timeout",
        detail="no connection within 2 s",
        attempt=2,
        max_attempts=10,
    )
    [found] = await written(late)
    assert "(attempt 2 of 10): no connection within 2 s, at h:4222  [" in found


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Replace stderr by a terminal."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as file:
        monkeypatch.setattr(sys, "stderr", file)
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setenv("TERM", "xterm")
        yield
    os.close(ours)


async def test_auto_format_writes_coloured_console_lines_to_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch):
        [found] = await written(REFUSED, form="auto")
    assert "\x1b[33mWARN \x1b[0m Connection main could not connect" in found


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
async def test_no_colours_with_no_color_or_a_dumb_terminal(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with terminal(monkeypatch):
        monkeypatch.setenv(name, value)
        [found] = await written(REFUSED, form="auto")
    assert "\x1b" not in found


async def test_auto_format_writes_json_to_anything_but_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr: list[Any] = [None]
    with open(os.devnull, "w") as file:  # noqa: ASYNC230
        stderr.append(file)
        for one in stderr:
            monkeypatch.setattr(sys, "stderr", one)
            [found] = await written(REFUSED, form="auto")
            assert found.startswith('{"timestamp"')


async def test_text_from_outside_is_escaped_on_one_line() -> None:
    odd = events.PublishFailed(at=0.0, connection="main", reason="x", subject="a\x1b[2Jb\nc", detail="\x07\r\n{}")
    lines = await written(odd)
    assert len(lines) == 1
    assert lines[0].isprintable()


async def test_a_console_line_of_a_worker_always_has_its_number() -> None:
    sink: list[bytes] = []
    logs = Logs(form="console", worker=1, write=sink.append, clock=trio.current_time)
    async with logs.running():
        logs.write(REFUSED)
    assert b"(attempt 1 of 10)" in sink[0]
    assert b"[worker=1 reason=network NATS_CONNECTION_FAILED]" in sink[0]
