"""ARCHITECTURE.md is true: its code map is the tree, and each of its invariants names an existing test."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.docs.pages import DOCS, ROOT
from tests.support.syntax import nodes, parsed

TEXT = (DOCS / "ARCHITECTURE.md").read_text(encoding="utf-8")
PACKAGE = ROOT / "router_trio"


def test_each_named_file_exists() -> None:
    named = {path for path in re.findall(r"`([\w./-]+\.(?:py|html|toml|conf))`", TEXT) if "/" in path}
    assert len(named) > 40
    assert [path for path in sorted(named) if not ((PACKAGE / path).exists() or (ROOT / path).exists())] == []


FLOORS = [set(re.findall(r"`(\w+)/?`", rooms)) for rooms in re.findall(r"^\| \d+ \| (.*?) \|", TEXT, flags=re.M)]
"""The modules and folders of each floor, from the top."""


def test_each_room_is_on_one_floor() -> None:
    there = {path.stem for path in PACKAGE.iterdir() if not path.name.startswith("_") and path.suffix in ("", ".py")}
    assert sorted(room for floor in FLOORS for room in floor) == sorted(there)


def test_the_floors_are_the_layers_that_lint_imports_checks() -> None:
    (layers,) = [contract["layers"] for contract in contracts() if contract["type"] == "layers"]
    named = [{room.strip().removeprefix("router_trio.") for room in re.split("[|:]", layer)} for layer in layers]
    assert [layer for layer in named if layer != {"__main__"}] == FLOORS


def contracts() -> list[dict[str, Any]]:
    """Return the contracts of import-linter."""
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return list(configuration["tool"]["importlinter"]["contracts"])


_HEADING, *INVARIANTS = re.findall(r"^\| (.+?) \| (.+) \|$", TEXT.split("## Invariants")[1], flags=re.M)
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
CONTRACT = re.compile(r"`lint-imports`: (.+)")


def test_each_invariant_names_a_test_or_contract() -> None:
    assert len(INVARIANTS) >= 15
    for invariant, held_by in INVARIANTS:
        assert TEST.search(held_by) or CONTRACT.fullmatch(held_by), invariant


def test_each_named_test_exists() -> None:
    named = TEST.findall(TEXT)
    assert len(named) >= 15
    for path, name in named:
        body = parsed(ROOT / path).body
        assert name in {defined for statement in body for defined in _names(statement)}, f"{path}::{name}"


def test_each_named_contract_of_imports_exists() -> None:
    named = [found[1] for _, held_by in INVARIANTS if (found := CONTRACT.fullmatch(held_by))]
    assert len(named) >= 3
    assert set(named) <= {contract["name"] for contract in contracts()}


def test_tasks_are_started_only_in_nurseries() -> None:
    """No constructor starts a task, no task is without a parent, and a lifetime is `async with`."""
    for path, function in _functions():
        assert function.name not in ("start", "stop"), path
        called = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
        calls = {one.attr for one in called if isinstance(one, ast.Attribute)}
        assert "spawn_system_task" not in calls, path
        if function.name == "__init__":
            assert not calls & {"start_soon", "start"}, path


def test_no_lock_is_on_the_path_of_a_message() -> None:
    locking = {path for path in PACKAGE.rglob("*.py") if re.search(r"\bR?Lock\(", path.read_text(encoding="utf-8"))}
    elsewhere = {str(one) for path in locking if (one := path.relative_to(PACKAGE)).parts[0] != "telemetry"}
    assert elsewhere == {"nats/subscriptions.py", "connection/shared_subscription.py"}


ROLES = {"breaker", "holder"}
"""Attributes that hold an object with a method to call, as a callback is."""


def test_no_callback_is_set_from_outside() -> None:
    """A callback, or another role, is passed to a constructor or to a method of its owner."""
    files = [path for path in sorted(PACKAGE.rglob("*.py")) if path.relative_to(PACKAGE).parts[0] != "testing"]
    stored = [node for path in files for node in nodes(path) if isinstance(node, ast.AnnAssign)]
    callbacks = {
        node.target.attr
        for node in stored
        if isinstance(node.target, ast.Attribute)
        and re.search(r"\b(Callable|Deliver|Emit)\b", ast.unparse(node.annotation))
    }
    assert len(callbacks) > 20
    for path in files:
        for node in nodes(path):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and ast.unparse(node.value) != "self"
            ):
                assert node.attr not in (callbacks | ROLES), f"{path}:{node.lineno}: {ast.unparse(node)}"


OF_KINDS = (
    "settings/routes/sources/",
    "settings/routes/destinations/",
    "settings/routes/destination.py",
    "routing/core/",
    "routing/stream/",
    "cli/dead_letters/",
    "online/facts.py",
    "online/partitions.py",
    "online/sources.py",
    "online/streams.py",
)
"""Where a kind is defined, or where there is no other, as for dead letters and the findings about streams."""


def test_code_asks_the_kind_of_a_source_or_destination_and_not_its_keys() -> None:
    """A KV bucket would be neither, so nothing else may look at the key that only one kind has."""
    looking = re.compile(r"source\.(?:subject|stream)\b|\b(?:to|end|one|copy|destination)\.jetstream\b")
    for path in sorted(PACKAGE.rglob("*.py")):
        file = str(path.relative_to(PACKAGE))
        if not file.startswith(OF_KINDS):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                assert not looking.search(line), f"{file}:{number}: ask `kind` instead"


def _names(statement: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement of a module defines."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
    elif isinstance(statement, ast.Assign):
        yield from (target.id for target in statement.targets if isinstance(target, ast.Name))


def _functions() -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield every function of the package except properties, with its file."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.decorator_list:
                yield path, node
