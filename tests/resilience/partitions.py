"""Ten minutes of processes that share the partitions of a route: members and servers are killed, stopped and started.

    python -m tests.resilience.partitions --minutes 10 --nodes 3
    python -m tests.resilience.partitions --minutes 10 --folder kept      keeps what members and servers have left

Three servers with replicated streams, four processes, 16 partitions, 500 keys, and a handler of 5 ms. Prints how long
hand-overs took after each kind of change, and which promises were broken.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import trio

from tests.resilience.chaos.partitions.trial import draw
from tests.resilience.chaos.partitions.verdict import run_trial, table

BETWEEN_STEPS = 10.0, 16.0
"""Seconds between two steps, so that one is over before the next begins."""


def main() -> int:
    """Run the command and return its exit code: 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.resilience.partitions", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--nodes", type=int, choices=(1, 3), default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=int, default=300, help="messages a second (default: 300)")
    parser.add_argument("--slack", type=float, default=0.0, help="additional seconds for each bound, on a busy machine")
    parser.add_argument("--folder", type=Path, help="a new folder for logs, calls and servers, which is kept")
    given = parser.parse_args()
    shortest, longest = BETWEEN_STEPS
    trial = draw(
        given.seed, given.nodes, seconds=60 * given.minutes, shortest=shortest, longest=longest, rate=given.rate
    )
    print("\n".join(map(str, trial.steps)), flush=True)
    if given.folder is not None:
        given.folder.mkdir(parents=True)
    outcome = trio.run(lambda: run_trial(trial, slack=given.slack, folder=given.folder))
    print(f"\n{table(outcome)}")
    if outcome.broken:
        print(outcome.report, file=sys.stderr)
    return 1 if outcome.broken else 0


if __name__ == "__main__":
    sys.exit(main())
