"""`python -m dashboards.render`: play the scenario, run every query, draw every panel into `docs/img/`.

Takes about two minutes. If a panel has no data, prints its queries and exits with 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import trio

from dashboards.boards import NAMES, path_of
from dashboards.document import PATH
from dashboards.interpolation import Window
from dashboards.render.evaluate import Answers, evaluate
from dashboards.render.prometheus import SCRAPE_INTERVAL, prometheus
from dashboards.render.scenario import open_environment, play
from dashboards.render.sheet import save

SETTLE = 3.0
"""Seconds before the scenario starts, in which Prometheus scrapes the samples that a first rate needs."""


async def record(seconds: float, directory: Path) -> dict[str, Answers]:
    """Play the scenario for `seconds` and return the data of each dashboard. Blocks the event loop while it queries."""
    async with open_environment(directory) as environment, prometheus(directory, environment.metrics) as server:
        await trio.sleep(SETTLE)
        start = float(round(time.time()))
        await play(environment, seconds)
        window = Window(start, float(int(time.time())), step=1, scrape_interval=SCRAPE_INTERVAL)
        boards = {name: json.loads(path_of(name).read_text(encoding="utf-8")) for name in NAMES}
        return {name: evaluate(board, server, window) for name, board in boards.items()}


def main() -> int:
    """Record the scenario and draw the dashboards. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Play an outage, and draw the dashboards with its data.")
    parser.add_argument("--seconds", type=float, default=90.0, help="length of the scenario; default 90")
    parser.add_argument("--output", type=Path, default=PATH.parent / "img", help="directory for the pictures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="router-trio-dashboards-") as directory:
        recorded = trio.run(record, arguments.seconds, Path(directory))
    for name, answers in recorded.items():
        if not answers.missing:
            path = arguments.output / f"dashboard-{name}.png"
            save(json.loads(path_of(name).read_text(encoding="utf-8")), answers, path)
            print(path)
    missing = [line for answers in recorded.values() for line in answers.missing]
    for line in missing:
        print(f"no data: {line}", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
