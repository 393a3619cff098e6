"""Every public method has a docstring, except one that its interface describes, and none refers the reader elsewhere.

ruff asks for the docstrings of modules, classes and functions. For methods it knows only `typing.override`, which needs
inheritance; here links, owners and views are structural, and a class names its interface in its docstring.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.docs.pages import ROOT, modules_of_tests
from tests.support.syntax import nodes

_Function = ast.FunctionDef | ast.AsyncFunctionDef

MODULES = sorted((ROOT / "router_trio").rglob("*.py"))


def test_each_public_method_is_described_in_its_class_or_its_interface() -> None:
    assert list(undescribed(MODULES)) == []


NO_SUBJECT = re.compile(r"(?:What|Who|Whoever|Those|One|So many|The same|See)\b")
"""Begins a noun clause, or sends the reader elsewhere: a docstring says what a function does, or names the thing."""


def test_no_docstring_begins_with_a_noun_clause_or_a_reference() -> None:
    modules = [*MODULES, *modules_of_tests()]
    found = [(path, text) for path in modules for text in _docstrings(path) if NO_SUBJECT.match(text)]
    assert [f"{path.relative_to(ROOT)}: {text}" for path, text in found] == []


def _docstrings(module: Path) -> Iterator[str]:
    """Yield the docstrings of a module, and of its classes, functions and attributes."""
    for node in nodes(module):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value


def undescribed(modules: list[Path]) -> Iterator[str]:
    """Yield `file:line Class.method` of each public method without a docstring, of itself or of an interface."""
    classes: dict[str, list[ast.ClassDef]] = {}
    for _, node in _classes(modules):
        classes.setdefault(node.name, []).append(node)
    for path, node in _classes(modules):
        if node.name.startswith("_"):
            continue
        described = _described(node, classes, [])
        for method in _methods(node):
            if not method.name.startswith("_") and method.name not in described and not _is_setter(method):
                yield f"{path.name}:{method.lineno} {node.name}.{method.name}"


def _described(node: ast.ClassDef, classes: dict[str, list[ast.ClassDef]], seen: list[ast.ClassDef]) -> set[str]:
    """Return the methods with a docstring of a class, of its bases, and of what its docstring names in code."""
    seen.append(node)
    found = {method.name for method in _methods(node) if ast.get_docstring(method)}
    found |= {one.target.id for one in node.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)}
    bases = re.findall(r"\w+", " ".join(map(ast.unparse, node.bases)))
    named = re.findall(r"`(?:\w+\.)*(\w+)`", ast.get_docstring(node) or "")
    for other in [one for name in (*bases, *named) for one in classes.get(name, ())]:
        if other not in seen:
            found |= _described(other, classes, seen)
    return found


def _classes(modules: list[Path]) -> Iterator[tuple[Path, ast.ClassDef]]:
    for path in modules:
        for node in nodes(path):
            if isinstance(node, ast.ClassDef):
                yield path, node


def _methods(node: ast.ClassDef) -> list[_Function]:
    return [one for one in node.body if isinstance(one, _Function)]


def _is_setter(method: _Function) -> bool:
    return any(isinstance(one, ast.Attribute) and one.attr == "setter" for one in method.decorator_list)


# --- the check finds what it should ---

SOURCE = """
class Port(Protocol):
    def send(self):
        'Send.'
    def close(self):
        'Close.'
class Link:
    'A `link.Port` to a server.'
    def send(self): ...
class Child(Link):
    def close(self): ...
class Stranger:
    'One of its own.'
    def send(self): ...
    def _inside(self): ...
"""


def test_an_interface_describes_only_the_methods_of_a_class_that_names_it(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(SOURCE)
    assert [one.partition(" ")[2] for one in undescribed([module])] == ["Stranger.send"]
