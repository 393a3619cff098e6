"""The compiled data plane: `make test` runs without it, `make test-compiled` with all of it."""

from __future__ import annotations

import ast
import importlib
import os
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from router_trio.protocol import framing
from tests.support.compiled import COMPILED

ROOT = Path(__file__).parents[2]
HOOKS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]


def test_the_modules_tested_are_those_asked_for() -> None:
    """Files that a build left in the source tree, or a wrong path order, must not go unnoticed."""
    assert ("TEST_COMPILED" in os.environ) == COMPILED, framing.__file__


@pytest.mark.parametrize("pattern", HOOKS["custom"]["include"])
def test_each_module_listed_for_compilation_is_compiled(pattern: str) -> None:
    found = [path.relative_to(ROOT) for path in ROOT.glob(pattern)]
    assert found
    for path in found:
        module = importlib.import_module(".".join(path.with_suffix("").parts))
        assert str(module.__file__).endswith(".so" if COMPILED else ".py")


REFERRED_TO_WEAKLY = {
    "connection/answers.py": ["routing/stream/acks.py"],
    "forked.py": ["router/forks.py", "router/workers/counts/block.py", "router/workers/worker.py"],
    "router/workers/counts/block.py": ["router/workers/counts/block.py"],
    "routing/builder.py": ["connection/shared_subscription.py"],
    "telemetry/tap/taps.py": ["routing/tracing.py"],
}
"""Modules that hold weak references, each with the modules of the classes to which it refers."""


def test_no_class_that_is_referred_to_weakly_is_compiled() -> None:
    """Instances of a compiled class have no slot for weak references."""
    found = {name for name in all_modules() if "weakref import" in (ROOT / "router_trio" / name).read_text()}
    assert found == REFERRED_TO_WEAKLY.keys(), "say which classes it refers to"
    assert not {one for classes in REFERRED_TO_WEAKLY.values() for one in classes} & to_be_compiled()


def test_no_interpreted_class_inherits_from_a_compiled_one() -> None:
    """Such a class could not be instantiated."""
    for name in all_modules():
        if not name.endswith("__main__.py"):
            module_of(name)
    compiled = {module_of(name).__name__ for name in to_be_compiled()}
    for parent in classes_to_be_compiled():
        if not issubclass(parent, BaseException | tuple) and not getattr(parent, "_is_protocol", False):
            children = {one for one in parent.__subclasses__() if one.__module__.startswith("router_trio.")}
            assert {one for one in children if one.__module__ not in compiled} == set(), parent


def test_no_compiled_class_declares_an_attribute_of_its_base_again() -> None:
    """The garbage collector would visit it twice: it would free objects in use, and keep others for ever."""
    parsed = {
        module_of(name).__name__: ast.parse((ROOT / "router_trio" / name).read_text()) for name in to_be_compiled()
    }
    declared = {
        (module, one.name): declared_in(one)
        for module, tree in parsed.items()
        for one in ast.walk(tree)
        if isinstance(one, ast.ClassDef)
    }
    for kind in classes_to_be_compiled():
        for parent in kind.__mro__[1:]:
            again = declared[kind.__module__, kind.__qualname__] & declared.get(
                (parent.__module__, parent.__qualname__), set()
            )
            assert not again, (kind, parent)


def declared_in(kind: ast.ClassDef) -> set[str]:
    """Return the attributes of instances that the body of a class, or a typed assignment of its methods, declares.

    Attributes with a constant as default are left out: it is no object that the collector visits.
    """
    found = set()
    for line in kind.body:
        if isinstance(line, ast.AnnAssign) and "ClassVar" not in ast.unparse(line.annotation):
            found.add(ast.unparse(line.target))
        elif isinstance(line, ast.Assign) and (not isinstance(line.value, ast.Constant) or line.value.value is None):
            found |= {ast.unparse(target) for target in line.targets}
    typed = (line.target for line in ast.walk(kind) if isinstance(line, ast.AnnAssign))
    found.discard("__slots__")
    return found | {one.attr for one in typed if isinstance(one, ast.Attribute) and ast.unparse(one.value) == "self"}


def test_no_compiled_error_has_defaults_in_its_class() -> None:
    """Its instances would not have them."""
    errors = [one for one in classes_to_be_compiled() if issubclass(one, BaseException)]
    assert errors
    assert [(one, name) for one in errors for name in one.__annotations__ if name in vars(one)] == []


def all_modules() -> set[str]:
    """Return the path of each module below `router_trio`."""
    package = ROOT / "router_trio"
    return {str(path.relative_to(package)) for path in package.rglob("*.py")}


def to_be_compiled() -> set[str]:
    """Return the paths of the modules to be compiled."""
    found = [path for pattern in HOOKS["custom"]["include"] for path in ROOT.glob(pattern)]
    return {str(path.relative_to(ROOT / "router_trio")) for path in found}


def module_of(name: str) -> ModuleType:
    """Return the module with this path below `router_trio`."""
    parts = Path("router_trio", name).with_suffix("").parts
    return importlib.import_module(".".join(parts).removesuffix(".__init__"))


def classes_to_be_compiled() -> list[type]:
    """Return the classes of the modules that are to be compiled."""
    modules = map(module_of, sorted(to_be_compiled()))
    found = [(module, one) for module in modules for one in vars(module).values() if isinstance(one, type)]
    return [one for module, one in found if one.__module__ == module.__name__]
