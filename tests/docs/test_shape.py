"""The shape of the tree gets no worse: what `make shape` reads from the sources, held to bounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import ROOT
from tests.shape.fast_paths import exists, fast_paths
from tests.shape.measures import Measure, measures
from tests.shape.names import crowded_names
from tests.shape.tree import Tree
from tests.shape.unreferenced import unreferenced

BOUNDS = {
    "entries in router_trio/": 23,
    "modules in its largest folder": 13,
    "layers of import-linter": 13,
    "words that must be taught": 8,
    "public method names with three meanings or more": 15,
    "groups written twice for speed that say so": 12,
    "imports between its entries": 100,
    "public methods of Outbox": 16,
    "of them without both of their tests": 0,
    "definitions that nothing refers to": 0,
    "files in router_trio/ of more than 350 lines": 0,
    "files in tests/ of more than 350 lines": 0,
    "definitions of World in tests/": 1,
    "definitions of eventually in tests/": 1,
    "definitions of fill in tests/": 1,
    "definitions of settings in tests/": 1,
}

TREE = Tree(ROOT)
MEASURES = list(measures(TREE))


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_no_measure_is_over_its_bound(measure: Measure) -> None:
    assert measure.now is not None
    assert measure.now <= BOUNDS[measure.name], "\n".join(measure.details)


def test_each_bound_is_one_of_a_measure() -> None:
    assert set(BOUNDS) == {measure.name for measure in MEASURES}


def test_what_holds_a_fast_path_equal_is_there_and_so_is_what_measures_it() -> None:
    found = fast_paths(TREE)
    named = [test for one in found for test in (one.equal, one.worth) if test]
    assert len(named) >= len(found) > 0
    assert [test for test in named if not exists(TREE, test)] == []


# --- that the measures see what they are for ---


def tree_of(root: Path, **modules: str) -> Tree:
    """A tree whose package has these modules."""
    (root / "router_trio").mkdir()
    (root / "docs").mkdir()
    (root / "README.md").write_text("Documented is `documented`.\n")
    for name, text in modules.items():
        (root / "router_trio" / f"{name}.py").write_text(text)
    return Tree(root)


def test_a_name_counts_once_for_each_group_of_classes_that_share_it(tmp_path: Path) -> None:
    port = """
class Port(Protocol):
    def send(self): ...
    @property
    def server(self): ...
"""
    links = """
class One:
    def __init__(self): self.server = 1
    def send(self): ...
class Two:
    @property
    def server(self): ...
    def send(self): ...
class Three(Two):
    def send(self): ...
"""
    others = "class Other:\n    def send(self): ...\n"
    assert crowded_names(tree_of(tmp_path, port=port, links=links, others=others)) == {}
    (tmp_path / "router_trio" / "more.py").write_text("class More:\n    def send(self): ...\n    def _own(self): ...\n")
    (groups,) = crowded_names(Tree(tmp_path)).values()
    assert sorted(len(group) for group in groups) == [1, 1, 3]


def test_what_only_refers_to_itself_is_unreferenced(tmp_path: Path) -> None:
    one = """
def dead(): return dead()
def used(): ...
def documented(): ...
class Used:
    def never(self): self.never()
    def called(self): ...
    def __len__(self): ...
@app.command
def registered(): ...
"""
    two = "from router_trio.one import Used, used\nUsed().called(used)\n"
    found = unreferenced(tree_of(tmp_path, one=one, two=two))
    assert [each.partition(" ")[0] for each in found] == ["dead", "Used.never"]


def test_a_fast_path_says_so_in_a_comment_or_a_docstring(tmp_path: Path) -> None:
    one = """
# Fast path of `slow`; held equal by tests/test_it.py::test_equal, worth 12
# instructions (test_it.py::test_worth). More of it.
def quick():
    \"\"\"Return it. Fast path of `Slow.way`; held equal by
    test_gone, worth 3 instructions (test_it.py::test_gone).\"\"\"
"""
    tree = tree_of(tmp_path, one=one)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text("def test_equal(): ...\nasync def test_worth(): ...\n")
    first, second = fast_paths(tree)
    assert (first.slow, second.slow) == ("slow", "Slow.way")
    assert [exists(tree, test) for test in (first.equal, first.worth, second.equal, second.worth)] == [
        True,
        True,
        False,
        False,
    ]
