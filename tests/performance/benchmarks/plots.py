"""Bars of the main figures as SVG. Runs in the benchmark's own environment, which has matplotlib.

`plots.py RESULTS DIRECTORY`: reads the stored results, prints the names of the sections that got an image.
"""

from __future__ import annotations

import json
import statistics
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

BARS = {"core-128": "rate", "handler": "rate", "stream": "rate", "latency-core": "p99", "latency-stream": "p99"}
MOST_LABELS = 5
"""Steps of the axis of values: with more, the labels of millions overlap."""
LEAST_LABELS = 4
"""Labels at least: with fewer, nobody reads a bar off."""
OURS, THEIRS = "#0b7285", "#adb5bd"


def bars(section: dict[str, Any], key: str, path: Path) -> None:
    """One bar a contestant: the median, with a line from the least to the greatest."""
    pyplot = import_module("matplotlib.pyplot")
    found = {
        name: [one[key] for one in turns["figures"]] for name, turns in section["turns"].items() if turns["figures"]
    }
    names = list(found)[::-1]
    medians = [statistics.median(found[name]) for name in names]
    errors = [
        [median - min(found[name]) for name, median in zip(names, medians, strict=True)],
        [max(found[name]) - median for name, median in zip(names, medians, strict=True)],
    ]
    figure, axes = pyplot.subplots(figsize=(7, 0.5 + 0.4 * len(names)))
    colours = [OURS if name.startswith("router_trio") else THEIRS for name in names]
    axes.barh(names, medians, xerr=errors, color=colours, ecolor="#495057")
    unit = "messages a second" if key == "rate" else "microseconds, p99"
    axes.set_title(f"{section['title']}: {unit}", fontsize=10, loc="left")
    axes.locator_params(axis="x", nbins=MOST_LABELS, min_n_ticks=LEAST_LABELS)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    # Without a date and with stable ids, the same figures give the same file.
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main(results: Path, directory: Path) -> None:
    """Draw what there is."""
    matplotlib = import_module("matplotlib")
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "router_trio"
    directory.mkdir(parents=True, exist_ok=True)
    for section in json.loads(results.read_text())["sections"]:
        if section["name"] in BARS:
            bars(section, BARS[section["name"]], directory / f"performance-{section['name']}.svg")
            print(section["name"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
