"""Situations of a whole router: its start, its reloads, its end, and what gets in its way."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Any
from unittest.mock import patch

import trio

from router_trio import Message, Router, events
from router_trio.cli import signals
from router_trio.cli.run.serving import report_ignored_signals
from router_trio.errors import ConfigurationError, LifespanError
from router_trio.events import Event
from router_trio.events.router import BlockedEvent
from router_trio.position.checkpoints import keep_checkpoints
from router_trio.router import watchdog
from router_trio.router.watchdog import Watchdog
from router_trio.settings import Settings
from router_trio.testing import FakeBroker
from tests.support.eventually import eventually
from tests.support.settings import settings
from tests.support.watch import Watch
from tests.support.world import core, fill, handled, one_broker, stream, to, two_brokers, world
from tests.unit.events.situations.situation import about

ROUTE = core("in.*", "out.x")
OTHER = core("other.*", "out.x", name="other")


@about(events.RouterStarted, events.RouterReady, events.RouterDraining, events.RouterStopped)
async def whole_life() -> list[Event]:
    """A router starts, and ends with nothing to do"""
    async with world([ROUTE, OTHER]) as w:
        await w.watch.until("ROUTER_READY")
    return w.watch.events


@about(events.RouterNotReady, events.RouterReady)
async def not_ready() -> list[Event]:
    """A connection is lost for 10 s, and then with the routes from it"""
    many = [core(f"in.{number}", to("out.x", "main"), name=f"route{number}", connection="edge") for number in range(6)]
    async with world([core("in.*", to("out.x", "edge"), connection="main")], brokers=two_brokers()) as one:
        await one.watch.until("ROUTER_READY")
        await one.lose("edge")
        await trio.sleep(10)
        await one.find("edge")
        await one.watch.until("ROUTER_READY", 2)
    async with world(many, brokers=two_brokers()) as several:
        await several.watch.until("ROUTER_READY")
        await several.lose("edge")
        await trio.sleep(10)
        await several.find("edge")
        await several.watch.until("ROUTER_READY", 2)
    return one.watch.events + several.watch.events


async def forever(message: Message) -> None:
    await trio.sleep_forever()


@about(events.RouterDraining, events.RouterStopped)
async def unsettled_at_the_end() -> list[Event]:
    """A router ends while one publish waits for a connection, and while two messages of a stream are in a handler"""
    found: list[Event] = []
    broker = FakeBroker()
    async with world(brokers={"main": broker}, shutdown_timeout=1.0) as queued:
        await queued.lose()
        await queued.live.publish("a", b"")
    found += queued.watch.events
    kept = handled(
        forever, to=to("out.x", jetstream=True), stream="IN", durable="router", key="sequence", concurrency=2
    )
    async with world(handlers=[kept], brokers=one_broker(), shutdown_timeout=1.0) as called:
        fill(called.broker, 2)
        await eventually(lambda: called.route.handling == 2)
    return found + called.watch.events


# --- reloads ---


@about(events.RouterReloaded)
async def reloads() -> list[Event]:
    """Reloads change nothing, add, change and remove one route, and then add many"""
    changed = core("other.*", "out.y", name="other")
    many = [core(f"many.{number}", "out.x", name=f"route{number}") for number in range(7)]
    more = [core(f"more.{number}", "out.x", name=f"more{number}") for number in range(120)]
    async with world([ROUTE]) as w:
        for routes in ([ROUTE], [ROUTE, OTHER], [ROUTE, changed], [ROUTE], [ROUTE, *many], [ROUTE, *many, *more]):
            await w.live.reload(w.configuration(*routes))
    return w.watch.events


@about(events.RouterReloaded)
async def reloads_that_leave_something() -> list[Event]:
    """A reload removes a route from a stream, and another one ends a route whose handler does not return"""
    async with world([stream("IN", "out.x")], brokers=one_broker()) as w:
        await w.live.reload(w.configuration())
    async with world(handlers=[handled(forever, subject="in.*", to=to("out.x"))], shutdown_timeout=1.0) as called:
        called.broker.publish("in.x", b"")
        await eventually(lambda: called.route.handling == 1)
        await called.live.reload(called.configuration(core("else.*", "out.x")))
    return w.watch.events + called.watch.events


@about(events.ReloadRefused, events.RestartNeeded)
async def reloads_that_are_refused() -> list[Event]:
    """Reloads have one problem, two problems, one key that needs a restart, and two"""
    async with world([ROUTE]) as w:

        def load(*routes: dict[str, Any]) -> Callable[[], Settings]:
            return lambda: w.configuration(*routes)

        for routes in ([core("in..*", "out.x")], [core("in..*", "out.x"), core("in..*", "out.x", name="other")]):
            with suppress(ConfigurationError):
                await w.live.reload(load(*routes))
        await w.live.reload(w.configuration(ROUTE, router={"name": "new"}))
        await w.live.reload(w.configuration(ROUTE, router={"name": "new"}, telemetry={"log_level": "debug"}))
    return w.watch.events


# --- settings ---


@about(events.SettingIgnored)
async def settings_without_effect() -> list[Event]:
    """Keys have no effect: one of a source, and the number of workers in a program"""
    route = stream("IN", "out.x", max_deliver=3)
    async with world([route], brokers=one_broker(), router={"workers": 2}) as w:
        await trio.sleep(1)
    return w.watch.events


@about(events.StatusPageReady, real_time=True)
async def status_page() -> list[Event]:
    """The pages are served"""
    watch, broker = Watch(), FakeBroker()
    config = Settings(telemetry={"listen": "127.0.0.1:0"}, connections={"main": {"servers": ["nats://fake:4222"]}})
    async with Router(config, observers=[watch], connect=lambda name, _: broker.connect, log=False).open():
        await watch.until("ROUTER_STATUS_PAGE")
    return watch.events


@about(events.PositionNotSaved, real_time=True)
async def position() -> list[Event]:
    """No server stores the checkpoint of a consumer"""
    found: list[Event] = []
    config = Settings(
        connections={"main": {"servers": ["nats://127.0.0.1:1"]}},
        positions=[{"consumer": "billing", "route": "copy"}],
        routes=[stream("IN", "copy.x", route="copy")],
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_checkpoints, config.positions[0], lambda: config, found.append)
        await eventually(lambda: len(found) == 1)
        nursery.cancel_scope.cancel()
    return found


# --- signals ---


@about(events.HangupIgnored, events.InterruptIgnored)
async def ignored_signals() -> list[Event]:
    """The process was started with nohup, in the background of a script"""
    found: list[Event] = []
    with ExitStack() as stack:
        for number in (signal.SIGHUP, signal.SIGINT):
            stack.callback(signal.signal, number, signal.signal(number, signal.SIG_IGN))
        report_ignored_signals(found.append)
    return found


@about(events.SignalRestored)
async def taken_signals() -> list[Event]:
    """A handler ignores a signal of the router, and handles another one itself"""
    found: list[Event] = []
    with ExitStack() as stack:
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            stack.callback(signal.signal, number, signal.getsignal(number))
        kept = signals.KeptSignals((signal.SIGUSR1, signal.SIGUSR2), lambda: found.append)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kept.keep)
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            signal.signal(signal.SIGUSR2, _handles)
            await eventually(lambda: len(found) == 2)
            nursery.cancel_scope.cancel()
    return found


def _handles(number: int, frame: object) -> None:
    pass


# --- handlers ---


@about(events.LifespanLost, real_time=True)
async def lost_lifespans() -> list[Event]:
    """A lifespan fails, and another one returns, while the router is running"""

    async def fails() -> None:
        raise ConnectionError("gone")

    @asynccontextmanager
    async def failing() -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails)
            yield

    @asynccontextmanager
    async def returning() -> AsyncIterator[None]:
        with trio.move_on_after(0.05):
            yield

    found: list[Event] = []
    for lifespan in (failing, returning):
        broker, watch = FakeBroker(), Watch()
        one = Router(
            settings("nats://fake:4222"),
            observers=[watch],
            connect=lambda name, _: broker.connect,  # noqa: B023 - called in this round
            log=False,
            lifespan=lifespan,
        )
        with suppress(LifespanError):
            async with one.open():
                await trio.sleep_forever()
        found += watch.events
    return found


def blocks(message: Message) -> None:
    time.sleep(0.5)


def blocked(watch: Watch) -> list[Event]:
    """Return the events of loops that code of this file has blocked: on a busy machine there may be others."""
    return [
        one for one in watch.events if isinstance(one, BlockedEvent) and __name__.replace(".", "/") in str(one.place)
    ]


@asynccontextmanager
async def blockable(handler: Callable[..., Any] | None = None, **route: Any) -> AsyncIterator[tuple[Watch, FakeBroker]]:
    """Open a router whose loops count as blocked soon. Return once one was reported, and nothing is in hand."""
    broker, watch = one_broker()["main"], Watch()
    one = Router(settings("nats://fake:4222"), observers=[watch], connect=lambda name, _: broker.connect, log=False)
    if handler is not None:
        one.route(route.pop("subject", None), to={"subject": "out.x", "jetstream": True}, name="route", **route)(
            handler
        )
    with (
        patch.object(watchdog, "LOOK_EVERY", 0.02),
        patch.object(watchdog, "AFTER_A_SUSPENSION", 0.02),
        patch.object(watchdog, "REPORT_EVERY", 0.0),
        patch.dict(Watchdog.__init__.__kwdefaults__, blocked_after=0.1),
    ):
        async with one.open() as live:
            await trio.sleep(0.1)
            yield watch, broker
            await eventually(lambda: bool(blocked(watch)) and sum(one.in_hand for one in live.routes) == 0)


@about(events.LoopBlocked, real_time=True)
async def blocked_loop() -> list[Event]:
    """A handler blocks the event loop with a message of a stream and of a subject, and so does other code"""
    async with blockable(blocks, stream="IN", durable="router") as (kept, broker):
        fill(broker, 1)
    async with blockable(blocks, subject="core.*") as (plain, broker):
        broker.publish("core.x", b"")
    async with blockable() as (other, _):
        time.sleep(0.5)  # noqa: ASYNC251 - what is tested
    return blocked(kept) + blocked(plain) + blocked(other)


@about(events.AsyncioLoopBlocked, real_time=True)
async def blocked_asyncio_loop() -> list[Event]:
    """A handler blocks the asyncio loop"""

    async def handler(message: Message) -> None:
        await asyncio.sleep(0)
        blocks(message)

    async with blockable(handler, subject="core.*", loop="asyncio") as (watch, broker):
        broker.publish("core.x", b"")
    return blocked(watch)
