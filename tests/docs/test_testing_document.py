"""docs/testing.md says which test holds which scenario: the tables and the files must say the same."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from router_trio.cli.fault_pages import _MAKE
from router_trio.faults import OPERATIONS, Faults

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "testing.md").read_text()
ROW = re.compile(r"^\| (?P<group>[^|]+) \| (?P<scenario>[^|]+) \| `(?P<test>test_\w+)` \|$", re.MULTILINE)

LEAST = {
    "tests/resilience/test_connection_failure.py": 13,
    "tests/resilience/test_jetstream_errors.py": 8,
    "tests/resilience/test_workflows_in_a_failure.py": 5,
    "tests/resilience/test_jetstream_fault_injection.py": 15,
    "tests/resilience/test_publish_failure.py": 4,
    "tests/integration/test_nats_integration.py": 10,
    "tests/performance/test_nats_performance.py": 7,
}
"""Files whose tests are scenarios, and how many each has at least."""


def table_of(path: str) -> list[dict[str, str]]:
    """The rows of the section of a file."""
    _, heading, rest = TEXT.partition(f"\n### {path}\n")
    assert heading, f"docs/testing.md has no section {path}"
    return [row.groupdict() for row in ROW.finditer(rest.partition("\n### ")[0])]


def scenarios_in(path: str) -> list[str]:
    """The names of the tests in a file, in order."""
    nodes = ast.parse((ROOT / path).read_text()).body
    functions = (node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return [function.name for function in functions if function.name.startswith("test_")]


@pytest.mark.parametrize("path", LEAST)
def test_every_scenario_is_a_test_and_every_test_a_scenario(path: str) -> None:
    rows = table_of(path)
    assert [row["test"] for row in rows] == scenarios_in(path)
    assert len(rows) >= LEAST[path]
    assert len({(row["group"], row["scenario"]) for row in rows}) == len(rows)


def test_every_section_is_of_a_known_file() -> None:
    assert re.findall(r"^### (tests/.+)$", TEXT, re.MULTILINE) == list(LEAST)


def test_every_directory_of_tests_is_explained() -> None:
    named = set(re.findall(r"^\| `(tests/\w+)` \|", TEXT, re.MULTILINE))
    for name in ("unit", "contract", "integration", "resilience", "performance"):
        assert f"tests/{name}" in named


def test_every_fault_and_operation_is_explained() -> None:
    section = TEXT.partition("\n## Fault injection\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)\(", section, re.MULTILINE)) == set(_MAKE)
    assert all(f"`{operation}`" in section for operation in OPERATIONS)


def test_the_example_in_code_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    settings = 'Settings(connections={"main": {"servers": ["nats://127.0.0.1:4222"]}})'
    scope: dict[str, object] = {}
    exec(compile(code.replace('Settings.load("router.toml")', settings), "docs/testing.md", "exec"), scope)
    faults = scope["faults"]
    assert isinstance(faults, Faults)
    assert faults.active() == ()
