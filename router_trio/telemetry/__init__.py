"""Logs, metrics, traces and the HTTP side of a router, behind one object: all that people on call see of it.

Telemetry listens and never decides. An event goes to the outage spans, the log and the listeners of an embedding
program; one that fails costs its own output and nothing else. Whatever is not switched on is not even imported: without
an HTTP address and an OTLP endpoint neither OpenTelemetry nor Starlette nor h11 is loaded. What serves HTTP and exports
spans takes as long to import as all the rest, so the router is let through first: see `OBSERVERS_WITHIN`.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING

import trio

from router_trio.connection.platform import REAL_PLATFORM, Platform
from router_trio.events import Emit, Event, Level
from router_trio.routing.tracing import NoTracing, Tracing
from router_trio.telemetry.http.blocked import HandedOver, ProbesWhileBlocked
from router_trio.telemetry.http.listeners import address_of, open_listeners
from router_trio.telemetry.http.status import OK, readiness, route_ready
from router_trio.telemetry.logs.recent import Recent
from router_trio.telemetry.logs.writer import write_to_stderr
from router_trio.telemetry.traces.tracer import Traces, traces_wanted
from router_trio.telemetry.view import ConnectionView, RouterView

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from router_trio.settings import Settings
    from router_trio.telemetry.http.application import Answers
    from router_trio.telemetry.logs.lines import Logs
    from router_trio.telemetry.metrics.metric import Sources

__all__ = ["ConnectionView", "RouterView", "Telemetry"]

OBSERVERS_WITHIN = 0.25
"""Seconds for which whatever goes first may hold up pages and spans."""

_logger = logging.getLogger("router_trio.telemetry")


class Telemetry:
    """The telemetry of one router, for one run.

    Building it is cheap and starts nothing, so that connections can be given `emit` and `tracing` before the router
    that they belong to is complete; lines logged before `serve` wait for it. `logs=False` keeps stderr clean for an
    embedding program, `least` lets nothing through that is less severe, whatever the settings say. `listeners` are told
    every event, after logs and traces, and must not block. One of several workers has its number in each line, and
    writes by `write`; `traces=False` is for who routes no message itself.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        logs: bool = True,
        least: Level | None = None,
        listeners: Sequence[Emit] = (),
        platform: Platform = REAL_PLATFORM,
        traces: bool = True,
        worker: int | None = None,
        write: Callable[[bytes], object] = write_to_stderr,
    ) -> None:
        self._settings = settings.telemetry
        self._address: tuple[str, int] | None = None
        self._listeners = tuple(listeners)
        self._failing: set[object] = set()
        self._handed_over = HandedOver()
        self._name = settings.router.name
        self.probes: ProbesWhileBlocked | None = None
        """Answers `/healthz` while the loop is blocked. Inside of `serve`, with an HTTP address."""
        self._listener_errors = 0
        self._traces: Traces | None = None
        if traces and traces_wanted(self._settings.otlp_endpoint):
            self._traces = Traces(
                service_name=settings.router.name,
                endpoint=self._settings.otlp_endpoint,
                sample_ratio=self._settings.trace_sample_ratio,
                max_per_second=self._settings.max_traces_per_second,
                random=platform.random,
            )
        # The page shows what happened before it could be asked for, too.
        listens = self._settings.listen_address is not None
        self._recent = Recent(wall=platform.wall_clock) if listens or worker is not None else None
        self._logs: Logs | None = None
        if logs:
            from router_trio.telemetry.logs.lines import Logs

            self._logs = Logs(
                level=self._settings.log_level,
                least=least,
                form=self._settings.log_format,
                handler_errors=self._settings.handler_errors,
                worker=worker,
                write=write,
            )

    @property
    def tracing(self) -> Tracing:
        """The tracer that routing asks about each message. Active only inside of `serve`, with an endpoint."""
        return self._traces if self._traces is not None else NoTracing()

    @property
    def http_address(self) -> tuple[str, int] | None:
        """Host and port of the HTTP side; None outside of `serve`, or when it is switched off."""
        return self._address

    @property
    def recent(self) -> Recent | None:
        """The last events, for the status page; None if nobody can ask for it."""
        return self._recent

    @property
    def spans_dropped(self) -> int:
        """Spans that were let go: too many at once, or the collector did not take them."""
        return self._traces.dropped if self._traces is not None else 0

    @property
    def traces_not_followed(self) -> int:
        """Messages whose sender records their trace, and which were too many in a second to take part in it."""
        return self._traces.not_followed if self._traces is not None else 0

    @property
    def traces_not_begun(self) -> int:
        """Messages of `trace_sample_ratio` that began no trace: too many in a second."""
        return self._traces.not_begun if self._traces is not None else 0

    @property
    def log_lines_dropped(self) -> int:
        """Log lines that were let go because stderr did not take them."""
        return self._logs.lines_dropped if self._logs is not None else 0

    def emit(self, event: Event) -> None:
        """Tell everyone who listens. Never blocks and never raises."""
        ids = None
        if self._traces is not None:
            try:
                ids = self._traces.note_event(event)
            except Exception:
                self._failed(self._traces)
        if self._logs is not None:
            try:
                self._logs.write(event, ids)
            except Exception:
                self._failed(self._logs)
        self._notify_others(event)

    def _notify_others(self, event: Event) -> None:
        if self._recent is not None:
            try:
                self._recent.observe(event)
            except Exception:
                self._failed(self._recent)
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                self._failed(listener)

    def emit_from_thread(self, event: Event, token: trio.lowlevel.TrioToken) -> None:
        """Log an event at once, in the thread that calls; tell all others when the loop turns. Never raises."""
        try:
            if self._logs is not None:
                self._logs.write(event)
            token.run_sync_soon(self._notify_others, event)
        except Exception:
            self._failed(self._logs)

    @asynccontextmanager
    async def serve(
        self,
        view: RouterView,
        *,
        clock: Callable[[], float] = trio.current_time,
        pages: Sequence[BaseRoute] = (),
        first: Callable[[], Awaitable[object]] = trio.lowlevel.checkpoint,
        answers: Callable[[Sources], Answers] | None = None,
    ) -> AsyncIterator[tuple[str, int] | None]:
        """Write logs, make spans and answer HTTP while this is entered; gives `http_address`.

        `clock` is the one of the fences; `pages` are served beside the router's own. `answers` makes what the pages say
        of more than this process; by default they say how `view` is. Entering raises `ListenError`;
        who connects from then on is answered, and spans are exported, as soon as `first` has returned, or has taken too
        long. Leaving, cancelled or not, gives open requests one second, the collector two and stderr one.
        """
        failure: Exception | None = None
        try:
            async with AsyncExitStack() as stack:
                if self._logs is not None:
                    await stack.enter_async_context(self._logs.running())
                if self._traces is not None:
                    await stack.enter_async_context(self._traces.running())
                listeners = await self._listen(stack)
                async with trio.open_nursery() as nursery:
                    if self._logs is not None:
                        nursery.start_soon(self._logs.flush_regularly)
                    # One import after the other, pages before spans; of our own, since the program's may be used up.
                    imports = trio.CapacityLimiter(1)
                    if listeners and self._recent is not None:
                        nursery.start_soon(
                            self._serve_http, listeners, self._recent, view, clock, pages, first, answers, imports
                        )
                    if self._traces is not None:
                        nursery.start_soon(self._export_spans, self._traces, first, imports)
                    try:
                        yield self._address
                    except Exception as error:
                        failure = error
                    finally:
                        if self._recent is not None:
                            self._recent.closing.set()
                        nursery.cancel_scope.cancel()
        except BaseException as error:
            if failure is None:
                raise
            raise BaseExceptionGroup("the program failed, and its telemetry was cut short", [failure, error]) from None
        if failure is not None:
            # Raised out here, since the nursery would put what is none of telemetry's business into a group.
            raise failure

    # --- inside ---

    async def _listen(self, stack: AsyncExitStack) -> list[trio.SocketListener]:
        listen = self._settings.listen_address
        if listen is None:
            return []
        listeners = await open_listeners(*listen)
        for listener in listeners:
            stack.callback(listener.socket.close)
        self._address = address_of(listeners[0])
        self.probes = ProbesWhileBlocked(
            self._name, listeners, trio.lowlevel.current_trio_token(), self._handed_over.put
        )
        stack.callback(self._handed_over.close)
        stack.callback(self._forget_address)
        return listeners

    async def _serve_http(
        self,
        listeners: Sequence[trio.SocketListener],
        recent: Recent,
        view: RouterView,
        clock: Callable[[], float],
        pages: Sequence[BaseRoute],
        first: Callable[[], Awaitable[object]],
        answers: Callable[[Sources], Answers] | None,
        imports: trio.CapacityLimiter,
    ) -> None:
        started_at = clock()
        with trio.move_on_after(OBSERVERS_WITHIN):
            await first()
        # In a thread, so that messages pass meanwhile. Waited for also when cancelled: it takes a moment, and nothing
        # of it is left behind.
        await trio.to_thread.run_sync(_prepare_pages, view, limiter=imports)
        from router_trio.telemetry.http.application import RouterAnswers, serve_pages

        allowed_hosts, sources = frozenset(self._settings.allowed_hosts), self.sources(view, clock)
        own = RouterAnswers(sources, clock, started_at) if answers is None else answers(sources)
        await serve_pages(listeners, own, recent, allowed_hosts, pages, sources.loop_lags, self._handed_over)

    async def _export_spans(
        self, traces: Traces, first: Callable[[], Awaitable[object]], imports: trio.CapacityLimiter
    ) -> None:
        with trio.move_on_after(OBSERVERS_WITHIN):
            await first()
        await traces.begin_export(imports)

    def sources(self, view: RouterView, clock: Callable[[], float] = trio.current_time) -> Sources:
        """Return what metrics are read from. `clock` is the one of the fences."""
        from router_trio.telemetry.metrics.metric import Sources

        return Sources(
            view,
            log_lines_dropped=lambda: self.log_lines_dropped,
            spans_dropped=lambda: self.spans_dropped,
            traces_not_followed=lambda: self.traces_not_followed,
            traces_not_begun=lambda: self.traces_not_begun,
            listener_errors=lambda: self._listener_errors,
            ready=lambda: readiness(view, clock())[0] == OK,
            route_ready=lambda route: route_ready(view, route, clock()),
        )

    def _forget_address(self) -> None:
        self._address = self.probes = None

    def _failed(self, listener: object) -> None:
        self._listener_errors += 1
        # Once for each listener: one that fails on every event would drown what the others say.
        if listener not in self._failing:
            self._failing.add(listener)
            _logger.exception("a listener of events failed: %r; further failures are only counted", listener)


def _prepare_pages(view: RouterView) -> None:
    """Import the modules that serve pages and compute the hash of the configuration: both would hold up the loop."""
    import_module("router_trio.telemetry.http.application")
    _ = view.config.hash
