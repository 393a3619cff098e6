"""A checkout, read: its modules as syntax trees, and the counts that need no look into them."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.support.syntax import parsed_text

PACKAGE = "router_trio"
LONG = 350
"""Upper bound of the lines of a file."""

SUPPORT = ("World", "eventually", "fill", "settings")
"""Helpers that every test area needs, and that should exist once."""


@dataclass(frozen=True)
class Module:
    """A file of Python. `path` is relative to the root of the tree."""

    path: Path
    text: str

    @property
    def syntax(self) -> ast.Module:
        """The syntax tree, parsed on first use."""
        return parsed_text(self.text)

    @property
    def room(self) -> str:
        """The entry of the package to which it belongs: a folder, or the module itself."""
        return self.path.parts[1].removesuffix(".py")

    @property
    def package(self) -> tuple[str, ...]:
        """The package to which its relative imports refer."""
        return self.path.parent.parts


class Tree:
    """The checkout below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def package(self) -> Sequence[Module]:
        """The modules of the package."""
        return self._modules(PACKAGE)

    @cached_property
    def tests(self) -> Sequence[Module]:
        """The modules of the tests."""
        return self._modules("tests")

    def entries(self) -> list[str]:
        """Return folders and modules at the root of the package, without `py.typed`, which has no content to read."""
        there = (self.root / PACKAGE).iterdir()
        return sorted(path.name for path in there if path.name not in ("__pycache__", "py.typed"))

    def folders(self) -> dict[str, int]:
        """Return the modules of each folder of the package, without `__init__`, by the folder's path."""
        found = dict.fromkeys((module.path.parent.as_posix() for module in self.package), 0)
        for module in self.package:
            found[module.path.parent.as_posix()] += module.path.name != "__init__.py"
        return found

    def arrows(self) -> set[tuple[str, str]]:
        """Return which room imports which, anywhere in a module; the root's `__init__` counts for none."""
        rooms = {module.room for module in self.package} - {"__init__"}
        return {
            (module.room, to)
            for module in self.package
            for to in _imported_rooms(module)
            if module.room in rooms and to in rooms and to != module.room
        }

    def layers(self) -> list[str]:
        """Return the floors that import-linter checks."""
        project = tomllib.loads(self._read("pyproject.toml"))
        contracts = project["tool"]["importlinter"]["contracts"]
        return next(contract["layers"] for contract in contracts if contract["type"] == "layers")

    def words(self) -> list[str] | None:
        """Return the words that the glossary teaches; None if the tree has none."""
        if not (self.root / "docs" / "glossary.md").exists():
            return None
        return re.findall(r"^\| \*\*(.+?)\*\* \|", self._read("docs/glossary.md"), flags=re.M)

    def methods_of(self, name: str) -> list[str]:
        """Return the public methods and properties of the class of this name."""
        (found,) = (
            node
            for module in self.package
            for node in module.syntax.body
            if isinstance(node, ast.ClassDef) and node.name == name
        )
        return public_methods(found)

    def long_files(self, modules: Sequence[Module]) -> list[str]:
        """Return the files with more than `LONG` lines, the longest first, with their lines."""
        lines = {module.path.as_posix(): module.text.count("\n") for module in modules}
        long = sorted((path for path in lines if lines[path] > LONG), key=lambda path: -lines[path])
        return [f"{path} ({lines[path]})" for path in long]

    def support(self) -> dict[str, list[str]]:
        """Return where the tests define the helpers of `SUPPORT`, outside of classes and functions."""
        found: dict[str, list[str]] = {name: [] for name in SUPPORT}
        for module in self.tests:
            for node in module.syntax.body:
                if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name in found:
                    found[node.name].append(f"{module.path.as_posix()}:{node.lineno}")
        return found

    def _modules(self, folder: str) -> Sequence[Module]:
        paths = sorted((self.root / folder).rglob("*.py"))
        return [Module(path.relative_to(self.root), path.read_text(encoding="utf-8")) for path in paths]

    def _read(self, path: str) -> str:
        return (self.root / path).read_text(encoding="utf-8")


def public_methods(node: ast.ClassDef) -> list[str]:
    """Return the names of the methods and properties that a class defines and that have no leading underscore."""
    methods = (one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef))
    return list(dict.fromkeys(one.name for one in methods if not one.name.startswith("_")))


def _imported_rooms(module: Module) -> Iterator[str]:
    for node in ast.walk(module.syntax):
        names: list[tuple[str, ...]] = []
        if isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = module.package[: len(module.package) + 1 - node.level] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            names = [(*base, alias.name) for alias in node.names]
        yield from (name[1] for name in names if name[0] == PACKAGE and len(name) > 1)
