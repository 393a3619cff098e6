"""Check that nothing is dead, that fast paths name their tests, and that `make shape` counts correctly."""

from __future__ import annotations

from pathlib import Path

from tests.docs.pages import ROOT
from tests.shape.fast_paths import exists, fast_paths
from tests.shape.names import crowded_names
from tests.shape.tree import Tree
from tests.shape.unreferenced import unreferenced

TREE = Tree(ROOT)


def test_nothing_is_unreferenced() -> None:
    assert unreferenced(TREE) == []


def test_the_tests_named_by_a_fast_path_exist() -> None:
    found = fast_paths(TREE)
    named = [test for one in found for test in (one.equal, one.worth) if test]
    assert len(named) >= len(found) > 0
    assert [test for test in named if not exists(TREE, test)] == []


# --- the measures find what they should ---


def tree_of(root: Path, **modules: str) -> Tree:
    """Return a tree whose package has these modules."""
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


def test_a_definition_that_only_refers_to_itself_is_unreferenced(tmp_path: Path) -> None:
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


def test_a_fast_path_is_declared_in_a_comment_or_a_docstring(tmp_path: Path) -> None:
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
