"""Run the demo: publish, kill the server, restart it, drain, and compare the result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import trio

from router_trio import Live, Router
from router_trio.demo.display import Display, Moment
from router_trio.demo.traffic import STREAMS, Traffic, demo_settings
from router_trio.demo.verdict import Verdict, judge, tally
from router_trio.embedded import EmbeddedServer, open_embedded_server
from router_trio.events import ConnectionLost, ConnectionRestored, Event, RetryComplete, RetryPending, StatusPageReady
from router_trio.nats.other_client import add_streams, count_messages, stream_messages

KILLED_AT = 0.35
"""When the server is killed, as a fraction of the duration."""
OUTAGE = 0.15
"""The length of the outage, as a fraction of the duration."""
LONGEST_OUTAGE = 3.0
"""Upper bound of the outage, in seconds."""
SETTLED_WITHIN = 20.0
"""Seconds after publishing has ended within which every message must be settled and stored."""
_POLL_INTERVAL = 0.1


class Story:
    """A run of the demo, which publishes for `duration` seconds, at least `demo.SHORTEST`."""

    def __init__(self, duration: float, display: Display) -> None:
        self._duration = duration
        self._display = display
        self._began = 0.0
        self._traffic = Traffic()

    async def run(self) -> bool:
        """Run the demo, and return True if no message was lost.

        Raises `RouterError`, such as `EmbeddedServerError` if nats-server is not installed. Can be cancelled.
        """
        async with open_embedded_server() as server:
            await add_streams(server.url, STREAMS)
            live = await self._route(server)
            self._display.log("the router is closed; now the stored messages are read back from the server")
            verdict = await self._judge(server.url, live)
        for line in verdict.lines:
            self._display.log(line)
        return verdict.passed

    async def _route(self, server: EmbeddedServer) -> Live:
        self._began = trio.current_time()
        self._display.log(f"nats-server with JetStream: {server.address}")
        router = Router(demo_settings(server.url), observers=[self._observe], log=False)
        async with router.open() as live, trio.open_nursery() as nursery:
            nursery.start_soon(self._show, live)
            nursery.start_soon(self._cause_outage, server)
            with trio.move_on_after(self._duration + SETTLED_WITHIN):
                await self._traffic.publish_for(live, self._duration)
                self._log("publishing has ended, and every message is settled")
                await self._wait_until_stored(server.url, live)
            nursery.cancel_scope.cancel()
        return live

    async def _cause_outage(self, server: EmbeddedServer) -> None:
        await trio.sleep(KILLED_AT * self._duration)
        self._log("the server is killed (SIGKILL); publishing continues")
        await server.kill()
        await trio.sleep(min(LONGEST_OUTAGE, OUTAGE * self._duration))
        self._log("the server is restarted")
        await server.restart()

    async def _wait_until_stored(self, url: str, live: Live) -> None:
        """Wait until the route that reads a stream has caught up, and nothing is pending or in flight."""
        orders = sum(map(len, self._traffic.expected["ARCHIVE"].values()))
        while True:
            if await count_messages(url, "ARCHIVE") >= orders and not _underway(live.ledger()):
                return
            await trio.sleep(_POLL_INTERVAL)

    async def _judge(self, url: str, live: Live) -> Verdict:
        traffic, tallies = self._traffic, {}
        for name, sent in traffic.expected.items():
            stored = await stream_messages(url, name)
            tallies[name] = tally(sent, [(message.subject, json.loads(message.payload)["n"]) for message in stored])
        routes = {name: route["ledger"] for name, route in live.status()["routes"].items()}
        return judge(traffic.published, traffic.fates, traffic.refused, tallies, live.ledger(), routes)

    # --- progress ---

    async def _show(self, live: Live) -> None:
        while True:
            book = live.ledger()["main"]
            self._display.show(
                Moment(
                    elapsed=self._elapsed(),
                    duration=self._duration,
                    state=live.connections["main"].state.state,
                    published=self._traffic.published.total(),
                    pending=book["pending"],
                    in_flight=book["in_flight"],
                    settled=sum(book["settled"].values()),
                )
            )
            await trio.sleep(self._display.interval)

    def _observe(self, event: Event) -> None:
        text = describe(event)
        if text is not None:
            self._log(text)

    def _log(self, text: str) -> None:
        self._display.log(text, self._elapsed())

    def _elapsed(self) -> float:
        return trio.current_time() - self._began


def describe(event: Event) -> str | None:
    """Return the line that the demo prints for an event; None if it prints nothing."""
    match event:
        case StatusPageReady():
            return f"status page: {event.url} (metrics: {event.url}metrics)"
        case ConnectionLost():
            return f"the connection is lost ({event.reason}); new messages are queued"
        case ConnectionRestored():
            return f"reconnected after {event.outage_seconds:.1f} s, {event.reconnect_attempts} attempts"
        case RetryPending():
            return f"{event.pending_count} messages were queued or unconfirmed; they are sent first, in order"
        case RetryComplete():
            return f"these messages are settled: {event.success_count} confirmed, {event.failed_count} failed"
        case _:
            return None


def _underway(ledger: Mapping[str, Mapping[str, Any]]) -> int:
    return sum(book["pending"] + book["in_flight"] for book in ledger.values())
