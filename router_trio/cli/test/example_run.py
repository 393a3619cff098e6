"""Run one example: publish one message to a complete router between fake brokers, and compare the result.

The clock is simulated (`trio.testing.MockClock`), so that waiting takes no time. It does not know what happens outside
of Trio, so it runs in real time while a handler is called in a thread or on asyncio, and while the lifespan is entered
and left. Nothing connects to the network, unless they do.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial, wraps
from math import inf
from random import Random
from typing import Any

import trio
from trio.testing import MockClock

from router_trio import Live, Message
from router_trio.cli.test.brokers import Entry, brokers_for, entry_of
from router_trio.cli.test.comparison import SentMessage, difference, payload_of
from router_trio.connection.platform import Platform
from router_trio.events import Event, MessageFailed
from router_trio.protocol import schedules
from router_trio.router import no_pages
from router_trio.router.reload_queue import ReloadQueue
from router_trio.router.run import Run
from router_trio.routing.handlers.calls import Handler
from router_trio.settings import RouteSettings, ServerURL, Settings
from router_trio.settings.examples import ExampleSettings
from router_trio.testing.watch import PublishedMessage

SETTLED_WITHIN = 600.0
"""Seconds of the simulated clock that a message may take until it is settled."""

QUIET_FOR = 0.5
"""Seconds of the simulated clock without a change that end a run: a message may pass through several routes."""

_OTEL_OFF = "OTEL_SDK_DISABLED"


@dataclass(frozen=True, slots=True)
class Result:
    """The result of an example. `difference` is empty if it passed; `failures` has a line for each failed message."""

    example: ExampleSettings
    sent: tuple[SentMessage, ...]
    difference: tuple[str, ...]
    failures: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """True if the sent messages are the expected ones."""
        return not self.difference

    def as_json(self) -> dict[str, Any]:
        """Return the result for `--json`."""
        return {
            "name": self.example.name,
            "passed": self.passed,
            "expected": [
                message.model_dump(mode="json", by_alias=True, exclude_none=True) for message in self.example.expect
            ],
            "got": [message.as_json() for message in self.sent],
            "difference": "\n".join(self.difference),
        }


def run_examples(settings: Settings, examples: Sequence[ExampleSettings]) -> Iterator[Result]:
    """Run each example with its own router, and yield its result. Blocks; handlers are imported and called."""
    with _without_traces():
        for example in examples:
            clock = _Clock()
            yield trio.run(_run, _fake(settings), example, clock, clock=clock.clock)


class _Clock:
    """The simulated clock, which runs in real time while `real_time` is entered."""

    def __init__(self) -> None:
        self.clock = MockClock(autojump_threshold=0)
        self._entered = 0

    @contextmanager
    def real_time(self) -> Iterator[None]:
        """Let the clock run in real time, and not jump."""
        self._entered += 1
        self.clock.rate, self.clock.autojump_threshold = 1.0, inf
        try:
            yield
        finally:
            self._entered -= 1
            if not self._entered:
                self.clock.rate, self.clock.autojump_threshold = 0.0, 0.0

    def around(self, settings: Settings, route: RouteSettings, handler: Handler) -> Handler:
        """Return a wrapper of a handler, in whose calls outside of Trio time is real."""
        if not route.thread and (route.loop or settings.router.loop) == "trio":
            return handler

        @wraps(handler)
        def call(message: Message) -> Any:
            answer = handler(message)
            return self._in_real_time(answer) if hasattr(answer, "__await__") else answer

        return call

    async def _in_real_time(self, answer: Awaitable[Any]) -> Any:
        with self.real_time():
            return await answer


async def _run(settings: Settings, example: ExampleSettings, clock: _Clock) -> Result:
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

    run = Run(
        settings,
        {},
        [observe],
        False,
        lambda name, _: brokers[name].connect,
        Platform(random=Random(0), watch_loop=False),  # every run has the same result
        around=partial(clock.around, settings),
    )
    try:
        async with _opened(run, clock) as live:
            message = example.message
            brokers[entry.connection].publish(message.subject, payload_of(message), message.headers)
            with trio.move_on_after(SETTLED_WITHIN) as waiting:
                await _settled(live, entry)
            stuck = [f"route {name}: {why}" for name, why in _stuck(live, entry)] if waiting.cancelled_caught else []
    except BaseExceptionGroup as group:
        raise run.cause_of(group) from None
    sent = tuple(_sent(name, message) for name, broker in brokers.items() for message in broker.published)
    lines = difference(example.expect, sent)
    trouble = [*stuck, *failures]
    if lines and trouble:
        lines = [*trouble, "", *lines]
    return Result(example, sent, tuple(lines or stuck), tuple(failures))


def _sent(connection: str, message: PublishedMessage) -> SentMessage:
    """Return a message as it was sent; a delayed one with the subject under which it is published later."""
    target = message.headers.get(schedules.TARGET.decode())
    return SentMessage(connection, target or message.subject, message.headers, message.payload)


@asynccontextmanager
async def _opened(run: Run, clock: _Clock) -> AsyncIterator[Live]:
    """Run the router. Time is real while its lifespan is entered and left."""
    real_time = nullcontext if run.runtime.lifespan is None else clock.real_time
    async with AsyncExitStack() as stack:
        with real_time():
            live = await stack.enter_async_context(run.run(no_pages, None, ReloadQueue(run, ())))
        yield live
        with real_time():
            await stack.aclose()


async def _settled(live: Live, entry: Entry) -> None:
    """Wait until each route that receives the message has settled it, and no count changes any more."""
    pause = 0.01
    while any(True for _ in _stuck(live, entry)):
        await trio.sleep(pause)  # no event reports that counts have changed; the clock is simulated
        pause *= 1.2
    before: object = None
    while (now := _counts(live)) != before or any(route.in_hand for route in live.routes):
        before = now
        await trio.sleep(QUIET_FOR)
        if any(route.settled["returned"] for route in live.routes):
            return  # it failed and is redelivered again and again


def _stuck(live: Live, entry: Entry) -> Iterator[tuple[str, str]]:
    for route in live.routes:
        if route.name not in entry.routes:
            continue
        if not route.received_in_all:
            yield route.name, f"it did not receive the message: {route.trouble or route.state}"
        elif route.in_hand:
            yield route.name, f"the message was not settled within {SETTLED_WITHIN:g} s: {route.trouble or 'in hand'}"


def _counts(live: Live) -> list[object]:
    return [(route.received_in_all, route.settled) for route in live.routes]


def _no_route(settings: Settings, example: ExampleSettings) -> str:
    patterns = {pattern for route in settings.routes for pattern in route.source.patterns}
    takes = ", ".join(sorted(patterns)) or "nothing, since there are none"
    where = "" if example.message.connection is None else f" on connection {example.message.connection!r}"
    return f"no route takes {example.message.subject!r}{where}; the routes take: {takes}"


def _fake(settings: Settings) -> Settings:
    """Return the settings without HTTP and traces, and with a fake server for each connection."""
    telemetry = settings.telemetry.model_copy(update={"listen": "", "otlp_endpoint": "", "handler_errors": "full"})
    fake = {"servers": [ServerURL.parse("nats://fake:4222")]}
    connections = {name: connection.model_copy(update=fake) for name, connection in settings.connections.items()}
    return settings.model_copy(update={"telemetry": telemetry, "connections": connections})


@contextmanager
def _without_traces() -> Iterator[None]:
    """Switch traces off, which the environment variables of OpenTelemetry may also have switched on."""
    before = os.environ.get(_OTEL_OFF)
    os.environ[_OTEL_OFF] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_OTEL_OFF]
        else:
            os.environ[_OTEL_OFF] = before
