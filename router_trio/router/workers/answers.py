"""Answers pages for all workers together: see `telemetry.http.application.Answers`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from router_trio.router.workers.counts.numbers import PROCESS
from router_trio.router.workers.counts.process_numbers import (
    process_lines,
    process_numbers,
    processor_microseconds,
    together,
)
from router_trio.router.workers.supervisor import Supervisor
from router_trio.router.workers.taps import WorkersTaps
from router_trio.states import Histogram
from router_trio.telemetry.http.status import Answer, StatusText, answer, status_pieces
from router_trio.telemetry.metrics.lag import LAG_BOUNDS
from router_trio.telemetry.metrics.metric import Form, Sources
from router_trio.telemetry.metrics.page import MetricsPage
from router_trio.telemetry.pieces import Parts, Pieces

_MICRO = 1_000_000


class WorkersAnswers:
    """The `Answers` of a supervisor. `own` are the sources of its own process, which does no routing."""

    def __init__(self, supervisor: Supervisor, own: Sources, clock: Callable[[], float]) -> None:
        self._supervisor = supervisor
        self._own = own
        self._clock = clock
        self._started_at = clock()
        self.taps: WorkersTaps = WorkersTaps(supervisor)

    async def refresh(self) -> None:
        await self._supervisor.refresh()

    def health(self) -> Answer:
        """Return the answer of `/healthz`: healthy if the event loop of each worker turns."""
        fatal, name = self._supervisor.fatal, self._supervisor.settings.router.name
        own = [] if fatal is None else [{"router": name, "reason": fatal}]
        return answer([*own, *self._supervisor.blocked()])

    def readiness(self) -> Pieces[Answer]:
        """Return the answer of `/readyz`: ready if every worker is."""
        yield
        return answer(self._supervisor.unready())

    def status(self) -> Pieces[StatusText]:
        """Return the answer of `/status`, including each worker."""
        workers = {str(slot.number): slot.shown for slot in self._supervisor.slots}
        return status_pieces(self._supervisor.sum(), self._clock() - self._started_at, {"workers": workers})

    def metrics(self, form: Form = "text") -> Pieces[Parts]:
        found = self._supervisor.sum()
        counted, own = found.counts.get(PROCESS, {}), self._own
        lags = Histogram(LAG_BOUNDS)
        lags.add_numbers("lag", counted)
        sources = Sources(
            found,
            log_lines_dropped=lambda: own.log_lines_dropped() + counted.get("log_lines_dropped", 0),
            spans_dropped=lambda: counted.get("spans_dropped", 0),
            traces_not_followed=lambda: counted.get("traces_not_followed", 0),
            traces_not_begun=lambda: counted.get("traces_not_begun", 0),
            listener_errors=lambda: own.listener_errors() + counted.get("listener_errors", 0),
            shown=own.shown,
            unready=lambda: [self._supervisor.unready()],
            route_ready=lambda route: route.name in found.ready,
            loop_lags=lags,
        )
        return MetricsPage(sources, lambda form: self._process(counted, form)).pieces(form)

    def _process(self, counted: Mapping[str, int], form: Form) -> bytes:
        processes = [process_numbers(), *(report.process for report in self._supervisor.reports.values())]
        seconds = (processor_microseconds() + counted.get("processor_us", 0)) / _MICRO
        return process_lines(together(processes, seconds, self._supervisor.started_at), form)
