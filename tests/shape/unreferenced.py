"""Definitions of the package that nothing in the package refers to.

A function, method or class is referred to if its name stands anywhere in the package outside of its own definition: as
a name, an attribute, an imported name, a keyword or a text. So what has a common name is not found. Not looked at:

- names with two underscores, which the interpreter calls;
- what a decorator hands to a library (a validator, a command), and methods of classes that inherit from one's class;
- members of protocols, which declare;
- what users get: what `router_trio.__all__`, `testing`, `faults` and `embedded` have, and what the documentation names
  in code.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections import Counter
from collections.abc import Iterator

from tests.shape.tree import Module, Tree

_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_PUBLIC = ("router_trio/__init__.py", "router_trio/embedded.py", "router_trio/testing/", "router_trio/faults/")
_OURS = {"property", "setter", "cached_property", "staticmethod", "classmethod", "dataclass", "final", "overload"}
_OURS |= {"contextmanager", "asynccontextmanager", "cache", "lru_cache", "runtime_checkable"}
_KNOWN_BASES = {"Protocol", "Generic", "NamedTuple", "StrEnum", "IntEnum", "Enum"} | set(dir(builtins))


USED_ELSEWHERE = {
    "Headers.get_all": "users, of Message.headers",
    "TraceParent.trace_flags": "the SDK's queue of spans, of what is in it",
    "_WorkingDirectory.find_spec": "the interpreter, of sys.meta_path",
}
"""Callers outside of the package, which no search finds."""


def unreferenced(tree: Tree) -> list[str]:
    """Return `name (file:line, lines)` of each, in the order of the files."""
    everywhere = Counter[str]()
    for module in tree.package:
        everywhere.update(_names(module.syntax))
    documented = _documented(tree)
    classes = {
        node.name for module in tree.package for node in ast.walk(module.syntax) if isinstance(node, ast.ClassDef)
    }
    found = []
    for module in tree.package:
        if module.path.as_posix().startswith(_PUBLIC):
            continue
        lines = module.text.splitlines()
        for name, node in _definitions(module, classes):
            text = "\n".join(lines[node.lineno - 1 : node.end_lineno])
            if everywhere[node.name] > text.count(node.name):
                continue  # checked last: counting the names of each definition takes longest
            inside = Counter(_names(node))[node.name]
            known = name in USED_ELSEWHERE or node.name in documented
            if everywhere[node.name] == inside and not known:
                assert node.end_lineno is not None
                length = node.end_lineno + 1 - node.lineno
                found.append(f"{name} ({module.path.as_posix()}:{node.lineno}, {length})")
    return found


def _definitions(module: Module, classes: set[str]) -> Iterator[tuple[str, _Definition]]:
    for node in module.syntax.body:
        if isinstance(node, _Definition) and _is_ours(node):
            yield node.name, node
        if isinstance(node, ast.ClassDef) and not _overrides(node, classes):
            for one in node.body:
                if isinstance(one, _Definition) and _is_ours(one):
                    yield f"{node.name}.{one.name}", one


def _is_ours(node: _Definition) -> bool:
    dunder = node.name.startswith("__") and node.name.endswith("__")
    return not dunder and all(_last(decorator) in _OURS for decorator in node.decorator_list)


def _overrides(node: ast.ClassDef, classes: set[str]) -> bool:
    """Return True if it only declares, or if a library calls its methods."""
    bases = {_last(base) for base in node.bases}
    return "Protocol" in bases or not bases <= classes | _KNOWN_BASES


def _last(node: ast.expr) -> str:
    """Return the last name of a decorator or of a base, without its module and its arguments."""
    if isinstance(node, ast.Call):
        return _last(node.func)
    if isinstance(node, ast.Subscript):
        return _last(node.value)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg
        elif isinstance(node, ast.alias):
            yield node.name.rpartition(".")[2]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 100:
            yield from re.findall(r"\w+", node.value)


def _documented(tree: Tree) -> set[str]:
    """Return the names in code in the documentation, except in that of the structure."""
    pages = [path for path in (tree.root / "docs").rglob("*.md") if path.name != "ARCHITECTURE.md"]
    pages.append(tree.root / "README.md")
    found: set[str] = set()
    for page in pages:
        for code in re.findall(r"```.*?```|`[^`\n]+`", page.read_text(encoding="utf-8"), flags=re.S):
            found.update(re.findall(r"\w+", code))
    return found
