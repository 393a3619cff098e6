"""Taps over HTTP, by `router-trio tap`, and with workers."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio.errors.quotes import LONGEST_QUOTE
from router_trio.events import Event, TapClosed, TapOpened
from router_trio.telemetry import Telemetry
from router_trio.telemetry.http import tap_pages
from tests.integration.pages import Address, exchange, telemetry_settings
from tests.integration.workers import Workers, publish, settled, workers
from tests.support.command import command, running
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer
from tests.support.telemetry_views import make_view

# --- pages ---


@asynccontextmanager
async def pages(events: list[Event], *routes: str, **settings: bool) -> AsyncIterator[Address]:
    view = make_view(["main"], routes or ["eu"])
    telemetry = Telemetry(
        telemetry_settings("127.0.0.1:0", **{"tap": True} | settings), logs=False, listeners=[events.append]
    )
    async with telemetry.serve(view) as address:
        assert address is not None
        yield address


async def ask(address: Address, method: str, path: str, body: Any = None, *headers: str) -> tuple[int, Any]:
    """Return code and JSON of an answer."""
    text = body if isinstance(body, str) else "" if body is None else json.dumps(body)
    head = [
        f"{method} {path} HTTP/1.1",
        "Host: localhost",
        "Connection: close",
        f"Content-Length: {len(text)}",
        *headers,
    ]
    code, _, answer = await exchange(address, ("\r\n".join(head) + f"\r\n\r\n{text}").encode())
    return code, json.loads(answer) if answer else None


async def test_a_tap_is_opened_read_and_closed_and_that_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tap_pages, "WAIT", 0.2)
    events: list[Event] = []
    async with pages(events) as address:
        code, opened = await ask(address, "POST", "/tap", {"route": "eu", "fate": "lost", "user": "ada\x1b@host" * 100})
        assert code == 201
        code, answer = await ask(address, "GET", f"/tap/{opened['tap']}")
        assert (code, answer["messages"], answer["shown"], answer["left_out"]) == (200, [], 0, {})
        assert await ask(address, "DELETE", f"/tap/{opened['tap']}") == (204, None)
        assert (await ask(address, "GET", f"/tap/{opened['tap']}"))[0] == 404
    (first, last) = events
    assert isinstance(first, TapOpened)
    assert isinstance(last, TapClosed)
    assert (first.route, first.peer, first.fate, first.payloads) == ("eu", "127.0.0.1", "lost", False)
    assert first.user.startswith("ada\\x1b@host")
    assert len(first.user) <= LONGEST_QUOTE
    assert (last.reason, last.shown, last.left_out) == ("closed by its user", 0, 0)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("[" * 30_000, 400),
        ("nothing", 400),
        ({"route": 7}, 400),
        ({"route": "eu", "more": 1}, 400),
        ({"route": "eu", "where": 7}, 400),
        ({"route": "eu", "payloads": 1}, 400),
        ({"route": "e" * 1000}, 404),
        ({"route": "eu", "payloads": True}, 403),
        ({"route": "eu", "where": "\ud800"}, 400),
    ],
)
async def test_a_request_that_makes_no_sense_is_refused(body: Any, code: int) -> None:
    events: list[Event] = []
    async with pages(events) as address:
        found, answer = await ask(address, "POST", "/tap", body)
    assert (found, events) == (code, [])
    assert len(answer["error"]) < 1000


async def test_a_page_of_another_site_can_open_no_tap() -> None:
    async with pages([]) as address:
        code, _ = await ask(address, "POST", "/tap", {"route": "eu"}, "Origin: http://evil.example.com")
    assert code == 403


async def test_the_number_of_taps_is_bounded_and_unread_ones_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tap_pages, "LEASE", 0.3)
    monkeypatch.setattr(tap_pages, "EXPIRE_EVERY", 0.05)
    events: list[Event] = []
    async with pages(events) as address:
        codes = [(await ask(address, "POST", "/tap", {"route": "eu"}))[0] for _ in range(tap_pages.MAX_TAPS + 1)]
        assert codes == [201] * tap_pages.MAX_TAPS + [503]
        await eventually(lambda: sum(isinstance(event, TapClosed) for event in events) == tap_pages.MAX_TAPS)
        assert (await ask(address, "POST", "/tap", {"route": "eu"}))[0] == 201


async def test_without_the_setting_there_is_no_tap() -> None:
    async with pages([], tap=False) as address:
        code, answer = await ask(address, "POST", "/tap", {"route": "eu"})
    assert code == 403
    assert "tap = true" in answer["error"]


# --- the command ---

CONFIG = """
[telemetry]
listen = "127.0.0.1:0"
tap = true
tap_payloads = true

[connections.main]
servers = ["URL"]

[[routes]]
name = "stored"
from = { stream = "ORDERS", durable = "router", filter = "orders.*" }
to = [ { subject = "stored.{{wildcard(1)}}", jetstream = true } ]

[[routes]]
name = "passed"
from = { subject = "in.*", queue = "routers" }
to = [ { subject = "out.{{wildcard(1)}}" } ]

[[routes]]
name = "untapped"
from = { subject = "more.*", queue = "routers" }
to = [ { subject = "out.{{wildcard(1)}}" } ]
"""


@pytest.fixture
async def streams(server: NatsServer) -> AsyncIterator[JetStream]:
    async with connect(server.url) as client:
        stored = JetStream(client)
        await stored.create_stream("ORDERS", ["orders.*"])
        await stored.create_stream("STORED", ["stored.*"])
        yield stored


def url(one: Workers) -> str:
    return f"http://{one.address[0]}:{one.address[1]}"


@pytest.mark.slow
async def test_the_command_shows_messages_of_all_workers_and_counts_the_rest(
    server: NatsServer, streams: JetStream, tmp_path: Path
) -> None:
    async with connect(server.url) as client, workers(server, tmp_path, CONFIG, "--workers", "2") as one:
        async with running("tap", url(one), "stored", "--json", cwd=tmp_path) as tap:
            await one.run.has_logged("ROUTER_TAP_OPENED", route="stored")
            for first in range(0, 4000, 500):
                await publish(client, "orders", first, 500)
            await one.until(lambda status: settled(status, "stored")["routed"] == 4000)
            last = 0
            while "orders.last" not in tap.output:  # the first ones may find no room
                await client.publish("orders.last", b"x")
                last += 1
                await trio.sleep(0.2)
            await one.until(lambda status: settled(status, "stored")["routed"] == 4000 + last)
            await trio.sleep(1)
            tap.send(signal.SIGINT)
            assert await tap.ended() == 0
        shown = [json.loads(line) for line in tap.output.splitlines()]
        messages = [line for line in shown if "fate" in line]
        closed = await one.run.has_logged("ROUTER_TAP_CLOSED", route="stored")
        assert closed["shown"] + closed["left_out"] == 4000 + last
        assert len(messages) > 500
        assert len({line["sequence"] for line in messages}) == len(messages)
        assert {line["to"][0]["stream"] for line in messages} == {"STORED"}
        assert f"{len(messages):,} shown" in tap.errors


@pytest.mark.slow
async def test_a_stopped_viewer_delays_no_message_and_learns_how_many_it_missed(
    server: NatsServer, streams: JetStream, tmp_path: Path
) -> None:
    async with connect(server.url) as client, workers(server, tmp_path, CONFIG) as one:
        out = await client.subscribe("out.*")
        await client.ping()

        async def delays(count: int) -> tuple[list[float], list[float]]:
            """Return how long messages of both routes take, those of the one with the tap first.

            They are sent in turn, so that other work of the machine delays both.
            """
            found: dict[str, list[float]] = {"in": [], "more": []}
            for number in range(count):
                for subject, times in found.items():
                    began = trio.current_time()
                    await client.publish(f"{subject}.{number}", b"x" * 100)
                    await out.next()
                    times.append(trio.current_time() - began)
            return sorted(found["in"]), sorted(found["more"])

        async with running("tap", url(one), "passed", cwd=tmp_path) as tap:
            await one.run.has_logged("ROUTER_TAP_OPENED", route="passed")
            await publish(client, "in", 0, 1)
            await tap.has_printed(r"routed in\.0")
            await out.next()
            tap.send(signal.SIGSTOP)
            for first in range(0, 6000, 500):
                await publish(client, "in", first, 500)
            for _ in range(6000):
                await out.next()
            tapped, untapped = await delays(400)
            assert tapped[360] < untapped[360] + 0.01
            tap.send(signal.SIGCONT)
            await tap.has_printed("more were settled and not shown: routed")
            await trio.sleep(0.3)
            tap.send(signal.SIGINT)
            assert await tap.ended() == 0
            closed = await one.run.has_logged("ROUTER_TAP_CLOSED", route="passed")
        numbers = map(_number, re.findall(r"([\d,]+) (?:shown|left out|not read)", tap.errors))
        assert sum(numbers) == closed["shown"] + closed["left_out"]
        assert closed["left_out"] > 4000


def _number(text: str) -> int:
    return int(text.replace(",", ""))


def test_a_router_that_does_not_answer_is_named_with_its_address(tmp_path: Path) -> None:
    done = command("tap", "http://127.0.0.1:1", "orders", cwd=tmp_path)
    assert done.returncode == 1
    assert "no router answers at http://127.0.0.1:1" in done.stderr
    assert command("tap", "ftp://x", "orders", cwd=tmp_path).returncode == 2
