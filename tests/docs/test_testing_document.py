"""docs/testing.md names the files of scenarios, explains each directory of tests, and its examples run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from router_trio.cli.run.fault_pages import _MAKE
from router_trio.faults import OPERATIONS, Faults

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "testing.md").read_text()
SCENARIOS = (
    "tests/resilience/test_connection_failure.py",
    "tests/resilience/test_jetstream_errors.py",
    "tests/resilience/test_workflows_in_a_failure.py",
    "tests/resilience/test_jetstream_fault_injection.py",
    "tests/resilience/test_publish_failure.py",
    "tests/integration/test_nats_integration.py",
    "tests/performance/test_nats_performance.py",
)
"""Files whose tests are scenarios."""


@pytest.mark.parametrize("path", SCENARIOS)
def test_the_files_of_scenarios_are_listed_and_exist(path: str) -> None:
    assert f"\n| `{path}` |" in TEXT
    assert (ROOT / path).is_file()


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
