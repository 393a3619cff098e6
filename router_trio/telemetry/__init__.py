"""Logs, metrics, traces and HTTP pages of a router, behind one object.

Telemetry only observes. Each event goes to the outage spans, the log and the listeners of an embedding program; a
listener that fails loses its own output and affects nothing else. Features that are switched off are not imported:
without an HTTP address and an OTLP endpoint, neither OpenTelemetry nor Starlette nor h11 is loaded. The HTTP server and
the span exporter take as long to import as the rest of the router, so they are imported after the first routes have
started: see `OBSERVERS_WITHIN`.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import copy_context
from importlib import import_module
from typing import TYPE_CHECKING

import trio

from router_trio.connection.platform import REAL_PLATFORM, Platform
from router_trio.events import Emit, Event, Level
from router_trio.routing.tracing import Tracing
from router_trio.telemetry.http.blocked import HandedOver, ProbesWhileBlocked
from router_trio.telemetry.http.listeners import address_of, open_listeners
from router_trio.telemetry.http.status import route_ready, unready_parts
from router_trio.telemetry.logs.recent import Recent
from router_trio.telemetry.logs.writer import write_to_stderr
from router_trio.telemetry.tap.taps import Taps
from router_trio.telemetry.traces.current import NoSpans
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
"""Maximum seconds for which the start of the routes (`first` of `Telemetry.serve`) delays pages and spans."""

_logger = logging.getLogger("router_trio.telemetry")


class Telemetry:
    """The telemetry of one router, for one run.

    Creating it is cheap and starts nothing, so that connections can be given `emit` and `tracing` before their router
    is complete. Lines logged before `serve` is entered are written then. `logs=False` keeps stderr clean for an
    embedding program. Events less severe than `least` are not logged, whatever level the settings have. `listeners` are
    called with every event, after logs and traces, and must not block. With `worker` each line has the number of that
    worker process; `write` writes the lines. `traces=False` is for a process that routes no messages itself.
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
        """Answers `/healthz` while the event loop is blocked. None outside of `serve` or without an HTTP address."""
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
        self.taps: Taps = Taps(self._settings)
        """The taps on routes of this process. `taps.change` applies new settings."""
        # Events are kept from now on, so that the status page also has those from before it was served.
        listens = self._settings.listen_address is not None
        kept = listens or worker is not None
        self._recent = Recent(wall=platform.wall_clock, merges=worker is None) if kept else None
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
        """The tracer for the messages of routes. It makes spans only inside of `serve`, and only with an endpoint."""
        return self._traces if self._traces is not None else NoSpans()

    @property
    def http_address(self) -> tuple[str, int] | None:
        """Host and port of the HTTP server; None outside of `serve`, or if it is switched off."""
        return self._address

    @property
    def recent(self) -> Recent | None:
        """The recent events, for the status page; None if the page is not served."""
        return self._recent

    @property
    def spans_dropped(self) -> int:
        """Spans dropped because too many were queued or the collector did not accept them."""
        return self._traces.dropped if self._traces is not None else 0

    @property
    def traces_not_followed(self) -> int:
        """Messages sampled by their sender but routed untraced, because of `max_traces_per_second`."""
        return self._traces.not_followed if self._traces is not None else 0

    @property
    def traces_not_begun(self) -> int:
        """Messages chosen by `trace_sample_ratio` that started no trace, because of `max_traces_per_second`."""
        return self._traces.not_begun if self._traces is not None else 0

    @property
    def log_lines_dropped(self) -> int:
        """Log lines dropped because stderr did not accept them."""
        return self._logs.lines_dropped if self._logs is not None else 0

    def emit(self, event: Event) -> None:
        """Pass an event to traces, log and listeners. Never blocks and never raises."""
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
                copy_context().run(listener, event)  # or calls of handlers, in this task, would see what it sets
            except Exception:
                self._failed(listener)

    def emit_from_thread(self, event: Event, token: trio.lowlevel.TrioToken) -> None:
        """Log an event at once, in the calling thread; pass it to the listeners when the event loop runs. Never raises.

        Unlike `emit` it does not pass the event to the traces.
        """
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
        """Write logs, make spans and serve HTTP while this is entered; yields `http_address`.

        `clock` is the clock of the fences; `pages` are served beside the router's own. `answers` makes the contents of
        the pages if they cover more than this process; by default they show `view`.

        The address is bound on entering, which raises `ListenError` if that fails. Requests are answered and spans are
        exported once `first` has returned, or after `OBSERVERS_WITHIN` seconds. Leaving, cancelled or not, allows open
        requests one second, the collector two seconds and stderr one second.
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
                    # One import at a time, pages before spans. A limiter of our own: threads of the embedding program
                    # may have used up Trio's default one.
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
            # Raised outside of the nursery, which would wrap the program's own exception in a group.
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
        # In a thread, so that messages are routed meanwhile. Not abandoned on cancellation: it takes a moment, and no
        # thread is left behind.
        await trio.to_thread.run_sync(_prepare_pages, view, limiter=imports)
        from router_trio.telemetry.http.application import RouterAnswers, serve_pages

        allowed_hosts, sources = frozenset(self._settings.allowed_hosts), self.sources(view, clock)
        own = RouterAnswers(sources, self.taps, clock, started_at) if answers is None else answers(sources)
        await serve_pages(listeners, own, recent, allowed_hosts, pages, sources.loop_lags, self._handed_over, self.emit)

    async def _export_spans(
        self, traces: Traces, first: Callable[[], Awaitable[object]], imports: trio.CapacityLimiter
    ) -> None:
        with trio.move_on_after(OBSERVERS_WITHIN):
            await first()
        await traces.begin_export(imports)

    def sources(self, view: RouterView, clock: Callable[[], float] = trio.current_time) -> Sources:
        """Return the sources that metrics are read from. `clock` is the clock of the fences."""
        from router_trio.telemetry.metrics.metric import Sources

        return Sources(
            view,
            log_lines_dropped=lambda: self.log_lines_dropped,
            spans_dropped=lambda: self.spans_dropped,
            traces_not_followed=lambda: self.traces_not_followed,
            traces_not_begun=lambda: self.traces_not_begun,
            listener_errors=lambda: self._listener_errors,
            shown=self._settings.shows_metrics_of,
            unready=lambda: unready_parts(view, clock),
            route_ready=lambda route: route_ready(view, route, clock()),
        )

    def _forget_address(self) -> None:
        self._address = self.probes = None

    def _failed(self, listener: object) -> None:
        self._listener_errors += 1
        # Logged once per listener: a listener that fails on every event would flood the log.
        if listener not in self._failing:
            self._failing.add(listener)
            _logger.exception("a listener of events failed: %r; further failures are only counted", listener)


def _prepare_pages(view: RouterView) -> None:
    """Import the modules that serve pages, and compute the configuration's hash. Both would block the event loop."""
    import_module("router_trio.telemetry.http.application")
    _ = view.config.hash
