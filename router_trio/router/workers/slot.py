"""The place of one worker: a process, after its end the next one, until the router ends.

What a process has counted outlives it: when it has ended, the shared block is read, and what it left unsettled is
settled (`counts.settle`).
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
from router_trio.router.workers.process import EXITS_WITHIN, WorkerProcess, how_it_ended, of_worker, open_worker
from router_trio.router.workers.report import Report
from router_trio.router.workers.restarts import Restarts, ends_router
from router_trio.settings import Settings

STARTING = "starting"
RUNNING = "running"
SILENT = "silent"
DRAINING = "draining"
WAITING = "waiting"
ENDED = "ended"

SILENT_AFTER = 3.0
"""Seconds without an answer after which a worker counts as stuck."""

MOST_QUESTIONS = 2
"""Questions to a worker that it has yet to answer: what it says to the second is of later than it was asked."""

LOOK_EVERY = 0.1
"""Seconds between two looks whether a worker that is to change its settings has fallen silent."""


class Router(Protocol):
    """The supervisor of a worker's slot."""

    settings: Settings
    settings_number: int
    """Each reload has the next one; that of the settings."""
    emit: Emit
    stopping: bool

    def ended(self, counts: Counts, unsettled: int) -> None:
        """A process has ended: this is what it had counted, all settled, and how much it had left unsettled."""

    @property
    def suspects(self) -> Mapping[InHandler, int]:
        """The messages that may end the process that handles them: see `Suspects`."""
        ...

    def died(self, worker: int, pid: int, in_handlers: Sequence[InHandler], *, by_itself: bool) -> None:
        """A process has ended that had these messages in handlers."""

    def survived(self, one: InHandler) -> None:
        """A message that was suspected has ended no process."""

    def reported(self, worker: int, report: Report) -> None:
        """A worker has said how it is."""

    def changed(self) -> None:
        """A worker has changed its state."""


@dataclass(slots=True)
class _Life:
    """The last reports of one process about itself."""

    up_at: float | None = None
    unsettled: int | None = None
    failure: tuple[str, str] | None = None

    @property
    def is_over(self) -> bool:
        """Return True if it has said its last word."""
        return self.unsettled is not None or self.failure is not None


class Slot:
    """The place of the worker with this number. `run` is its life."""

    def __init__(self, number: int, router: Router, lock: int, uniform: Callable[[float, float], float]) -> None:
        self.number = number
        self.report: Report | None = None
        """The last one of the process that runs."""
        self.has_started: bool = False
        """True once a process in this place has been up."""
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
        """That of the settings which the process goes by."""
        self._problems: tuple[int, tuple[str, ...]] = 0, ()
        """The last reload that it answered, and what is wrong with that."""
        self._changes_by = inf
        """When it should go by the settings of the router."""
        self._stuck: str | None = None
        self._in_handlers: Sequence[InHandler] = ()
        """The messages that were in handlers when the process ended."""

    # --- for everybody ---

    @property
    def phase(self) -> str:
        """Return the state: `starting`, `running`, `silent`, `draining`, `waiting` for its start, or `ended`."""
        return SILENT if self._phase == RUNNING and self.is_silent else self._phase

    @property
    def is_silent(self) -> bool:
        """Return True if it runs and has not answered for long."""
        late = trio.current_time() - self._heard_at > SILENT_AFTER
        return self._process is not None and self._answered < self._asked and late

    @property
    def blocked(self) -> str | None:
        """Return what blocks its event loop, by its own word; None if nothing does."""
        return None if self._process is None else read_blocked(self._process.block)

    @property
    def shown(self) -> dict[str, Any]:
        """Return the entry of the worker in `/status`."""
        pid = None if self._process is None else self._process.pid
        config_hash = None if self.report is None else self.report.config_hash
        return {"pid": pid, "state": self.phase, "restarts": self._restarts.count, "config_hash": config_hash}

    def ask_how_it_is(self) -> None:
        """Have it say how it is. One that is behind with its answers is not asked more and more."""
        if self._process is not None and self._asked - self._answered < MOST_QUESTIONS:
            if self._answered == self._asked:
                self._heard_at = trio.current_time()
            self._asked += 1
            self._process.channel.post("report", self._asked)

    async def until_answered(self) -> None:
        """Wait until it has answered what it was asked, or is gone."""
        asked = self._asked
        while self._process is not None and self._answered < asked:
            await self._answer.wait()

    def tell_suspects(self, suspects: Mapping[InHandler, int]) -> None:
        """Let it be careful with these messages."""
        if self._process is not None:
            self._process.channel.post("suspects", suspects)

    def tell_to_drain(self) -> None:
        """Let it end: it receives nothing more, and settles what it has."""
        self._waiting.cancel()
        if self._process is not None:
            self._phase = DRAINING
            self._process.channel.post("drain")

    def tell_to_end_now(self) -> None:
        """Let it end now."""
        if self._process is not None:
            self._process.channel.post("cut")

    def kill(self) -> None:
        """End it, whatever it does. Unless it has said its last word, that counts as something left unsettled."""
        if self._process is not None:
            self._killed = True
            self._process.process.kill()

    async def change_to(self, settings: Settings, number: int) -> tuple[str, ...]:
        """Let it change to these settings, which are those of a worker. Return what is wrong with them, if it refuses.

        Returns when it has changed, or has fallen silent: then it changes when it goes on, to the last settings that it
        was asked to. One that does not run, or ends meanwhile, has them at its next start.
        """
        worker = self._process
        if worker is None:
            return ()
        self._changes_by = trio.current_time() + self._router.settings.router.shutdown_timeout + EXITS_WITHIN
        worker.channel.post("reload", number, settings)
        while self._process is worker and self._problems[0] < number and not self.is_silent:
            with trio.move_on_after(LOOK_EVERY):
                await self._reload_over.wait()
        return self._problems[1] if self._process is worker and self._problems[0] == number else ()

    def stay(self, number: int) -> None:
        """The settings of the router are again those that it has refused to leave."""
        self._settings_number = number

    def is_behind(self, number: int) -> bool:
        """Return True if it runs with settings from before the reload of this number."""
        return self._process is not None and self._settings_number < number

    @property
    def is_late(self) -> bool:
        """Return True if it does not go by the settings of the router, and is silent or should have changed by now."""
        late = self.is_silent or trio.current_time() > self._changes_by
        return late and self.is_behind(self._router.settings_number)

    def replace_stuck(self, why: str) -> None:
        """End it, whatever it does: another process takes its place, with the settings of the router."""
        if self._process is not None:
            self._stuck = why
            self._process.process.kill()

    # --- its life ---

    async def run(self) -> None:
        """Keep a process running until the router stops. Raises `RouterError` if one fails as the router would."""
        while not self._router.stopping:
            try:
                life, reason, pid, left = await self._live_once()
            except OSError as error:
                failure = "OSError", f"worker {self.number} can't be started: {error.strerror or error}"
                life, reason, pid, left = _Life(failure=failure), "", 0, Left(0, 0, 0)
            if life.failure is not None and ends_router(life.failure[0], first_life=not self.has_started):
                raise RouterError(life.failure[1])
            if self._router.stopping:
                break
            lived = 0.0 if life.up_at is None else trio.current_time() - life.up_at
            delay = self._restarts.next_delay(lived, named=bool(self._in_handlers))
            if life.failure is not None:
                reason = f"has failed: {life.failure[1]}"
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

    async def _live_once(self) -> tuple[_Life, str, int, Left]:
        life = _Life()
        self._phase = STARTING
        self._asked = self._answered = 0
        self._problems, self._changes_by, self._stuck, self._in_handlers = (0, ()), inf, None, ()
        async with open_worker(self.number, self._lock) as worker:
            try:
                self._process = worker
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(worker.channel.write)
                    self._settings_number = self._router.settings_number
                    worker.channel.post("settings", of_worker(self._router.settings), self._router.suspects)
                    if self._router.stopping:
                        self.tell_to_drain()
                    self.ask_how_it_is()
                    nursery.start_soon(self._listen, worker, life)
                    # Its end counts, and not that of the channel: a child that it has forked may hold that.
                    await worker.ended()
                    nursery.cancel_scope.cancel()
                for message in worker.channel.rest():
                    self._take(worker, life, message)
            finally:
                # Also when cancelled: it is killed then, and what it counted counts.
                code = 0
                with trio.CancelScope(shield=True):
                    worker.process.kill()  # does nothing if it has ended
                    code = await worker.ended()
                left = self._gone(worker, life)
        return life, how_it_ended(code), worker.pid, left

    async def _listen(self, worker: WorkerProcess, life: _Life) -> None:
        """Take what the worker says until its last word, then see that it exits."""
        while not life.is_over and (message := await worker.channel.next_message()) is not None:
            self._take(worker, life, message)
        await trio.sleep(EXITS_WITHIN)
        worker.process.kill()

    def _gone(self, worker: WorkerProcess, life: _Life) -> Left:
        counts = read_block(worker.block)
        in_handlers = take_in_handlers(counts)
        # One that has ended in order had time to settle them, or was told not to.
        self._in_handlers = () if life.is_over or self._killed else in_handlers
        left = settle(counts)
        # What it said itself is more than that: it knows what it received and never routed.
        unsettled = life.unsettled
        if unsettled is None:
            unsettled = max(left.dropped + left.lost, int(self._killed))
        self._process, self.report = None, None
        self._router.ended(counts, unsettled)
        self._answer.set()
        self._answer = trio.Event()
        self._reload_over.set()
        self._reload_over = trio.Event()
        self._router.changed()
        return left

    def _take(self, worker: WorkerProcess, life: _Life, message: tuple[Any, ...]) -> None:
        match message:
            case ("report", int(number), Report() as report):
                self._answered, self._heard_at = number, trio.current_time()
                if self.report is not None:
                    report = replace(report, counts=with_removed(self.report.counts, report.counts))
                self.report = report
                self._router.reported(self.number, report)
                self._answer.set()
                self._answer = trio.Event()
            case ("started",):
                self.has_started = True
                life.up_at = trio.current_time()
                if self._phase == STARTING:
                    self._phase = RUNNING
                self._router.emit(
                    WorkerStarted(
                        at=trio.current_time(), worker=self.number, pid=worker.pid, restarts=self._restarts.count
                    )
                )
                self._router.changed()
            case ("reloaded", int(number), problems):
                self._problems = number, problems
                if not problems:
                    self._settings_number = number
                self._reload_over.set()
                self._reload_over = trio.Event()
                self._router.changed()
            case ("survived", InHandler() as one):
                self._router.survived(one)
            case ("ended", int(unsettled)):
                life.unsettled = unsettled
            case ("failed", str(kind), str(text)):
                life.failure = kind, text
