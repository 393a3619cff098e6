"""The status page: how it is served, its stream of events, and the bounds of both."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import h11
import pytest
import trio

from router_trio.events import (
    ConnectionFailed,
    ConnectionLost,
    MessageFailed,
    PublishQueued,
    RouteReady,
    SettingIgnored,
)
from router_trio.telemetry import Telemetry
from router_trio.telemetry.http import connection, event_stream, server
from router_trio.telemetry.logs.recent import EQUAL_WITHIN, KEPT, LONGEST_TEXT, MOST_PARTS, Recent
from tests.integration.pages import Address, get, no_descriptor_left, telemetry_settings
from tests.support.eventually import eventually
from tests.support.telemetry_views import View, make_view


def lost(detail: str = "EOF", reason: str = "closed") -> ConnectionLost:
    server = "nats://bob:s3cret@127.0.0.1:4222"
    return ConnectionLost(at=1.0, connection="main", server=server, reason=reason, detail=detail, pending_count=7)


@asynccontextmanager
async def served(view: View | None = None) -> AsyncIterator[tuple[Telemetry, Address]]:
    telemetry = Telemetry(telemetry_settings(), logs=False)
    async with telemetry.serve(view or make_view(["main"], ["eu"])) as address:
        assert address is not None
        yield telemetry, address


class Watcher:
    """A client of `/events`."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.head = ""
        self._received = b""
        self._answer = h11.Connection(h11.CLIENT)
        self._answer.send(h11.Request(method="GET", target="/events", headers=[("Host", "localhost")]))

    async def next(self) -> tuple[int, dict[str, Any]]:
        """Return id and data of the next event."""
        with trio.fail_after(10):
            while not (found := re.search(rb"id: (\d+)\ndata: (.*)\n\n", self._received)):
                match self._answer.next_event():
                    case h11.NEED_DATA:
                        self._answer.receive_data(await self.stream.receive_some())
                    case h11.Response(status_code=code, headers=headers):
                        self.head = f"{code} {[f'{name.decode()}: {value.decode()}' for name, value in headers]}"
                    case h11.Data(data=data):
                        self._received += data
                    case other:
                        pytest.fail(f"{self.head!r} ended: {other}")
        self._received = self._received[found.end() :]
        return int(found[1]), json.loads(found[2])

    async def rest(self) -> bytes:
        """Return what arrives until the server closes."""
        with trio.fail_after(10):
            return b"".join([data async for data in self.stream])


@asynccontextmanager
async def watching_at(address: Address, *lines: str, path: str = "/events") -> AsyncIterator[Watcher]:
    async with await trio.open_tcp_stream(*address) as stream:
        request = [f"GET {path} HTTP/1.1", "Host: localhost", *lines, "", ""]
        await stream.send_all("\r\n".join(request).encode())
        yield Watcher(stream)


# --- the page ---


async def test_the_page_loads_nothing_and_allows_only_itself() -> None:
    async with served() as (_, address):
        code, headers, body = await get(address, "/")
    assert code == 200
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert headers["x-content-type-options"] == "nosniff"
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    text = body.decode()
    assert not re.findall(r"src=|<link|@import|url\(|innerHTML|style=|\son\w+=", text)
    assert {*re.findall(r"https?://[^\"]*", text)} == {"https://github.com/router-trio/router-trio/blob/main/docs/"}


async def test_the_page_has_the_state_in_it_and_nothing_in_the_state_ends_it() -> None:
    view = make_view(["main"], ["</script><script>alert(1)</script>", "<!--"])
    view.name = "<!-- <script>"
    async with served(view) as (telemetry, address):
        telemetry.emit(lost(reason="</script>"))
        _, headers, body = await get(address, "/")
        found = re.findall(rb'<script type="application/json" id="first">(.*?)</script>', body, re.DOTALL)
        status = json.loads((await get(address, "/status"))[2])
    assert int(headers["content-length"]) == len(body)
    assert body.count(b"<script") == body.count(b"</script>") == 2
    (first,) = map(json.loads, found)
    assert first["status"]["routes"] == status["routes"]
    assert first["status"]["name"] == "<!-- <script>"
    assert first["readiness"]["status"] == "unavailable"
    assert [one["details"]["reason"] for one in first["events"]] == ["</script>"]


async def test_a_page_that_was_served_waits_for_news(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "INTERVAL", 0.3)
    async with served() as (telemetry, address):
        for reason in ("one", "two"):
            telemetry.emit(lost(reason=reason))
        began_at = trio.current_time()
        async with watching_at(address, path="/events?after=1") as watcher:
            _, look = await watcher.next()
        assert trio.current_time() - began_at >= 0.3
        assert [one["details"]["reason"] for one in look["events"]] == ["two"]
        # A browser that reconnects requests the same address.
        async with watching_at(address, "Last-Event-ID: 2", path="/events?after=1") as watcher:
            assert (await watcher.next())[1]["events"] == []


# --- the stream ---


async def test_a_stream_reports_the_state_and_the_events() -> None:
    async with served() as (telemetry, address):
        telemetry.emit(lost())
        async with watching_at(address) as watcher:
            number, look = await watcher.next()
            assert "200" in watcher.head
            assert "content-type: text/event-stream; charset=utf-8" in watcher.head
            assert look["status"]["connections"]["main"]["state"]
            assert look["readiness"]["status"] == "unavailable"
            [event] = look["events"]
            assert (number, event["number"], event["code"], event["level"]) == (1, 1, "NATS_CONNECTION_LOST", "ERROR")
            assert event["details"]["pending_count"] == 7
            assert "s3cret" not in json.dumps(look)
            telemetry.emit(lost(reason="stale"))
            number, look = await watcher.next()
            assert (number, [one["details"]["reason"] for one in look["events"]]) == (2, ["stale"])


async def test_a_client_that_reconnects_gets_the_events_that_it_missed() -> None:
    async with served() as (telemetry, address):
        for reason in ("one", "two", "three"):
            telemetry.emit(lost(reason=reason))
        for seen, expected in (("1", ["two", "three"]), ("3", []), ("99", ["one", "two", "three"]), ("x", 3 * [""])):
            async with watching_at(address, f"Last-Event-ID: {seen}") as watcher:
                _, look = await watcher.next()
            assert len(look["events"]) == len(expected)
            if seen != "x":
                assert [one["details"]["reason"] for one in look["events"]] == expected


async def test_a_client_that_wants_changes_gets_each_route_once_until_it_differs() -> None:
    view = make_view(["main"], ["eu", "us"])
    async with served(view) as (_, address), watching_at(address, path="/events?changes") as watcher:
        _, look = await watcher.next()
        assert ({*look["status"]["routes"]}, "gone" in look) == ({"eu", "us"}, False)
        view.routes[0].received += 1
        _, look = await watcher.next()
        assert ({*look["status"]["routes"]}, look["gone"]) == ({"eu"}, [])
        assert look["status"]["connections"]
        del view.routes[0]
        _, look = await watcher.next()
        assert (look["status"]["routes"], look["gone"]) == ({}, ["eu"])


async def test_an_open_stream_does_not_delay_the_end() -> None:
    with no_descriptor_left():
        async with served() as (_, address):
            stream = await trio.open_tcp_stream(*address)
            await stream.send_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            watcher = Watcher(stream)
            await watcher.next()
            leaving_at = time.perf_counter()
        assert time.perf_counter() - leaving_at < 0.9
        assert (await watcher.rest()).endswith(b"0\r\n\r\n")
        await stream.aclose()


async def test_a_stream_ends_in_order_when_its_lifetime_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "LIFETIME", 0.2)
    async with served() as (_, address), watching_at(address) as watcher:
        assert (await watcher.rest()).endswith(b"0\r\n\r\n")


async def test_a_stream_outlives_the_timeout_of_idle_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "IDLE_SECONDS", 0.3)
    monkeypatch.setattr(event_stream, "INTERVAL", 0.1)
    async with served() as (_, address), watching_at(address) as watcher:
        opened_at = time.perf_counter()
        while time.perf_counter() - opened_at < 1.0:
            await watcher.next()


async def test_watchers_are_bounded_and_a_place_becomes_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "MAX_CLIENTS", 2)
    async with served() as (_, address):
        async with watching_at(address) as first, watching_at(address) as second:
            await first.next()
            await second.next()
            code, _, body = await get(address, "/events")
            assert (code, json.loads(body)["reason"]) == (503, "2 clients are watching already")
        with trio.fail_after(5):
            while True:
                async with watching_at(address) as third:
                    if b" 200 " in await third.stream.receive_some():
                        break


async def test_a_client_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "SEND_SECONDS", 0.3)
    monkeypatch.setattr(event_stream, "INTERVAL", 0.001)
    monkeypatch.setattr(event_stream, "MAX_CLIENTS", 1)
    view = make_view(["main"], [f"route-{number}" for number in range(500)])
    async with served(view) as (_, address):
        with trio.socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await slow.connect(address)
            await slow.send(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            received = b""
            while b"data: " not in received:  # then its own lifetime is fixed
                received += await slow.recv(100)
            # Of later clients a stream is over at once.
            monkeypatch.setattr(event_stream, "LIFETIME", 0.0)
            assert (await get(address, "/events"))[0] == 503

            async def is_taken() -> bool:
                return (await get(address, "/events"))[0] != 503

            await eventually(is_taken, 20)


# --- the event memory ---


def test_memory_is_bounded() -> None:
    recent = Recent()
    for number in range(KEPT + 50):
        recent.observe(lost(detail="x" * 100_000, reason=f"reason {number}"))
    entries = recent.since(0)
    assert [entry["number"] for entry in entries] == list(range(51, KEPT + 51))
    assert {len(entry["details"]["detail"]) for entry in entries} == {LONGEST_TEXT}


def test_frequent_events_are_one_entry_a_second() -> None:
    now = 0.0
    recent = Recent(clock=lambda: now, wall=lambda: 0.0)
    for _ in range(1000):
        recent.observe(PublishQueued(at=0.0, connection="main", pending_count=1))
    assert [entry["details"]["count"] for entry in recent.since(0)] == [1]
    now = 1.0
    assert [entry["details"]["count"] for entry in recent.since(1)] == [999]
    assert recent.since(2) == []
    assert recent.since(0)[0]["at"] == "1970-01-01T00:00:00.000Z"


def attempt(number: int, *, connection: str = "main", reason: str = "refused") -> ConnectionFailed:
    return ConnectionFailed(
        at=1.0,
        connection=connection,
        server="nats://127.0.0.1:4222",
        attempt=number,
        max_attempts=10,
        reason=reason,
        detail=f"attempt {number}",
    )


def test_equal_events_are_one_entry_with_their_count_and_push_out_no_other() -> None:
    now = 0.0
    recent = Recent(clock=lambda: now, wall=lambda: now)
    recent.observe(lost())
    for number in range(2 * KEPT):
        now += 1.0
        recent.observe(attempt(number))
        if not number % 100:
            recent.observe(attempt(number, connection="edge"))
            recent.observe(attempt(number, reason="timeout"))
    entries = recent.since(0)
    assert [(one["code"], one["count"]) for one in entries] == [
        ("NATS_CONNECTION_LOST", 1),
        *[("NATS_CONNECTION_FAILED", 1)] * 8,
        ("NATS_CONNECTION_FAILED", 400),
    ]
    assert entries[-1]["details"]["attempt"] == 399
    assert (entries[-1]["first_at"], entries[-1]["at"]) == ("1970-01-01T00:00:01.000Z", "1970-01-01T00:06:40.000Z")
    seen = entries[-1]["number"]
    recent.observe(attempt(400))
    (news,) = recent.since(seen)
    assert (news["id"], news["count"]) == (entries[-1]["id"], 401), "it replaces the entry that a client has"
    now += EQUAL_WITHIN + 1
    recent.observe(attempt(401))
    (news,) = recent.since(news["number"])
    assert (news["id"], news["count"]) == (news["number"], 1), "a later one is another entry"


def test_events_of_many_routes_share_an_entry_beyond_the_first_few() -> None:
    now = 0.0
    recent = Recent(clock=lambda: now)
    recent.observe(lost())
    for _ in range(3):
        for number in range(1000):
            recent.observe(RouteReady(at=1.0, route=f"route-{number}", connection="main", source="IN"))
        now += 1.0
    entries = recent.since(0)
    assert len(entries) == 1 + MOST_PARTS + 1
    assert entries[0]["code"] == "NATS_CONNECTION_LOST"
    assert sum(one["count"] for one in entries[1:]) == 3000
    now += EQUAL_WITHIN + 1
    recent.observe(RouteReady(at=1.0, route="route-500", connection="main", source="IN"))
    assert recent.since(entries[-1]["number"])[0]["details"]["route"] == "route-500"


def test_events_without_a_reason_are_equal_but_for_numbers() -> None:
    recent = Recent()
    for key in ("a", "a", "b"):
        recent.observe(SettingIgnored(at=1.0, key=f"routes[{len(key)}].{key}", detail="x"))
    assert [one["count"] for one in recent.since(0)] == [2, 1]


def test_a_worker_reports_each_event_and_its_supervisor_merges_them() -> None:
    worker, supervisor = Recent(merges=False), Recent()
    for number in range(3):
        worker.observe(attempt(number))
    reported = worker.since(0)
    assert [one["count"] for one in reported] == [1, 1, 1]
    for number in (1, 2):
        for entry in reported:
            supervisor.include(entry, number)
    assert [(one["details"]["worker"], one["count"]) for one in supervisor.since(0)] == [(1, 3), (2, 3)]


def test_texts_that_may_not_be_logged_are_not_shown() -> None:
    recent = Recent()
    recent.observe(MessageFailed(at=0.0, route="eu", reason="handler_error", error_type="KeyError", detail="payload"))
    assert "payload" not in json.dumps(recent.since(0))
