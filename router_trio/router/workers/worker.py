"""A worker: a complete router that a supervisor has started, and that reports to it.

It ends when the supervisor requests it, or has ended itself, which closes the channel. It receives its settings over
the channel, as the supervisor has read them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import trio

from router_trio.connection.platform import REAL_PLATFORM
from router_trio.connection.supervisor import ConnectionCounts
from router_trio.errors import ConfigurationError, RouterError
from router_trio.events import Emit, Event, RouterStopped
from router_trio.link import Connect
from router_trio.nats.link import Dialer, client_name
from router_trio.router import no_pages
from router_trio.router.garbage_collection import begin_collecting
from router_trio.router.reload_queue import ReloadQueue
from router_trio.router.run import Run
from router_trio.router.workers.channel import Channel
from router_trio.router.workers.counts.block import Block
from router_trio.router.workers.counts.copying import Counting
from router_trio.router.workers.in_handler import InHandlers
from router_trio.router.workers.messages import (
    Begin,
    CloseTap,
    Cut,
    Drain,
    Ended,
    Failed,
    ReadTap,
    Reload,
    Reloaded,
    Reported,
    SendReport,
    Started,
    Stopped,
    Survived,
    Suspect,
    Tapped,
    ToSupervisor,
    ToWorker,
)
from router_trio.router.workers.process import EXITS_WITHIN
from router_trio.router.workers.report import Reporter
from router_trio.settings import ConnectionSettings, Settings
from router_trio.states import RouteState
from router_trio.telemetry.http.rendering import REST
from router_trio.telemetry.metrics.lag import measure_lag
from router_trio.telemetry.tap.tap import TapRefused, TapRequest

DONE = 0
FAILED = 1

_logger = logging.getLogger(__name__)

BLOCKED_EVERY = 0.1
"""Seconds between two updates of how long the event loop has been blocked."""


class Worker:
    """The worker with this number. `run` does all of its work."""

    def __init__(
        self, number: int, channel: Channel[ToSupervisor, ToWorker], block: Block, write_log: Callable[[bytes], object]
    ) -> None:
        self._number = number
        self._channel = channel
        self._block = block
        self._counting = Counting(block)
        self._in_handlers = InHandlers(block, lambda one: channel.post(Survived(one)))
        self._write_log = write_log
        self._stop = trio.Event()
        self._everything = trio.CancelScope()
        self._opened = trio.Event()
        self._run: Run | None = None
        self._wanted: tuple[int, Settings] | None = None
        """The last requested reload that has not started, with its number."""
        self._reload_asked = trio.Event()

    @property
    def ends_within(self) -> float:
        """Seconds within which it ends once its supervisor has ended."""
        return EXITS_WITHIN + (0.0 if self._run is None else self._run.settings.router.shutdown_timeout)

    @property
    def emit(self) -> Emit | None:
        """The emitter of events; None until there is a router."""
        return None if self._run is None else self._run.emit

    def begin_drain(self) -> None:
        """Stop receiving, settle what is in hand, and end."""
        self._stop.set()

    async def run(self) -> int:
        """Route until `begin_drain` is called, or the supervisor requests it or has ended. Returns the exit code."""
        message = await self._channel.next_message()
        if message is None or self._stop.is_set():
            return DONE
        assert isinstance(message, Begin)
        self._in_handlers.suspect(message.suspects)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._channel.write)
            code = FAILED
            try:
                code = await self._route(message.settings, nursery)
            except RouterError as error:
                self._channel.post(Failed(type(error).__name__, str(error)))
            with trio.CancelScope(shield=True):
                await self._channel.written()
            nursery.cancel_scope.cancel()
        return code

    async def _route(self, settings: Settings, nursery: trio.Nursery) -> int:
        """Run the router. Raises `RouterError` as `Router.open` does."""
        connect = partial(self._connect, settings.router.name)
        run = Run(
            settings,
            {},
            (self._note_stop,),
            True,
            connect,
            REAL_PLATFORM,
            worker=self._number,
            write_log=self._write_log,
            around=self._in_handlers.around,
            while_blocked=WhileBlocked(self._block),
        )
        self._run = run
        self._counting.watch(run.telemetry.sources(run.live), _Past(run))
        nursery.start_soon(self._listen, run, nursery)
        nursery.start_soon(self._reload_when_asked, run)
        nursery.start_soon(self._counting.write_regularly)
        nursery.start_soon(measure_lag, self._counting.lags)
        try:
            with self._everything:
                async with run.run(no_pages, self._stop, ReloadQueue(run, ())):
                    begin_collecting()
                    self._opened.set()
                    self._channel.post(Started())
                    await self._stop.wait()
        except BaseExceptionGroup as group:
            raise run.cause_of(group) from None
        finally:
            self._counting.write_all()
        self._channel.post(Ended(run.live.unsettled))
        return FAILED if run.live.unsettled else DONE

    def _note_stop(self, event: Event) -> None:
        if isinstance(event, RouterStopped):
            # Not with the final report: the exit of the lifespan, which is next, may never return.
            self._channel.post(Stopped(event.unsettled))

    def _connect(self, router: str, name: str, settings: ConnectionSettings) -> Connect:
        return Dialer(settings, client_name(router, name), self._counting.write)

    async def _read_tap(self, run: Run, name: str, request: TapRequest) -> None:
        """Read a tap, which is opened at the first reading, and send what was read."""
        taps = run.telemetry.taps
        try:
            if not taps.is_open(name):
                await taps.open(name, request, run.live)
            self._channel.post(Tapped(name, await taps.read(name, run.live, REST)))
        except TapRefused as refused:
            self._channel.post(Tapped(name, refused))
        except Exception:
            # A fault of a tap must not end the worker, which has messages in hand.
            _logger.exception("reading a tap failed")
            self._channel.post(Tapped(name, TapRefused(500, "reading the tap failed; the log has the error")))

    async def _listen(self, run: Run, nursery: trio.Nursery) -> None:
        """Carry out the supervisor's requests. Returns when it has ended."""
        reporter = Reporter(run.live, run.telemetry.recent)
        while (message := await self._channel.next_message()) is not None:
            match message:
                case SendReport(number):
                    report = reporter.report(self._counting.write_all, trio.current_time())
                    self._channel.post(Reported(number, report))
                case Reload(number, settings):
                    self._wanted = number, settings
                    self._reload_asked.set()
                case ReadTap(name, request):
                    nursery.start_soon(self._read_tap, run, name, request)
                case CloseTap(name):
                    run.telemetry.taps.close(name)
                case Suspect(suspects):
                    self._in_handlers.suspect(suspects)
                case Drain():
                    self._stop.set()
                case Cut():
                    self._stop.set()
                    self._everything.cancel()
        self._stop.set()

    async def _reload_when_asked(self, run: Run) -> None:
        """Carry out one reload after another: of those requested in the meantime, the last."""
        await self._opened.wait()
        while True:
            await self._reload_asked.wait()
            self._reload_asked = trio.Event()
            assert self._wanted is not None
            number, settings = self._wanted
            problems: tuple[str, ...] = ()
            try:
                await run.live.reload(settings)
            except ConfigurationError as error:
                problems = tuple(str(error).splitlines())
            else:
                self._in_handlers.forget_removed({route.name for route in settings.routes})
            self._channel.post(Reloaded(number, problems))


class WhileBlocked:
    """Write to the shared block what blocks the event loop, for as long as it is blocked. A `watchdog.Answers`."""

    def __init__(self, block: Block) -> None:
        self._block = block

    def answer_while(self, blocked: Callable[[], str | None]) -> None:
        try:
            while (why := blocked()) is not None:
                self._block.write_blocked(why)
                time.sleep(BLOCKED_EVERY)
        finally:
            self._block.write_blocked(None)


class _Past:
    """The `Past` of a run: the counts of what its reloads have removed."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def connection(self, name: str) -> ConnectionCounts | None:
        return self._run.past_connections.get(name)

    def route(self, name: str) -> RouteState | None:
        return self._run.registry.past_route(name)


def channel_of(stream: Any) -> Channel[ToSupervisor, ToWorker]:
    """Return the channel on an end of a pair of sockets."""
    return Channel(trio.SocketStream(trio.socket.from_stdlib_socket(stream)))
