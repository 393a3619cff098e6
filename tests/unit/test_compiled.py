"""The build under test: in a clone the package is pure, `make suite` installs it as users do, compiled where it can be.

The list of what is compiled is in pyproject.toml; these tests are generated from it.
"""

from __future__ import annotations

import ast
import copy
import importlib
import os
import pickle
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import router_trio
from router_trio.states import values
from tests.support.command import environment
from tests.support.compiled import COMPILED, PACKAGE

ROOT = Path(__file__).parents[2]
INSTALLED = {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
HOOKS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]


def test_the_package_tested_is_the_one_asked_for() -> None:
    """Files that a build left in the source tree, or a wrong path order, must not go unnoticed."""
    asked_for = os.environ.get("TESTED_BUILD")
    assert (asked_for == "compiled") == COMPILED, PACKAGE
    assert (PACKAGE.parent in INSTALLED) == (asked_for is not None), PACKAGE


@pytest.mark.skipif("TESTED_BUILD" not in os.environ, reason="in a clone the sources are the package")
def test_no_sources_are_where_modules_are_imported_from() -> None:
    found = {Path(path).resolve() for path in sys.path if Path(path, "router_trio").exists()}
    assert found == {PACKAGE.parent.resolve()}


def test_programs_that_tests_start_run_the_same_package(tmp_path: Path) -> None:
    def printed(*arguments: str) -> str:
        done = subprocess.run([*arguments], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment())
        return done.stdout

    here = "import router_trio, router_trio.protocol.framing as one; print(router_trio.__file__, one.__file__)"
    framing = importlib.import_module("router_trio.protocol.framing")
    assert printed(sys.executable, "-c", here).split() == [router_trio.__file__, framing.__file__]
    for command in ([sys.executable, "-m", "router_trio"], [str(Path(sys.executable).with_name("router-trio"))]):
        assert ("(compiled)" in printed(*command, "--version")) == COMPILED


@pytest.mark.parametrize("pattern", HOOKS["custom"]["include"])
def test_each_module_listed_for_compilation_is_compiled(pattern: str) -> None:
    found = [str(path.relative_to(PACKAGE)) for path in PACKAGE.parent.glob(pattern)]
    assert found
    for path in found:
        module = module_of(path)
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
    found = {name for name in all_modules() if "weakref import" in (PACKAGE / name).read_text()}
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
    parsed = {module_of(name).__name__: ast.parse((PACKAGE / name).read_text()) for name in to_be_compiled()}
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


def test_no_compiled_module_defines_a_dataclass() -> None:
    """A frozen one can't be copied, unpickled or sent to another process. So values are where nothing is compiled."""
    defined = [
        (name, kind.name)
        for name in sorted(to_be_compiled())
        for kind in ast.walk(ast.parse((PACKAGE / name).read_text()))
        if isinstance(kind, ast.ClassDef)
        and any("dataclass" in ast.unparse(decorator) for decorator in kind.decorator_list)
    ]
    assert defined == [], "move it to another module, such as router_trio/states/values.py"


def test_named_tuples_of_compiled_modules_are_like_any_others() -> None:
    kinds = [kind for kind in classes_to_be_compiled() if hasattr(kind, "_fields")]
    assert kinds
    for kind in kinds:
        assert_is_a_named_tuple(kind)


def assert_is_a_named_tuple(kind: Any) -> None:
    names: tuple[str, ...] = kind._fields
    assert kind.__match_args__ == names == tuple(kind.__annotations__)
    plain = tuple(range(len(names)))
    one = kind(*plain)
    copied = pickle.loads(pickle.dumps(one)), copy.copy(one), copy.deepcopy(one), one._replace(), kind._make(plain)
    for same in copied:
        assert type(same) is kind
        assert same == one == plain
        assert hash(same) == hash(one)
        assert repr(same) == repr(one)
    assert repr(one) == f"{kind.__name__}({', '.join(f'{name}={number}' for number, name in enumerate(names))})"
    assert one._replace(**{names[0]: -1}) != one
    with pytest.raises(AttributeError):
        setattr(one, names[0], -1)


def test_values_of_states_are_not_compiled() -> None:
    assert str(values.__file__).endswith(".py")


def all_modules() -> set[str]:
    """Return the path of each module below `router_trio`."""
    return {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")}


def to_be_compiled() -> set[str]:
    """Return the paths of the modules to be compiled."""
    found = [path for pattern in HOOKS["custom"]["include"] for path in PACKAGE.parent.glob(pattern)]
    return {str(path.relative_to(PACKAGE)) for path in found}


def module_of(name: str) -> ModuleType:
    """Return the module with this path below `router_trio`."""
    parts = Path("router_trio", name).with_suffix("").parts
    return importlib.import_module(".".join(parts).removesuffix(".__init__"))


def classes_to_be_compiled() -> list[type]:
    """Return the classes of the modules that are to be compiled."""
    modules = map(module_of, sorted(to_be_compiled()))
    found = [(module, one) for module in modules for one in vars(module).values() if isinstance(one, type)]
    return [one for module, one in found if one.__module__ == module.__name__]
