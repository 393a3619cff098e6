"""Execution of a schedule: in its own Trio run, on a clock that jumps, with a seeded scheduler."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from types import FrameType
from typing import Generic, Protocol, TypeVar

import trio
from trio.testing import MockClock

from tests.simulation.draw import draw
from tests.simulation.schedule import Schedule, Step
from tests.simulation.simulation import Simulation
from tests.simulation.trace import Trace
from tests.support.scheduling import deterministic

STUCK_AFTER = 60.0
"""Seconds of processor time after which a run counts as endless. The longest take 4 s, and 15 s with marks."""


S = TypeVar("S")


class Judged(Protocol):
    """The promises that a run broke, with what happened, and the codes of its events."""

    wrong: list[tuple[str, str]]
    codes: Counter[str]


@dataclass(frozen=True, slots=True)
class Outcome(Generic[S]):
    """The result of a run. `wrong` are broken promises, with what happened; `digest` is the hash over its trace."""

    schedule: S
    digest: str
    wrong: tuple[tuple[str, str], ...]
    lines: tuple[str, ...]
    codes: dict[str, int]
    virtual_seconds: float

    @property
    def promises(self) -> frozenset[str]:
        """The names of the broken promises."""
        return frozenset(promise for promise, _ in self.wrong)


def simulate(
    seed: int, schedule: Schedule | None = None, *, also: frozenset[str] = frozenset(), keep: bool = False
) -> Outcome[Schedule]:
    """Draw the schedule of a seed, unless it is given, and execute it. `keep` keeps all lines of the trace."""
    schedule = schedule or draw(seed, also)
    trace = Trace(keep=keep)
    simulation = Simulation(schedule, trace)
    return executed(seed, schedule, simulation.run, simulation.oracles, trace)


def executed(
    seed: int,
    schedule: S,
    run: Callable[[], Awaitable[None]],
    judged: Judged,
    trace: Trace,
    instruments: Sequence[trio.abc.Instrument] = (),
    order: str | None = None,
) -> Outcome[S]:
    """Execute `run` in a Trio run of its own, and return its outcome. `order` draws the order of its tasks."""
    clock = MockClock(autojump_threshold=0)
    with deterministic(order or f"scheduler {seed}"), _bounded(judged.wrong):
        try:
            trio.run(run, clock=clock, instruments=instruments)
        except Exception as error:
            judged.wrong.append(("end", f"the run ended with {_describe(error)}"))
    return Outcome(
        schedule=schedule,
        digest=trace.digest,
        wrong=tuple(judged.wrong),
        lines=tuple(trace.lines),
        codes=dict(judged.codes),
        virtual_seconds=clock.current_time(),
    )


@dataclass(slots=True)
class Story:
    """The steps of a history, which draws each when it comes to it, in place of a schedule."""

    seed: int
    lines: list[str]
    steps: tuple[Step, ...] = ()

    def __str__(self) -> str:
        return "\n".join([f"seed {self.seed}:", *self.lines])


@dataclass(slots=True)
class _Fault:
    """The judgement of a history, which ends with an error if a promise is broken."""

    wrong: list[tuple[str, str]] = field(default_factory=list)
    codes: Counter[str] = field(default_factory=Counter)


def run_history(seed: int, run: Callable[[], Awaitable[None]], steps: Sequence[str], order: str) -> Outcome[Story]:
    """Execute a history, which adds its `steps`, and return its outcome."""
    trace = Trace(keep=True)
    outcome = executed(seed, Story(seed, []), run, _Fault(), trace, order=order)
    outcome.schedule.lines += steps
    return replace(outcome, digest=blake2b("\n".join(steps).encode(), digest_size=16).hexdigest())


def _describe(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(_describe(one) for one in error.exceptions)
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    at = f" at {place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place is not None else ""
    return f"{type(error).__name__}: {error}{at}"


class StuckError(Exception):
    """A run has not ended in time: some task loops without waiting for anything."""


@contextmanager
def _bounded(wrong: list[tuple[str, str]]) -> Iterator[None]:
    def stop(_: int, frame: FrameType | None) -> None:
        # The signal strikes anywhere: whatever breaks because of it is recorded later.
        place = f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else "nowhere"
        wrong.insert(0, ("stuck", f"after {STUCK_AFTER:g} s of work it still goes round, at {place}"))
        raise StuckError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, STUCK_AFTER)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
