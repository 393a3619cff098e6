"""Several workers as one router: they start, reload and end together, and a lost one is replaced.

The nursery of `run` runs the slots of the workers, and one task that requests reports from them: every second, and
whenever a page is requested. A worker that does not answer delays nothing: its last report is used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import trio

from router_trio.errors import ConfigurationError, RouterError
from router_trio.events import (
    MOST_NAMES,
    Emit,
    ReloadRefused,
    RestartNeeded,
    RouterDraining,
    RouterStarted,
    RouterStopped,
    WorkerLostInHandler,
)
from router_trio.router.reload_queue import read_in_thread
from router_trio.router.workers.counts.block import InHandler
from router_trio.router.workers.counts.numbers import CONNECTION, PROCESS, ROUTE, Counts, add, forget_removed
from router_trio.router.workers.process import EXITS_WITHIN, of_worker
from router_trio.router.workers.report import Report, RouteReport
from router_trio.router.workers.slot import RUNNING, Slot
from router_trio.router.workers.sums import RouterSum, causes_first, sum_up
from router_trio.router.workers.suspects import Suspects
from router_trio.settings import Settings
from router_trio.settings.content import OF_THE_PLACE
from router_trio.settings.reload.difference import difference, in_effect
from router_trio.settings.reload.state import ConfigState
from router_trio.telemetry.http.rendering import REST
from router_trio.telemetry.logs.recent import Recent
from router_trio.telemetry.readiness_log import watch_readiness

ASK_EVERY = 1.0
"""Seconds between two requests for reports."""

ANSWERS_WITHIN = 1.0
"""Seconds that a page waits for the report of a busy worker."""

LEAST_REST = 0.02
"""Seconds between the end of one round of requests and the next; longer if reports take long to make."""

CHANGES_WITHIN = 30.0
"""Seconds that a reload waits for a worker, in addition to `shutdown_timeout`, which ending routes may take."""

STARTS_WITHIN = 20.0
"""Seconds after which the log reports that the router is not ready, even if not every worker has started."""

LATE = "still runs with the settings from before reload {}"
"""Why a worker is not ready that has not carried out a reload."""


class Supervisor:
    """The workers of one router, and the `slot.Router` of their slots. The constructor starts nothing; `run` does."""

    def __init__(
        self,
        settings: Settings,
        *,
        emit: Emit,
        recent: Recent | None,
        lock: int,
        uniform: Callable[[float, float], float],
    ) -> None:
        """`recent` gets the log entries of the workers; `lock` is a descriptor for `WholeLines`."""
        self.settings: Settings = settings
        """The settings of the next worker to be started."""
        self.config: ConfigState = ConfigState(settings, time.time())
        self.settings_number: int = 0
        self.emit = emit
        self.stopping: bool = False
        self._returned_before = 0
        self.unsettled: int = 0
        """Number of messages that the workers left unsettled at the shutdown."""
        self.has_killed: bool = False
        """True if a worker did not end by itself at the shutdown."""
        self.fatal: str | None = None
        self.started_at: float = time.time()
        self._recent = recent
        self._slots = [Slot(number + 1, self, lock, uniform) for number in range(settings.router.workers)]
        self._ended_counts: Counts = {}
        self._suspects = Suspects()
        self._shapes: dict[str, RouteReport] = {}
        self._sum: RouterSum | None = None
        self._rounds_begun = self._rounds_over = 0
        self._ask = trio.Event()
        self._round_over = trio.Event()
        self._changed = trio.Event()
        self._asking = False
        self._drains = trio.Event()
        self._late = trio.CancelScope()
        self._serving = trio.CancelScope()
        self._started = trio.Event()
        self._failure: RouterError | None = None
        self._watching: trio.Nursery | None = None

    # --- state ---

    @property
    def slots(self) -> Sequence[Slot]:
        """The slots of the workers, in order."""
        return self._slots

    @property
    def reports(self) -> dict[int, Report]:
        """The last reports of the running workers, by number."""
        return {slot.number: slot.report for slot in self._slots if slot.report is not None}

    def sum(self) -> RouterSum:
        """Return the sum of all workers' last reports."""
        if self._sum is None:
            self._sum = sum_up(self.settings, self.reports, self._ended_counts, self._shapes, self.config)
        return self._sum

    @property
    def waiting_for(self) -> str | None:
        """The first worker that is not ready, and why; None if all are."""
        for slot in self._slots:
            if slot.is_late:
                return f"worker {slot.number}: {LATE.format(self.settings_number)}"
            blocked = slot.blocked
            if blocked is not None or slot.report is None or slot.phase != RUNNING:
                return f"worker {slot.number}: {blocked or slot.phase}"
            if slot.report.waiting_for is not None:
                return f"worker {slot.number}: {slot.report.waiting_for}"
        return None

    def unready(self) -> list[Mapping[str, Any]]:
        """Return why the router is not ready: the reasons of each worker, causes first. Empty if all are ready."""
        reasons: list[Mapping[str, Any]] = []
        for slot in self._slots:
            blocked = slot.blocked
            if blocked is not None or slot.phase != RUNNING or slot.report is None:
                reasons.append({"worker": slot.number, "reason": blocked or slot.phase})
            if slot.is_late:
                reasons.append({"worker": slot.number, "reason": LATE.format(self.settings_number)})
            if slot.phase == RUNNING and slot.report is not None:
                reasons += [{"worker": slot.number, **reason} for reason in slot.report.reasons]
        return causes_first(reasons)

    def blocked(self) -> list[Mapping[str, Any]]:
        """Return what blocks the event loop of each worker whose loop is blocked."""
        found = [(slot.number, slot.blocked) for slot in self._slots]
        return [{"worker": number, "reason": why} for number, why in found if why is not None]

    async def refresh(self) -> None:
        """Request reports from all workers. Returns when they have answered, or after `ANSWERS_WITHIN`."""
        # The round in progress may have requested some reports before this call.
        wanted = self._rounds_begun + 1
        self._ask.set()
        while self._asking and self._rounds_over < wanted:
            await self._round_over.wait()

    # --- reports of slots (see `slot.Router`) ---

    def ended(self, counts: Counts, unsettled: int, *, killed: bool) -> None:
        add(self._ended_counts, counts)
        forget_removed(
            self._ended_counts,
            {
                PROCESS,
                *((CONNECTION, name) for name in self.settings.connections),
                *((ROUTE, route.name) for route in self.settings.routes),
            },
        )
        if self.stopping:
            self.unsettled += unsettled
            self.has_killed |= killed
        self._sum = None

    @property
    def suspects(self) -> Mapping[InHandler, int]:
        return self._suspects.table

    def died(self, worker: int, pid: int, in_handlers: Sequence[InHandler], *, by_itself: bool) -> None:
        streams = {route.name: route.source.kind.stream(route.source) for route in self.settings.routes}
        deaths_by_message = self._suspects.died(in_handlers) if by_itself else [(one, 0) for one in in_handlers]
        for one, deaths in deaths_by_message[:MOST_NAMES]:
            self.emit(
                WorkerLostInHandler(
                    at=trio.current_time(),
                    worker=worker,
                    pid=pid,
                    route=one.route,
                    subject=one.subject,
                    stream=streams.get(one.route),
                    sequence=one.sequence,
                    deaths=deaths,
                )
            )
        if deaths_by_message:
            self._send_suspects()

    def survived(self, one: InHandler) -> None:
        self._suspects.survived(one)
        self._send_suspects()

    def _send_suspects(self) -> None:
        for slot in self._slots:
            slot.send_suspects(self._suspects.table)

    def reported(self, worker: int, report: Report) -> None:
        self._shapes |= {route.name: route for route in report.routes}
        if self._recent is not None:
            for entry in report.news:
                self._recent.include(entry, worker)
        self.changed()

    def changed(self) -> None:
        self._sum = None
        self._changed.set()
        self._changed = trio.Event()

    async def wait_changed(self) -> None:
        """Wait until a worker has changed its state, or sent a report."""
        await self._changed.wait()

    # --- the lifetime ---

    async def run(self) -> None:
        """Keep the workers running until `drain_all` has let them end.

        Raises `RouterError` if one of them fails in a way that ends the router, after the others have drained.
        """
        async with trio.open_nursery() as asking:
            self._watching = asking
            asking.start_soon(self._ask_regularly)
            asking.start_soon(self._emit_started)
            asking.start_soon(self._watch_readiness)
            asking.start_soon(self._kill_late)
            async with trio.open_nursery() as nursery:
                for slot in self._slots:
                    nursery.start_soon(self._keep, slot)
            self._watching = None
            asking.cancel_scope.cancel()
        redelivered = self._returned - self._returned_before
        self.emit(
            RouterStopped(
                at=trio.current_time(),
                ledger=self.sum().ledger(),
                unsettled=self.unsettled,
                redelivered=redelivered,
            )
        )
        if self._failure is not None:
            raise self._failure

    def drain_all(self) -> None:
        """Let all workers stop receiving, settle what they have, and end, within `shutdown_timeout`."""
        if self.stopping:
            return
        self.stopping = True
        self._returned_before = self._returned
        self._serving.cancel()
        self._drains.set()
        timeout = self.settings.router.shutdown_timeout
        pending = sum(one.outbox.ledger.unsettled for one in self.sum().connections.values())
        self.emit(RouterDraining(at=trio.current_time(), pending_count=pending, timeout_seconds=timeout))
        for slot in self._slots:
            slot.request_drain()

    @property
    def _returned(self) -> int:
        """Number of messages that the workers' routes have returned to their streams."""
        return sum(route.settled["returned"] for route in self.sum().routes)

    def end_all_now(self) -> None:
        """Let all workers end now. They have drained by then, or have started to."""
        self._late.deadline = min(self._late.deadline, trio.current_time() + EXITS_WITHIN)
        for slot in self._slots:
            slot.request_end()

    async def reload_all(self, load: Callable[[], Settings]) -> None:
        """Load settings, check them, and let all workers change to them: all or none, as far as they are alive."""
        before = self.settings
        if self.stopping:
            return
        try:
            settings, needed = await read_in_thread(
                partial(_loaded, load, in_force=self.config.settings, workers=len(self._slots))
            )
        except ConfigurationError as error:
            self._refused(tuple(str(error).splitlines()), len(error.problems))
            return
        refusals = await self._change(self._slots, settings)
        if refusals:
            await self._change([slot for slot in self._slots if slot not in refusals], before)
            for slot in refusals:
                slot.stay(self.settings_number)
            problems = tuple(dict.fromkeys(chain.from_iterable(refusals.values())))
            self._refused(problems, len(problems))
            return
        self.config.accept()
        self.config.put_in_force(in_effect(self.config.settings, settings), time.time())
        self.changed()
        # Other keys that need a restart are reported by the workers.
        keys = tuple(key for key in needed if key in OF_THE_PLACE)
        if keys:
            self.emit(RestartNeeded(at=trio.current_time(), keys=keys))

    # --- internals ---

    async def _keep(self, slot: Slot) -> None:
        try:
            await slot.run()
        except RouterError as error:
            if self._failure is None:
                self._failure, self.fatal = error, str(error)
            self.drain_all()

    async def _kill_late(self) -> None:
        """Kill the workers that have not ended when a drain should be over."""
        await self._drains.wait()
        drained_at = trio.current_time() + self.settings.router.shutdown_timeout
        self._late.deadline = min(self._late.deadline, drained_at + EXITS_WITHIN)
        with self._late:
            await trio.sleep_forever()
        for slot in self._slots:
            slot.kill()

    async def _change(self, slots: Sequence[Slot], settings: Settings) -> dict[Slot, tuple[str, ...]]:
        """Let these workers change to other settings, which each of them gets at its next start at the latest.

        Returns the workers that refuse, with the problems that they report.
        """
        self.settings = settings
        self.settings_number = number = self.settings_number + 1
        refusals: dict[Slot, tuple[str, ...]] = {}

        async def change(slot: Slot) -> None:
            if problems := await slot.change_to(of_worker(settings), number):
                refusals[slot] = problems

        if self._watching is not None:
            self._watching.start_soon(self._replace_stuck, number)
        with trio.move_on_after(settings.router.shutdown_timeout + CHANGES_WITHIN):
            async with trio.open_nursery() as nursery:
                for slot in slots:
                    nursery.start_soon(change, slot)
        return refusals

    async def _replace_stuck(self, number: int) -> None:
        """Replace workers that have not reloaded in time: silent ones soon, slow ones later."""
        timeout = self.settings.router.shutdown_timeout
        for within, is_stuck in ((timeout + EXITS_WITHIN, _is_silent), (CHANGES_WITHIN, _is_any)):
            with trio.move_on_after(within):
                while any(slot.is_behind(number) for slot in self._slots):
                    await self._changed.wait()
                return
            for slot in self._slots:
                if slot.is_behind(number) and is_stuck(slot):
                    slot.replace_stuck(
                        f"was killed by the supervisor: {within:g} s after reload {number} it still had older settings"
                    )

    def _refused(self, problems: tuple[str, ...], count: int) -> None:
        refused = ReloadRefused(at=trio.current_time(), count=count, problems=problems)
        self.config.refuse(refused.problems)
        self.changed()
        self.emit(refused)

    async def _ask_regularly(self) -> None:
        self._asking = True
        try:
            await self._ask_rounds()
        finally:
            self._asking = False
            self._round_over.set()

    async def _ask_rounds(self) -> None:
        while True:
            self._ask = trio.Event()
            self._rounds_begun += 1
            asked = [slot for slot in self._slots if not slot.is_silent]
            for slot in self._slots:
                slot.request_report()
            with trio.move_on_after(ANSWERS_WITHIN):
                for slot in asked:
                    await slot.wait_answered()
            self._rounds_over = self._rounds_begun
            self._sum = None
            self._round_over.set()
            self._round_over = trio.Event()
            # Workers have to route, however many pages are requested.
            await trio.sleep(max(LEAST_REST, *(REST * one.seconds for one in self.reports.values()), 0.0))
            with trio.move_on_after(ASK_EVERY):
                await self._ask.wait()

    async def _emit_started(self) -> None:
        while not all(slot.has_started for slot in self._slots):
            await self._changed.wait()
        self.emit(
            RouterStarted(
                at=trio.current_time(),
                name=self.settings.router.name,
                connections=len(self.settings.connections),
                routes=len(self.settings.routes),
            )
        )
        self._started.set()

    async def _watch_readiness(self) -> None:
        with self._serving:
            # Not being ready for a moment during a start is not worth reporting; a start that takes long is.
            with trio.move_on_after(STARTS_WITHIN):
                await self._started.wait()
                await self.refresh()
            await watch_readiness(lambda: [self.unready()], self.emit)


def _is_silent(slot: Slot) -> bool:
    return slot.is_silent


def _is_any(slot: Slot) -> bool:
    return True


def _loaded(load: Callable[[], Settings], in_force: Settings, workers: int) -> tuple[Settings, tuple[str, ...]]:
    """Return new settings for `workers` workers, and which of their keys take effect only after a restart.

    Raises `ConfigurationError`.
    """
    settings = load()
    settings.require_servers()
    _ = settings.content_hash  # computed in this thread, so that no page has to
    return settings.with_workers(workers), difference(in_force, settings).needs_restart
