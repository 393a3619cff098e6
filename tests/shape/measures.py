"""The measures: the name of each, its first value, its target, and its current value.

The first values are from commit 5227aeb, before the package had rooms, measured in the same way; values that could only
be counted by hand there, the words and the groups that are written twice, were counted by hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.shape.fast_paths import exists, fast_paths
from tests.shape.frames import Frames
from tests.shape.names import crowded_names
from tests.shape.tree import LONG, SUPPORT, Tree
from tests.shape.unreferenced import unreferenced


@dataclass(frozen=True)
class Measure:
    """A line of the table. `now` is None if the tree has nothing to count."""

    name: str
    first: int
    goal: int
    now: int | None
    details: Sequence[str] = ()


def measures(tree: Tree) -> Iterator[Measure]:
    """Yield all measures that are read from the sources."""
    entries, folders, arrows, layers = tree.entries(), tree.folders(), tree.arrows(), tree.layers()
    yield Measure("entries in router_trio/", 41, 24, len(entries), entries)
    sizes = [f"{folder}: {folders[folder]}" for folder in sorted(folders, key=lambda folder: -folders[folder])]
    yield Measure("modules in its largest folder", 31, 13, max(folders.values()), sizes)
    yield Measure("imports between its entries", 156, 100, len(arrows), [f"{a} -> {b}" for a, b in sorted(arrows)])
    yield Measure("layers of import-linter", 22, 13, len(layers), layers)
    words = tree.words()
    yield Measure("words that must be taught", 27, 8, None if words is None else len(words), words or ())
    names = crowded_names(tree)
    meanings = [f"{name}: {'; '.join(' = '.join(group) for group in groups)}" for name, groups in names.items()]
    yield Measure("public method names with three meanings or more", 33, 15, len(names), meanings)
    outbox = tree.methods_of("Outbox")
    yield Measure("public methods of Outbox", 34, 24, len(outbox), outbox)
    fast = fast_paths(tree)
    yield Measure("groups written twice for speed that say so", 21, 12, len(fast), [str(one) for one in fast])
    silent = [str(one) for one in fast if not all(exists(tree, test) for test in (one.equal, one.worth))]
    yield Measure("of them without both of their tests", 0, 0, len(silent), silent)
    dead = unreferenced(tree)
    yield Measure("definitions that nothing refers to", 3, 0, len(dead), dead)
    for folder, modules, first in (("router_trio", tree.package, 3), ("tests", tree.tests, 21)):
        long = tree.long_files(modules)
        yield Measure(f"files in {folder}/ of more than {LONG} lines", first, 0, len(long), long)
    support = tree.support()
    for name, first in zip(SUPPORT, (3, 2, 6, 4), strict=True):
        yield Measure(f"definitions of {name} in tests/", first, 1, len(support[name]), support[name])


def measures_of_frames(core: Frames, stream: Frames) -> Iterator[Measure]:
    """Yield the measures of a lone message."""
    for kind, found, first, goal in (("core", core, 102, 75), ("stream", stream, 119, 100)):
        spread = ", ".join(f"{times} took {count}" for count, times in found.spread.most_common(5))
        details = [f"of {found.spread.total()} messages {spread}", *found.by_function()]
        yield Measure(f"frames of a lone message, {kind}", first, goal, found.count, details)
    yield Measure("files that a stream message enters", 26, 20, len(stream.files), stream.files)
