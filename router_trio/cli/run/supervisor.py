"""Run a supervisor with several workers, for `router-trio run --workers`. The guarantees of `serving` hold here too.

The supervisor routes nothing. It has the HTTP server, the signals, systemd and the reloads; the workers have the rest.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio

from router_trio.cli.command_line import DONE, FAILED
from router_trio.cli.last_resort import LastResort
from router_trio.cli.run.reloading import ReloadRequest, Watch, reload_on_request
from router_trio.cli.run.serving import OpenServer, report_ignored_signals, with_server
from router_trio.cli.run.systemd import Systemd
from router_trio.cli.signals import run_with_signals
from router_trio.errors import RouterError
from router_trio.events import Event, StatusPageReady
from router_trio.router.garbage_collection import begin_collecting
from router_trio.router.workers.counts.block import anonymous_file
from router_trio.router.workers.supervisor import Supervisor
from router_trio.settings import Settings
from router_trio.telemetry import Telemetry
from router_trio.telemetry.http.listeners import page_url
from router_trio.telemetry.logs.writer import WholeLines
from router_trio.telemetry.metrics.metric import Sources

if TYPE_CHECKING:
    from router_trio.router.workers.answers import WorkersAnswers


WORKERS_END_WITHIN = 15.0
"""Seconds for the shutdown after a second signal, in which the supervisor kills workers that hang."""


async def serve_workers(
    load: Callable[[], Settings],
    settings: Settings,
    open_server: OpenServer | None,
    watch: Watch | None = None,
    early_hangups: Sequence[int] = (),
) -> int:
    """Route with several workers until a signal arrives, and return the exit code. See `serving.serve`."""
    stop, cut, systemd, request = trio.Event(), trio.Event(), Systemd(), ReloadRequest()
    last_resort = LastResort(settings.router.shutdown_timeout, WORKERS_END_WITHIN)

    def on_signal(number: int) -> None:
        stop.set()
        if number > 1:
            cut.set()

    async def route() -> int:
        failure: RouterError | None = None
        telemetry: Telemetry | None = None

        def emit_once_open(event: Event) -> None:
            if telemetry is not None:
                telemetry.emit(event)

        async with AsyncExitStack() as stack:
            used, load_used = await stack.enter_async_context(with_server(open_server, settings, load, emit_once_open))
            lock = stack.enter_context(_lock())
            telemetry = Telemetry(
                used,
                logs=True,
                listeners=[systemd.observe, last_resort.observe],
                traces=False,
                write=WholeLines(lock).write,
            )
            supervisor = Supervisor(
                used,
                emit=telemetry.emit,
                recent=telemetry.recent,
                lock=lock,
                uniform=random.uniform,
            )
            address = await stack.enter_async_context(
                telemetry.serve(supervisor.sum(), answers=partial(_answers, supervisor))
            )
            report_ignored_signals(telemetry.emit)
            if address is not None:
                telemetry.emit(StatusPageReady(at=trio.current_time(), url=page_url(*address)))
            await stack.enter_async_context(
                systemd.serving(
                    lambda: supervisor.waiting_for,
                    lambda: len(supervisor.settings.routes),
                    lambda: not any(slot.is_silent for slot in supervisor.slots),
                )
            )
            begin_collecting()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reload_on_request, supervisor.reload_all, load_used, request, watch, early_hangups)
                nursery.start_soon(_end_on_request, supervisor, stop, cut)
                nursery.start_soon(_notify_systemd, supervisor, systemd)
                try:
                    await supervisor.run()
                except RouterError as error:
                    failure = error  # raised here, the nursery would wrap it in an exception group
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return FAILED if supervisor.unsettled or supervisor.has_killed else DONE

    return await run_with_signals(route, on_signal, request.set, last_resort)


@contextmanager
def _lock() -> Iterator[int]:
    """Yield the descriptor of a file that only serves as a lock. It is in memory if the system supports that."""
    descriptor = anonymous_file("router-trio-log-lock")
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _answers(supervisor: Supervisor, own: Sources) -> WorkersAnswers:
    # Imported on the first request: the metrics take as long to import as the rest of a start. See `telemetry`.
    from router_trio.router.workers.answers import WorkersAnswers

    return WorkersAnswers(supervisor, own, trio.current_time)


async def _end_on_request(supervisor: Supervisor, stop: trio.Event, cut: trio.Event) -> None:
    await stop.wait()
    supervisor.drain_all()
    await cut.wait()
    supervisor.end_all_now()


async def _notify_systemd(supervisor: Supervisor, systemd: Systemd) -> None:
    while True:
        await supervisor.wait_changed()
        systemd.state_changed()
