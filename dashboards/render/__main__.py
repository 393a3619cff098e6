"""`python -m dashboards.render`: play the story, ask every query, draw every panel into `docs/img/`.

Takes about two minutes. Exits with 1, and names the queries, if a panel has no data.
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
from dashboards.render.sheet import save
from dashboards.render.story import tell, world

SETTLE = 3.0
"""Seconds that Prometheus gets before the first look: a rate needs a few scrapes."""


async def record(seconds: float, directory: Path) -> dict[str, Answers]:
    """Play the story for that time and return what each dashboard saw of it. Blocks the event loop while it asks."""
    async with world(directory) as story, prometheus(directory, story.metrics) as asked:
        await trio.sleep(SETTLE)
        start = float(round(time.time()))
        await tell(story, seconds)
        window = Window(start, float(int(time.time())), step=1, scrape_interval=SCRAPE_INTERVAL)
        boards = {name: json.loads(path_of(name).read_text(encoding="utf-8")) for name in NAMES}
        return {name: evaluate(board, asked, window) for name, board in boards.items()}


def main() -> int:
    """Do it."""
    parser = argparse.ArgumentParser(description="Play an outage, and draw the dashboards of it.")
    parser.add_argument("--seconds", type=float, default=90.0, help="length of the story; default 90")
    parser.add_argument("--output", type=Path, default=PATH.parent / "img", help="directory for the pictures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="router-trio-dashboards-") as directory:
        seen = trio.run(record, arguments.seconds, Path(directory))
    for name, answers in seen.items():
        if not answers.missing:
            path = arguments.output / f"dashboard-{name}.png"
            save(json.loads(path_of(name).read_text(encoding="utf-8")), answers, path)
            print(path)
    missing = [line for answers in seen.values() for line in answers.missing]
    for line in missing:
        print(f"no data: {line}", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
