"""Print the measures of a tree: `python -m tests.shape [TREE]`, or `make shape`."""

from __future__ import annotations

import argparse
from pathlib import Path

import trio

from tests.shape.frames import frames
from tests.shape.measures import measures, measures_of_frames
from tests.shape.tree import Tree


def main() -> None:
    """Print the table of the measures."""
    parser = argparse.ArgumentParser(prog="python -m tests.shape", description="How a tree is built, in numbers.")
    here = Path(__file__).parents[2]
    parser.add_argument("tree", nargs="?", type=Path, default=here, help="another checkout, to compare with this one")
    parser.add_argument("--verbose", action="store_true", help="say what was counted")
    parser.add_argument("--static", action="store_true", help="run no router: what is read from the sources alone")
    options = parser.parse_args()
    tree: Path = options.tree.resolve()
    found = list(measures(Tree(tree)))
    if not options.static:
        found += measures_of_frames(trio.run(frames, "core", tree), trio.run(frames, "stream", tree))
    width = max(len(measure.name) for measure in found)
    print(f"{'':{width}}  {'first':>5}  {'now':>4}  {'goal':>4}")
    for measure in found:
        now = "-" if measure.now is None else str(measure.now)
        print(f"{measure.name:{width}}  {measure.first:>5}  {now:>4}  {measure.goal:>4}")
        if options.verbose:
            print("".join(f"    {line}\n" for line in measure.details), end="")


if __name__ == "__main__":
    main()
