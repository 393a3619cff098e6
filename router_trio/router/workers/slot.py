"""The place of one worker: a process, and after its end the next one, until the router ends.

The counts of a process outlive it: when it has ended, its shared block is read, and what it left unsettled is settled
(`counts.settle`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Protocol

import trio

from router_trio.errors import RouterError
from router_trio.events import Emit, WorkerLost, WorkerStarted
from router_trio.router.workers.counts.block import InHandler, read_block, read_blocked, take_in_handlers
from router_trio.router.workers.counts.numbers import Counts, Left, settle, with_removed
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
)
from router_trio.router.workers.process import EXITS_WITHIN, WorkerProcess, describe_exit, of_worker, open_worker
from router_trio.router.workers.report import Report
from router_trio.router.workers.restarts import Restarts, ends_router
from router_trio.settings import Settings
from router_trio.telemetry.tap.tap import Reading, TapRefused, TapRequest

STARTING = "starting"
RUNNING = "running"
SILENT = "silent"
DRAINING = "draining"
WAITING = "waiting"
ENDED = "ended"

SILENT_AFTER = 3.0
"""Seconds without an answer after which a worker counts as stuck."""

MOST_QUESTIONS = 2
"""Requests for a report that a worker may have open. A second one ensures a report that is newer than its request."""

LOOK_EVERY = 0.1
"""Seconds between two checks whether a worker that is changing its settings has gone silent."""


class Router(Protocol):
    """The supervisor of a slot."""

    settings: Settings
    settings_number: int
    """Number of the reload that led to the settings."""
    emit: Emit
    stopping: bool

    def ended(self, counts: Counts, unsettled: int, *, killed: bool) -> None:
        """Record that a process has ended, with its counts, all settled, and how many messages it left unsettled.

        `killed`: the supervisor had to end it.
        """

    @property
    def suspects(self) -> Mapping[InHandler, int]:
        """The messages that may end the process that handles them: see `Suspects`."""
        ...

    def died(self, worker: int, pid: int, in_handlers: Sequence[InHandler], *, by_itself: bool) -> None:
        """Record that a process has ended that had these messages in handlers."""

    def survived(self, one: InHandler) -> None:
        """Record that a suspected message has not ended its process."""

    def reported(self, worker: int, report: Report) -> None:
        """Record the report of a worker."""

    def changed(self) -> None:
        """Record that a worker has changed its state."""


@dataclass(slots=True)
class _Outcome:
    """The last reports of one process about itself."""

    up_at: float | None = None
    left: int | None = None
    """Messages that it left unsettled, once its router has stopped."""
    unsettled: int | None = None
    """Messages left unsettled according to its final report."""
    failure: tuple[str, str] | None = None

    @property
    def is_over(self) -> bool:
        """Return True if it has sent its final report."""
        return self.unsettled is not None or self.failure is not None


class Slot:
    """The place of the worker with this number. `run` keeps a process in it."""

    def __init__(self, number: int, router: Router, lock: int, uniform: Callable[[float, float], float]) -> None:
        self.number = number
        self.report: Report | None = None
        """The last report of the running process."""
        self.has_started: bool = False
        """True once a process in this slot has started routing."""
        self._router = router
        self._lock = lock
        self._restarts = Restarts(uniform)
        self._process: WorkerProcess | None = None
        self._phase = STARTING
        self._asked = self._answered = 0
        self._heard_at = 0.0
        self._answer = trio.Event()
        self._killed = False
        self._waiting = trio.CancelScope()
        self._reload_over = trio.Event()
        self._settings_number = 0
        """Number of the reload that led to the settings of the process."""
        self._problems: tuple[int, tuple[str, ...]] = 0, ()
        """Number and problems of the last reload that it answered."""
        self._changes_by = inf
        """When it should have changed to the settings of the router."""
        self._stuck: str | None = None
        self._in_handlers: Sequence[InHandler] = ()
        """Messages that were in handlers when the process ended."""
        self._taps_asked: set[str] = set()
        self._tapped: dict[str, list[Reading | TapRefused]] = {}

    # --- state and requests ---

    @property
    def phase(self) -> str:
        """The state: `starting`, `running`, `silent`, `draining`, `waiting` for its start, or `ended`."""
        return SILENT if self._phase == RUNNING and self.is_silent else self._phase

    @property
    def is_silent(self) -> bool:
        """Return True if the process runs and has not answered for long."""
        late = trio.current_time() - self._heard_at > SILENT_AFTER
        return self._process is not None and self._answered < self._asked and late

    @property
    def blocked(self) -> str | None:
        """The cause that blocks the event loop of the process, as it reports itself; None if it turns."""
        return None if self._process is None else read_blocked(self._process.block)

    @property
    def shown(self) -> dict[str, Any]:
        """The entry of the worker in `/status`."""
        pid = None if self._process is None else self._process.pid
        config_hash = None if self.report is None else self.report.config_hash
        return {"pid": pid, "state": self.phase, "restarts": self._restarts.count, "config_hash": config_hash}

    def request_report(self) -> None:
        """Request a report, unless too many requests are unanswered."""
        if self._process is not None and self._asked - self._answered < MOST_QUESTIONS:
            if self._answered == self._asked:
                self._heard_at = trio.current_time()
            self._asked += 1
            self._process.channel.post(SendReport(self._asked))

    async def wait_answered(self) -> None:
        """Wait until the process has answered all requests, or has ended."""
        asked = self._asked
        while self._process is not None and self._answered < asked:
            await self._answer.wait()

    def send_suspects(self, suspects: Mapping[InHandler, int]) -> None:
        """Send the process the messages to be careful with."""
        if self._process is not None:
            self._process.channel.post(Suspect(suspects))

    def request_tap(self, name: str, request: TapRequest) -> None:
        """Request what there is to read of a tap, unless an earlier request for it is unanswered."""
        if self._process is not None and name not in self._taps_asked:
            self._taps_asked.add(name)
            self._process.channel.post(ReadTap(name, request))

    async def wait_tapped(self, name: str) -> None:
        """Wait until the process has answered the last request for this tap, or has ended."""
        while name in self._taps_asked:
            await self._answer.wait()

    def take_tapped(self, name: str) -> list[Reading | TapRefused]:
        """Return what has arrived of a tap since the last call."""
        return self._tapped.pop(name, [])

    def close_tap(self, name: str) -> None:
        """Let the process close a tap."""
        self._tapped.pop(name, None)
        self._taps_asked.discard(name)
        if self._process is not None:
            self._process.channel.post(CloseTap(name))

    def request_drain(self) -> None:
        """Let the process end after it has stopped receiving and settled what it has."""
        self._waiting.cancel()
        if self._process is not None:
            self._phase = DRAINING
            self._process.channel.post(Drain())

    def request_end(self) -> None:
        """Let the process end now."""
        if self._process is not None:
            self._process.channel.post(Cut())

    def kill(self) -> None:
        """Kill the process. Unless its router has stopped, this counts as something left unsettled."""
        if self._process is not None:
            self._killed = True
            self._process.process.kill()

    async def change_to(self, settings: Settings, number: int) -> tuple[str, ...]:
        """Let the process change to these settings of a worker. Returns the problems if it refuses them.

        Returns when it has changed, or has gone silent: then it changes once it continues, to the last settings
        requested. A process that does not run, or ends meanwhile, gets them at its next start.
        """
        worker = self._process
        if worker is None:
            return ()
        self._changes_by = trio.current_time() + self._router.settings.router.shutdown_timeout + EXITS_WITHIN
        worker.channel.post(Reload(number, settings))
        while self._process is worker and self._problems[0] < number and not self.is_silent:
            with trio.move_on_after(LOOK_EVERY):
                await self._reload_over.wait()
        return self._problems[1] if self._process is worker and self._problems[0] == number else ()

    def stay(self, number: int) -> None:
        """Record that the router has returned to the settings that this process kept when it refused others."""
        self._settings_number = number

    def is_behind(self, number: int) -> bool:
        """Return True if the process runs with settings from before the reload with this number."""
        return self._process is not None and self._settings_number < number

    @property
    def is_late(self) -> bool:
        """Return True if the process lacks the router's settings, and is silent or should have changed by now."""
        late = self.is_silent or trio.current_time() > self._changes_by
        return late and self.is_behind(self._router.settings_number)

    def replace_stuck(self, why: str) -> None:
        """Kill the process. Another one takes its place, with the settings of the router."""
        if self._process is not None:
            self._stuck = why
            self._process.process.kill()

    # --- running processes ---

    async def run(self) -> None:
        """Keep a process running until the router stops. Raises `RouterError` if a failure of one ends the router."""
        while not self._router.stopping:
            try:
                outcome, reason, pid, left = await self._run_process()
            except OSError as error:
                failure = "OSError", f"worker {self.number} can't be started: {error.strerror or error}"
                outcome, reason, pid, left = _Outcome(failure=failure), "", 0, Left(0, 0, 0)
            first_run, stopping = not self.has_started, self._router.stopping
            if outcome.failure is not None and ends_router(outcome.failure[0], first_run=first_run, stopping=stopping):
                raise RouterError(outcome.failure[1])
            if self._router.stopping:
                break
            lasted = 0.0 if outcome.up_at is None else trio.current_time() - outcome.up_at
            delay = self._restarts.next_delay(lasted, named=bool(self._in_handlers))
            if outcome.failure is not None:
                reason = f"has failed: {outcome.failure[1]}"
            elif self._stuck is not None:
                reason = self._stuck
            self._phase = WAITING
            self._router.emit(
                WorkerLost(
                    at=trio.current_time(),
                    worker=self.number,
                    pid=pid,
                    reason=reason,
                    delay_ms=round(delay * 1000),
                    dropped=left.dropped,
                    returned=left.returned,
                    lost=left.lost,
                )
            )
            self._router.died(self.number, pid, self._in_handlers, by_itself=self._stuck is None)
            self._router.changed()
            self._waiting = trio.CancelScope()
            with self._waiting:
                await trio.sleep(delay)
        self._phase = ENDED

    async def _run_process(self) -> tuple[_Outcome, str, int, Left]:
        outcome = _Outcome()
        self._phase = STARTING
        self._asked = self._answered = 0
        self._problems, self._changes_by, self._stuck, self._in_handlers = (0, ()), inf, None, ()
        async with open_worker(self.number, self._lock) as worker:
            try:
                self._process = worker
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(worker.channel.write)
                    self._settings_number = self._router.settings_number
                    worker.channel.post(Begin(of_worker(self._router.settings), self._router.suspects))
                    if self._router.stopping:
                        self.request_drain()
                    self.request_report()
                    nursery.start_soon(self._listen, worker, outcome)
                    # Wait for the process and not for the channel, since a forked child may hold that open.
                    await worker.ended()
                    nursery.cancel_scope.cancel()
                for message in worker.channel.rest():
                    self._take(worker, outcome, message)
            finally:
                # Also when cancelled: the process is killed then, and its counts are kept.
                code = 0
                with trio.CancelScope(shield=True):
                    worker.process.kill()  # does nothing if it has ended
                    code = await worker.ended()
                left = self._ended(worker, outcome)
        return outcome, describe_exit(code), worker.pid, left

    async def _listen(self, worker: WorkerProcess, outcome: _Outcome) -> None:
        """Process what the worker sends until its final report, then make sure that it exits."""
        while not outcome.is_over and (message := await worker.channel.next_message()) is not None:
            self._take(worker, outcome, message)
        await trio.sleep(EXITS_WITHIN)
        worker.process.kill()

    def _ended(self, worker: WorkerProcess, outcome: _Outcome) -> Left:
        counts = read_block(worker.block)
        in_handlers = take_in_handlers(counts)
        # A process that ended in order had time to settle them, or was instructed not to.
        self._in_handlers = () if outcome.is_over or self._killed else in_handlers
        left = settle(counts)
        # Its own report is more complete: it includes messages received and never routed.
        unsettled = outcome.left if outcome.unsettled is None else outcome.unsettled
        killed = self._killed and not outcome.is_over
        if unsettled is None:
            unsettled = max(left.dropped + left.lost, int(killed))
        self._process, self.report = None, None
        self._taps_asked.clear()
        self._router.ended(counts, unsettled, killed=killed)
        self._answer.set()
        self._answer = trio.Event()
        self._reload_over.set()
        self._reload_over = trio.Event()
        self._router.changed()
        return left

    def _take(self, worker: WorkerProcess, outcome: _Outcome, message: ToSupervisor) -> None:
        match message:
            case Reported(number, report):
                self._answered, self._heard_at = number, trio.current_time()
                if self.report is not None:
                    report = replace(report, counts=with_removed(self.report.counts, report.counts))
                self.report = report
                self._router.reported(self.number, report)
                self._answer.set()
                self._answer = trio.Event()
            case Started():
                self.has_started = True
                outcome.up_at = trio.current_time()
                if self._phase == STARTING:
                    self._phase = RUNNING
                self._router.emit(
                    WorkerStarted(
                        at=trio.current_time(), worker=self.number, pid=worker.pid, restarts=self._restarts.count
                    )
                )
                self._router.changed()
            case Reloaded(number, problems):
                self._problems = number, problems
                if not problems:
                    self._settings_number = number
                self._reload_over.set()
                self._reload_over = trio.Event()
                self._router.changed()
            case Tapped(name, reading):
                if name in self._taps_asked:  # else the tap was closed meanwhile
                    self._taps_asked.discard(name)
                    self._tapped.setdefault(name, []).append(reading)
                    self._answer.set()
                    self._answer = trio.Event()
            case Survived(one):
                self._router.survived(one)
            case Stopped(left):
                outcome.left = left
            case Ended(unsettled):
                outcome.unsettled = unsettled
            case Failed(kind, text):
                outcome.failure = kind, text
