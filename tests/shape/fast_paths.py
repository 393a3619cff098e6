"""Fast paths: code written twice for speed, which a comment or a docstring declares:

    Fast path of X; held equal by TEST, worth N instructions (FILE::T)

TEST is a file of tests, `FILE::NAME`, or the name of a test; FILE::T is the test that fails when it is worth nothing.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass

from tests.shape.tree import Module, Tree

_SAID = re.compile(r"Fast path of (?P<slow>\S+?)[;,] (?P<rest>.*?)(?:\.(?: |$)|$)", re.IGNORECASE)
_MENTIONED = re.compile(r"Fast[\s#]+path", re.IGNORECASE)
_EQUAL = re.compile(r"held equal by `?([\w./:]+\w)`?")
_WORTH = re.compile(r"\(`?([\w./]+::\w+)`?\)")


@dataclass(frozen=True)
class FastPath:
    """A declared fast path. `equal` and `worth` name tests, empty if it names none."""

    where: str
    slow: str
    equal: str
    worth: str

    def __str__(self) -> str:
        return f"{self.where} of {self.slow}: equal by {self.equal or 'nothing'}, worth by {self.worth or 'nothing'}"


def fast_paths(tree: Tree) -> list[FastPath]:
    """Return all fast paths of the package."""
    return [
        FastPath(f"{module.path.as_posix()}:{line}", found["slow"].strip("`"), *_tests(found["rest"]))
        for module in tree.package
        if _MENTIONED.search(module.text)
        for line, text in (*_comments(module), *_docstrings(module))
        for found in _SAID.finditer(" ".join(text.split()))
    ]


def exists(tree: Tree, test: str) -> bool:
    """Return True if the tree has the named test."""
    file, _, name = (test, "", "") if test.endswith(".py") else test.rpartition("::")
    modules = [module for module in tree.tests if f"/{module.path.as_posix()}".endswith(f"/{file}" if file else "")]
    if not name:
        return bool(file and modules)
    return any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name
        for module in modules
        if f"def {name}(" in module.text
        for node in ast.walk(module.syntax)
    )


def _tests(rest: str) -> tuple[str, str]:
    equal, worth = _EQUAL.search(rest), _WORTH.search(rest)
    return equal[1] if equal else "", worth[1] if worth else ""


def _comments(module: Module) -> Iterator[tuple[int, str]]:
    """Yield the comments on lines of their own, successive lines joined."""
    first, last, words = 0, 0, list[str]()
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        if token.type == tokenize.COMMENT:
            line = token.start[0]
            if words and line != last + 1:
                yield first, " ".join(words)
                words = []
            first, last = line if not words else first, line
            words.append(token.string.lstrip("# "))
    if words:
        yield first, " ".join(words)


def _docstrings(module: Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(module.syntax):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text
