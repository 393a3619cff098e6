"""The page of the Python API, made from declarations and docstrings: for `generate.py`.

It reads the sources and imports nothing, so what stands on the page is what was written: types as they are spelled,
defaults as they are given, docstrings as they are. The page is plain Markdown, like all others, and reads as well
without the site. That is why no plugin of the site makes it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[2]

PUBLIC: Mapping[str, Sequence[str]] = {
    "router_trio": (),
    "router_trio.router": ("real_network",),
    "router_trio.aio": (),
    "router_trio.router.options": (
        "SourceOptions",
        "DestinationOptions",
        "HeaderOptions",
        "BreakerOptions",
        "RetryOptions",
        "RetryScheduleOptions",
        "DeadLetterOptions",
        "LimitOptions",
    ),
    "router_trio.errors": (),
    "router_trio.settings": (),
    "router_trio.testing": (),
    "router_trio.testing.pytest": ("fake_broker", "open_router"),
    "router_trio.faults": (),
    "router_trio.embedded": (),
    "router_trio.audit.audit": ("Range",),
    "router_trio.audit.report": ("Report", "Finding"),
    "router_trio.audit.outcomes": ("Found", "Whereabouts", "Outcome", "CopyFound", "LetterFound", "Stored"),
}
"""The modules that a program may import, and the public names of each. None: those of `__all__`, or all it defines."""

_INTERNAL = frozenset({"kind", "kind_for", "observe", "observing", "has_failed_test"})
"""Methods that the router or the pytest plugin alone calls: they are no part of the API."""

_Function = ast.FunctionDef | ast.AsyncFunctionDef


def lines() -> Iterator[str]:
    """Return the lines of the page, with one empty line where there are several."""
    before = None
    for line in _lines():
        if line or before:
            yield line
        before = line


def _lines() -> Iterator[str]:
    yield "# Python API"
    yield from (
        "What a program may import, with its types. What is not on this page may change with any version.",
        "[Write a handler](../how-to/handlers.md), [Test your routes](../how-to/test-your-routes.md) and the",
        "[tutorial](../tutorial.md) show it in use.",
    )
    shown: set[int] = set()
    for module, names in PUBLIC.items():
        yield from ("", f"## `{module}`")
        about = ast.get_docstring(_tree(module))
        if about and not names:
            yield from ("", about)
        for name in names or _public_names(module):
            node = _with_keys(*_home(module, name))
            if id(node) in shown:  # an error that the package exports, for instance
                continue
            shown.add(id(node))
            yield from _entry(name, node)


def _tree(module: str) -> ast.Module:
    if module not in _TREES:
        path = ROOT.joinpath(*module.split("."))
        source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        _TREES[module] = ast.parse(source.read_text(encoding="utf-8"))
    return _TREES[module]


_TREES: dict[str, ast.Module] = {}


def _public_names(module: str) -> list[str]:
    tree = _tree(module)
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return sorted(ast.literal_eval(node.value))
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


def _home(module: str, name: str) -> tuple[str, ast.stmt]:
    """Return the statement that defines a name, and its module, wherever the first module has it from."""
    for node in ast.walk(_tree(module)):
        match node:
            case ast.ClassDef(name=found) | ast.FunctionDef(name=found) | ast.AsyncFunctionDef(name=found):
                if found == name:
                    return module, node
            case ast.Assign(targets=[ast.Name(id=found)]) | ast.AnnAssign(target=ast.Name(id=found)):
                if found == name:
                    return module, node
            case ast.ImportFrom(module=str(origin), names=names) if any(
                (one.asname or one.name) == name for one in names
            ):
                return _home(origin, name)
    raise LookupError(f"{module} has no {name}")


def _with_keys(module: str, node: ast.stmt) -> ast.stmt:
    """Return a section together with the class that has its keys, if that is in a module of its own: `keys`."""
    if not isinstance(node, ast.ClassDef):
        return node
    for one in _tree(module).body:
        if isinstance(one, ast.ImportFrom) and (one.module or "").endswith(".keys"):
            for base in (base.id for base in node.bases if isinstance(base, ast.Name)):
                if any(imported.name == base for imported in one.names):
                    _, keys = _home(str(one.module), base)
                    assert isinstance(keys, ast.ClassDef)
                    about, *own = node.body
                    node.bases, node.body = keys.bases, [about, *keys.body[1:], *own]
    return node


def _entry(name: str, node: ast.stmt) -> Iterator[str]:
    """The heading of one name, how it is declared, and what its docstring says; the same for each method."""
    yield from ("", f"### `{name}`", "")
    match node:
        case ast.ClassDef(name=name, bases=bases, body=body, decorator_list=decorators):
            inherited = f"({', '.join(map(ast.unparse, bases))})" if bases else ""
            before = "".join(f"@{ast.unparse(one)} " for one in decorators)
            attributes = [f"    {line}" for one in body for line in _attributes(one)]
            yield from _declared(f"{before}class {name}{inherited}", *attributes)
            yield from _docstring(node)
            yield from _said_of_attributes(node)
            for one in body:
                if isinstance(one, _Function) and _is_public(one.name) and one.name not in _INTERNAL:
                    yield from _method(name, one)
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            yield from _declared(_signature(node))
            yield from _docstring(node)
        case _:
            yield from _declared(ast.unparse(node))


def _method(owner: str, node: _Function) -> Iterator[str]:
    if node.name == "__init__":
        # What a constructor's parameters mean is said by the docstring of the class.
        yield from _declared(_signature(node))
        yield from _docstring(node)
        return
    yield from ("", f"#### `{owner}.{node.name}`", "")
    yield from _declared(_signature(node))
    yield from _docstring(node)


def _declared(*text: str) -> Iterator[str]:
    yield from ("```text", *text, "```", "")


def _docstring(node: ast.ClassDef | _Function) -> Iterator[str]:
    about = ast.get_docstring(node)
    if about:
        yield from (*about.splitlines(), "")


def _said_of_attributes(node: ast.ClassDef) -> Iterator[str]:
    """Return a list of the attributes that have a text behind them, in the class or in its constructor."""
    constructors = [one.body for one in node.body if isinstance(one, _Function) and one.name == "__init__"]
    for body in (node.body, *constructors):
        for one, after in pairwise(body):
            match one, after:
                case (
                    ast.AnnAssign(target=ast.Name(id=name) | ast.Attribute(attr=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ) if _is_public(name):
                    yield f"- `{name}`: {' '.join(text.split())}"
    yield ""


def _attributes(node: ast.stmt) -> Iterator[str]:
    """Lines for the attributes that one statement in the body of a class defines: none for what is private."""
    match node:
        case ast.FunctionDef(name="__init__", args=arguments, body=body):
            given = {one.arg: one.annotation for one in (*arguments.args, *arguments.kwonlyargs)}
            for one in body:
                yield from _attribute(one, given)
        case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=value) if _is_public(name):
            default = "" if value is None or isinstance(value, ast.Call) else f" = {ast.unparse(value)}"
            yield f"{name}: {ast.unparse(annotation)}{default}"
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if _is_public(name):
            yield f"{name} = {ast.unparse(value)}"


def _attribute(node: ast.stmt, given: Mapping[str, ast.expr | None]) -> Iterator[str]:
    """A line for an attribute that a constructor sets: its type is written there, or is that of a parameter."""
    match node:
        case ast.AnnAssign(target=ast.Attribute(attr=name), annotation=annotation) if _is_public(name):
            yield f"{name}: {ast.unparse(annotation)}"
        case ast.Assign(targets=[ast.Attribute(attr=name)], value=value) if _is_public(name):
            parameter = given.get(value.id) if isinstance(value, ast.Name) else None
            if parameter is None:
                raise LookupError(f"the public attribute {name} has no annotation")
            yield f"{name}: {ast.unparse(parameter)}"


def _signature(node: _Function) -> str:
    """The line that defines it, behind the names of its decorators."""
    decorators = "".join(f"@{ast.unparse(one)} " for one in node.decorator_list)
    word = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{decorators}{word} {node.name}({ast.unparse(node.args)}){result}"


def _is_public(name: str) -> bool:
    # Of the special methods only the constructor: the others are said by the classes that one's class is made of.
    return name == "__init__" or not name.startswith("_")
