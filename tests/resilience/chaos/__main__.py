"""The chaos command: replays one seed, or runs many and prints the table of results."""

from __future__ import annotations

import argparse
import sys
import traceback
from dataclasses import replace

import trio

from tests.resilience.chaos.partitions import trial, verdict
from tests.resilience.chaos.run import run_seed
from tests.resilience.chaos.schedule import OF_CORE, VARIANTS, Kind, Variant, draw
from tests.resilience.chaos.verdict import HEAD, Outcome, command, row, total
from tests.resilience.chaos.workers.run import OF_WORKERS
from tests.resilience.chaos.workers.run import run_seed as run_with_workers


def main() -> int:
    """Run the command and return its exit code: 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.resilience.chaos", description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--seed", type=int, help="replay one seed, and say what is done when")
    which.add_argument("--seeds", type=int, help="run that many seeds")
    parser.add_argument("--first", type=int, default=0, help="the first of many seeds (default: 0)")
    parser.add_argument("--messages", type=int, default=2_000)
    parser.add_argument("--kind", choices=("stream", "core", "partitions"), default="stream")
    parser.add_argument(
        "--nodes", type=int, choices=(1, 3), default=1, help="servers of --kind partitions (default: 1)"
    )
    parser.add_argument("--variant", choices=VARIANTS, default="plain", help="(default: plain)")
    parser.add_argument("--workers", type=int, default=0, help="run a process with that many workers")
    given = parser.parse_args()
    if given.kind == "core" and given.variant not in OF_CORE:
        parser.error(f"--variant {given.variant} is one of --kind stream")
    if given.workers and given.variant not in OF_WORKERS:
        parser.error(f"--variant {given.variant} is judged by what links saw, which workers do not show")
    seeds = [given.seed] if given.seed is not None else list(range(given.first, given.first + given.seeds))
    if given.kind == "partitions":
        return _run_partitions(seeds, given.nodes, given.workers, replays=given.seed is not None)
    if given.seed is not None:
        _tell(given.seed, given.kind, given.messages, given.variant)
    outcomes = []
    print(HEAD, flush=True)
    for seed in seeds:
        outcome = _run(seed, given.kind, given.messages, given.variant, given.workers)
        if outcome is not None:
            outcomes.append(outcome)
            print(row(outcome), flush=True)
    print(total(outcomes))
    return 1 if len(outcomes) < len(seeds) or any(outcome.broken for outcome in outcomes) else 0


def _run_partitions(seeds: list[int], nodes: int, workers: int, *, replays: bool) -> int:
    """Run trials of processes that share partitions, and print their rows; of a single one also its table."""
    broken = 0
    print(verdict.HEAD, flush=True)
    for seed in seeds:
        drawn = replace(trial.draw(seed, nodes), workers=workers)
        if replays:
            print("\n".join(map(str, drawn.steps)), flush=True)
        outcome = trio.run(verdict.run_trial, drawn)
        print(verdict.row(outcome), flush=True)
        if outcome.broken:
            broken += 1
            print(f"seed {seed}: {outcome.report}", file=sys.stderr, flush=True)
        if replays:
            print(verdict.table(outcome))
    print(f"{len(seeds)} trials, {broken} broken")
    return 1 if broken else 0


def _run(seed: int, kind: Kind, messages: int, variant: Variant, workers: int) -> Outcome | None:
    """Run one seed in an event loop of its own; print at once what went wrong."""
    try:
        if workers:
            outcome = trio.run(run_with_workers, seed, kind, messages, variant, workers)
        else:
            outcome = trio.run(run_seed, seed, kind, messages, variant)
    except Exception as error:
        replay = command(draw(seed, kind, messages, variant), workers)
        print(f"seed {seed} ended with {type(error).__name__}: {error}\n  {replay}", file=sys.stderr, flush=True)
        traceback.print_exception(error)
        return None
    if outcome.broken:
        print(f"seed {seed}: {outcome.report}", file=sys.stderr, flush=True)
    return outcome


def _tell(seed: int, kind: Kind, messages: int, variant: Variant) -> None:
    schedule = draw(seed, kind, messages, variant)
    print(
        f"seed {seed}: {variant}, {messages} messages, {kind} to {kind}, {schedule.connections} connection(s), "
        f"max_pending_operations {schedule.max_pending}, max_in_flight {schedule.max_in_flight}"
    )
    for name, track in (("network", schedule.network), ("server", schedule.server)):
        at = 0.0
        for step in track:
            at += step.after
            print(f"  {name:>8} at {at:5.2f} s for {step.seconds:4.2f} s: {step.fault}")
            at += step.seconds


if __name__ == "__main__":
    sys.exit(main())
