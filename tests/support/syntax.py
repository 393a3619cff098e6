"""Sources of Python as syntax trees, each parsed once in a process."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from functools import cache
from pathlib import Path


def parsed(path: Path) -> ast.Module:
    """Return the syntax tree of a file. All callers share it: none may change it."""
    return parsed_text(path.read_text(encoding="utf-8"))


def nodes(path: Path) -> Sequence[ast.AST]:
    """Return what `ast.walk` yields for a file."""
    return _nodes(path.read_text(encoding="utf-8"))


@cache
def parsed_text(text: str) -> ast.Module:
    """Return the syntax tree of a text, as `parsed` does."""
    return ast.parse(text)


@cache
def _nodes(text: str) -> Sequence[ast.AST]:
    return tuple(ast.walk(parsed_text(text)))
