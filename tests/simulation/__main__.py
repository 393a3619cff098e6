"""The simulation command: replays one seed and shrinks it to a story, or runs many and prints what they reached."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import Pool
from os import cpu_count
from typing import Any

from tests.simulation import buckets, delays
from tests.simulation.faults import FAULTS, NOT_YET
from tests.simulation.marks import Marks, Place, report
from tests.simulation.partitions import run as of_partitions
from tests.simulation.partitions.draw import KINDS as OF_PARTITIONS
from tests.simulation.run import Outcome, simulate
from tests.simulation.shrink import shrink

AT_A_TIME = 16
"""Number of seeds in one piece of work for a process."""

MARKED = 5
"""Run with marks one piece of this many, or of more if there are many seeds."""

MOST_MARKED = 500
"""Approximate number of seeds run with marks: marks take six times as long, and what 500 seeds do not reach is seldom
reached by more.
"""


def main() -> int:
    """Run the command and return its exit code: 1 if a promise was broken, or a run differed from the previous one."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seed", type=int, nargs="?", help="replay this seed")
    parser.add_argument("--trace", action="store_true", help="print all that happened")
    parser.add_argument("--no-shrink", action="store_true", help="leave the schedule of a broken seed as it is")
    parser.add_argument("--seeds", type=int, help="run that many seeds")
    parser.add_argument("--first", type=int, default=0, help="the first of many seeds (default: 0)")
    parser.add_argument("--twice", action="store_true", help="run each seed twice, and compare the hashes")
    parser.add_argument("--also", action="append", default=[], choices=list(NOT_YET), help="draw it too")
    parser.add_argument("--kind", choices=list(KINDS), default="routes", help="(default: routes)")
    given = parser.parse_args()
    kind = replace(KINDS[given.kind], also=frozenset(given.also))
    if given.seeds is not None:
        return _run_many(range(given.first, given.first + given.seeds), kind, given.twice)
    if given.seed is None:
        parser.error("name a seed, or --seeds")
    return _replay(given.seed, kind, given.trace, not given.no_shrink)


HISTORIES: Mapping[str, Callable[[int], Outcome[Any]]] = {
    "delays": delays.simulate,
    "buckets": partial(buckets.simulate, both=False),
    "two-way-buckets": partial(buckets.simulate, both=True),
}
"""Kinds that draw each step when they come to it: without a schedule, there is nothing to shrink, and nothing to count
of what was drawn.
"""


@dataclass(frozen=True, slots=True)
class Kind:
    """The kind of world: one router with several routes, or several routers that share the partitions of one.

    Or one of `HISTORIES`.
    """

    name: str
    also: frozenset[str] = frozenset()

    def simulate(self, seed: int, schedule: Any = None, *, keep: bool = False) -> Outcome[Any]:
        """Execute a seed, or a schedule of that seed."""
        if self.name in HISTORIES:
            return HISTORIES[self.name](seed)
        if self.name == "partitions":
            return of_partitions.simulate(seed, schedule, keep=keep)
        return simulate(seed, schedule, also=self.also, keep=keep)

    def shrink(self, outcome: Outcome[Any], notify: Callable[[str], None]) -> Outcome[Any]:
        """Return an outcome of the same kind with a smaller schedule, if it has one."""
        if self.name in HISTORIES:
            return outcome
        return (of_partitions.shrink if self.name == "partitions" else shrink)(outcome, notify)

    def command(self, seed: int) -> str:
        """Return the command that replays a seed."""
        kind = f" --kind {self.name}" if self.name != "routes" else ""
        return command(seed, self.also) + kind


KINDS = {name: Kind(name) for name in ("routes", "partitions", *HISTORIES)}


def command(seed: int, also: frozenset[str] = frozenset()) -> str:
    """Return the command that replays a seed."""
    return " ".join([f"python -m tests.simulation {seed}", *(f"--also '{kind}'" for kind in sorted(also))])


def story(outcome: Outcome[Any]) -> str:
    """Describe the schedule that breaks a promise, and which promises it breaks."""
    return "\n".join([str(outcome.schedule), *(f"BROKEN {promise}: {detail}" for promise, detail in outcome.wrong)])


def _replay(seed: int, kind: Kind, trace: bool, smaller: bool) -> int:
    outcome = kind.simulate(seed, keep=trace)
    if outcome.wrong and smaller:
        outcome = kind.shrink(outcome, lambda detail: print(detail, file=sys.stderr))
        outcome = kind.simulate(seed, outcome.schedule, keep=trace)
    if trace:
        print("\n".join(outcome.lines))
    print(story(outcome))
    print(f"{outcome.virtual_seconds:.0f} virtual seconds, trace {outcome.digest}")
    return 1 if outcome.wrong else 0


@dataclass(frozen=True, slots=True)
class _Piece:
    """The seeds that one process runs in one go."""

    seeds: range
    kind: Kind
    twice: bool
    marked: bool

    def run(self) -> tuple[list[tuple[Outcome[Any], bool]], set[Place]]:
        """Return the outcomes, whether each was the same twice, and which marks were reached."""
        marks = Marks()
        ran = []
        with marks.noting() if self.marked else nullcontext():
            for seed in self.seeds:
                outcome = self.kind.simulate(seed)
                ran.append((outcome, not self.twice or self.kind.simulate(seed).digest == outcome.digest))
        return ran, marks.reached


def _run_many(seeds: range, kind: Kind, twice: bool) -> int:
    print(f"{kind.name}: seeds {seeds[0]} to {seeds[-1]}", flush=True)
    began = time.perf_counter()
    marks = Marks()
    drawn: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    seconds, broken = 0.0, 0
    for outcome, same in _outcomes(seeds, kind, twice, marks):
        seconds += outcome.virtual_seconds
        drawn.update({step.kind for step in outcome.schedule.steps})
        codes.update(outcome.codes)
        if outcome.wrong or not same:
            broken += 1
            detail = outcome.wrong[0] if outcome.wrong else ("determinism", "the second run was not like the first")
            seed = outcome.schedule.seed
            print(f"seed {seed}: BROKEN {detail[0]}: {detail[1][:400]}\n  {kind.command(seed)}", flush=True)
    took = time.perf_counter() - began
    print(f"{len(seeds)} seeds, {broken} broken, {len(seeds) / took:.1f} a second; {seconds / 3600:.1f} virtual hours")
    if kind.name in HISTORIES:
        return 1 if broken else 0
    faults = [*FAULTS, *(name for name in OF_PARTITIONS if name not in FAULTS)]
    print("seeds with each fault:", ", ".join(f"{name} {drawn[name]}" for name in faults if drawn[name]))
    print("events:", ", ".join(f"{code} {count}" for code, count in sorted(codes.items())))
    print("\n".join(report(marks)))
    return 1 if broken else 0


def _outcomes(seeds: range, kind: Kind, twice: bool, marks: Marks) -> Iterator[tuple[Outcome[Any], bool]]:
    each = max(MARKED, len(seeds) // MOST_MARKED)
    pieces = [
        _Piece(
            seeds[start : start + AT_A_TIME],
            kind,
            twice,
            kind.name not in HISTORIES and start % (AT_A_TIME * each) == 0,
        )
        for start in range(0, len(seeds), AT_A_TIME)
    ]
    with Pool(cpu_count()) as pool:
        for ran, reached in pool.imap(_Piece.run, pieces):
            marks.reached |= reached
            yield from ran


if __name__ == "__main__":
    sys.exit(main())
