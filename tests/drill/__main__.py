"""Stage incidents as the person on call sees them: `make drill`, or `python -m tests.drill lag paused`.

Prints for each incident the alert, the commands of its runbook with the labels filled in and their output, and then the
cause. The exit code is 1 if an alert did not fire, or if no output shows the cause.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from pathlib import Path

import trio

from router_trio.embedded import HOST, reserve_port
from tests.drill.incidents import INCIDENTS, Incident
from tests.drill.staging import Outcome, Prometheus, prometheus, stage

AT_A_TIME = 2

NO_PROMETHEUS = "no prometheus in PATH (apt-get install prometheus): the alerts are not seen, only their commands"


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.drill", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="INCIDENT", help="the incidents to stage; default: all")
    parser.add_argument("--at-a-time", type=int, default=AT_A_TIME, help="how many at a time (default: %(default)s)")
    given = parser.parse_args()
    known = {one.name: one for one in INCIDENTS}
    for name in given.names:
        if name not in known:
            parser.error(f"there is no incident {name!r}; there are {', '.join(map(repr, known))}")
    chosen = [known[name] for name in given.names or known]
    missed = trio.run(drill, chosen, given.at_a_time)
    print(f"{len(chosen) - len(missed)} of {len(chosen)} causes are shown by the commands of the runbook")
    for one in missed:
        print(f"missed: {one}", file=sys.stderr)
    return 1 if missed else 0


async def drill(incidents: list[Incident], at_a_time: int) -> list[str]:
    """Stage incidents and print each. Return those whose alert did not fire, or whose cause was not shown."""
    program, missed = shutil.which("prometheus"), list[str]()
    if program is None:
        print(NO_PROMETHEUS, flush=True)
    limit = trio.CapacityLimiter(at_a_time)
    with tempfile.TemporaryDirectory(prefix="drill-") as folder, ExitStack() as ports:
        places = [f"{HOST}:{ports.enter_context(reserve_port())}" for _ in incidents]
        async with AsyncExitStack() as stack:
            seen_by = None
            if program is not None:
                watching = Path(folder) / "prometheus"
                watching.mkdir()
                seen_by = await stack.enter_async_context(prometheus(program, watching, places))
            async with trio.open_nursery() as nursery:
                for number, (incident, listen) in enumerate(zip(incidents, places, strict=True)):
                    own = Path(folder) / str(number)
                    own.mkdir()
                    nursery.start_soon(partial(_one, incident, own, listen, seen_by, limit, missed))
    return missed


async def _one(
    incident: Incident,
    folder: Path,
    listen: str,
    seen_by: Prometheus | None,
    limit: trio.CapacityLimiter,
    missed: list[str],
) -> None:
    outcome: Outcome | None = None
    async with limit:
        try:
            outcome = await stage(incident, folder, listen, seen_by)
        except* trio.TooSlowError as slow:
            why = "; ".join(dict.fromkeys(map(str, leaf_exceptions(slow))))
            missed.append(f"{incident.name}: {why or 'the machine is too slow'}")
    if outcome is not None:
        print(outcome.text(), flush=True)
        if outcome.found_in is None:
            missed.append(f"{incident.name}: no command of {incident.alert} shows the cause")


def leaf_exceptions(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """Yield the exceptions in a group and in the groups inside of it."""
    for one in group.exceptions:
        if isinstance(one, BaseExceptionGroup):
            yield from leaf_exceptions(one)
        else:
            yield one


if __name__ == "__main__":
    sys.exit(main())
