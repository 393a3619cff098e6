"""Runs one example: a whole router between fake brokers, one message, and what became of it.

On a clock that jumps (`trio.testing.MockClock`): what waits for seconds takes none. Nothing is connected to the
network.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import trio
from trio.testing import MockClock

from router_trio import Live
from router_trio.cli.test.brokers import Entry, brokers_for, entry_of
from router_trio.cli.test.comparison import Came, difference, payload_of
from router_trio.connection.platform import Platform
from router_trio.events import Event, MessageFailed
from router_trio.router import Router
from router_trio.settings import ServerURL, Settings
from router_trio.settings.examples import ExampleSettings

SETTLED_WITHIN = 600.0
"""Seconds of the jumping clock that a message may take."""

QUIET_FOR = 0.5
"""Seconds of it in which nothing more comes: a message may pass through several routes."""

_OTEL_OFF = "OTEL_SDK_DISABLED"


@dataclass(frozen=True, slots=True)
class Result:
    """The result of an example: `difference` is empty if it met its expectation, `failures` say what failed."""

    example: ExampleSettings
    came: tuple[Came, ...]
    difference: tuple[str, ...]
    failures: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """True if nothing differs."""
        return not self.difference

    def as_json(self) -> dict[str, Any]:
        """Return it for `--json`."""
        return {
            "name": self.example.name,
            "passed": self.passed,
            "expected": [one.model_dump(mode="json", by_alias=True, exclude_none=True) for one in self.example.expect],
            "got": [one.as_json() for one in self.came],
            "difference": "\n".join(self.difference),
        }


def run_examples(settings: Settings, examples: Sequence[ExampleSettings]) -> Iterator[Result]:
    """Run examples, each with a router of its own. Blocks until each is done; handlers are imported and called."""
    with _without_traces():
        for example in examples:
            yield trio.run(_run, _fake(settings), example, clock=MockClock(autojump_threshold=0))


async def _run(settings: Settings, example: ExampleSettings) -> Result:
    entry = entry_of(example.message, settings.routes)
    if entry is None:
        lines = difference(example.expect, ())
        return Result(example, (), tuple([_no_route(settings, example), "", *lines] if lines else ()))
    brokers = brokers_for(settings, example.message, entry)
    failures: dict[str, None] = {}

    def observe(event: Event) -> None:
        if isinstance(event, MessageFailed):
            raised = "" if event.error_type is None else f"{event.error_type}: "
            failures[f"route {event.route}: the message failed: {event.reason}: {raised}{event.detail or ''}"] = None

    router = Router(
        settings,
        observers=[observe],
        connect=lambda name, _: brokers[name].connect,
        platform=Platform(random=Random(0), watch_loop=False),  # the same result each time
        log=False,
    )
    async with router.open() as live:
        brokers[entry.connection].publish(example.message.subject, payload_of(example.message), example.message.headers)
        with trio.move_on_after(SETTLED_WITHIN) as waiting:
            await _settled(live, entry)
        stuck = [f"route {name}: {why}" for name, why in _stuck(live, entry)] if waiting.cancelled_caught else []
    came = tuple(Came(name, *one) for name, broker in brokers.items() for one in broker.published)
    lines = difference(example.expect, came)
    trouble = [*stuck, *failures]
    if lines and trouble:
        lines = [*trouble, "", *lines]
    return Result(example, came, tuple(lines or stuck), tuple(failures))


async def _settled(live: Live, entry: Entry) -> None:
    """Wait until each route that meets the message has settled it, and nothing moves any more."""
    pause = 0.01
    while any(True for _ in _stuck(live, entry)):
        await trio.sleep(pause)  # the counts are plain numbers, and the clock jumps
        pause *= 1.2
    before: object = None
    while (now := _counts(live)) != before or any(route.in_hand for route in live.routes):
        before = now
        await trio.sleep(QUIET_FOR)
        if any(route.settled["returned"] for route in live.routes):
            return  # it failed, and comes again and again


def _stuck(live: Live, entry: Entry) -> Iterator[tuple[str, str]]:
    for route in live.routes:
        if route.name not in entry.routes:
            continue
        if not route.received_in_all:
            yield route.name, f"it did not get the message: {route.trouble or route.state}"
        elif route.in_hand:
            yield route.name, f"the message was not settled within {SETTLED_WITHIN:g} s: {route.trouble or 'in hand'}"


def _counts(live: Live) -> list[object]:
    return [(route.received_in_all, route.settled) for route in live.routes]


def _no_route(settings: Settings, example: ExampleSettings) -> str:
    patterns = {one for route in settings.routes for one in route.source.patterns}
    takes = ", ".join(sorted(patterns)) or "nothing, there are none"
    where = "" if example.message.connection is None else f" on connection {example.message.connection!r}"
    return f"no route takes {example.message.subject!r}{where}; the routes take: {takes}"


def _fake(settings: Settings) -> Settings:
    """Return settings without an HTTP side, traces and servers."""
    telemetry = settings.telemetry.model_copy(update={"listen": "", "otlp_endpoint": "", "handler_errors": "full"})
    fake = {"servers": [ServerURL.parse("nats://fake:4222")]}
    connections = {name: one.model_copy(update=fake) for name, one in settings.connections.items()}
    return settings.model_copy(update={"telemetry": telemetry, "connections": connections})


@contextmanager
def _without_traces() -> Iterator[None]:
    """OpenTelemetry's own variables would have traces sent, too."""
    before = os.environ.get(_OTEL_OFF)
    os.environ[_OTEL_OFF] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_OTEL_OFF]
        else:
            os.environ[_OTEL_OFF] = before
