"""The reference pages are those that the code generates today."""

from __future__ import annotations

import runpy
from collections.abc import Callable

import pytest

import router_trio
from router_trio.cli.command_line import COMMANDS
from router_trio.cli.contract import collect
from router_trio.settings import json_schema
from tests.docs.pages import DOCS

GENERATE = DOCS / "reference" / "generate.py"
PAGES: dict[str, Callable[[], str]] = runpy.run_path(str(GENERATE))["pages"]()


def committed(name: str) -> str:
    return (GENERATE.parent / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(PAGES))
def test_a_reference_page_is_current(name: str) -> None:
    assert committed(name) == PAGES[name](), "run `python docs/reference/generate.py`, and commit what it wrote"


BY_HAND = {"servers.md"}


def test_the_reference_has_no_other_pages() -> None:
    here = {name for name in PAGES if "/" not in name}
    assert {path.name for path in GENERATE.parent.glob("*.md")} == here | BY_HAND


def test_every_key_metric_code_public_name_and_command_is_in_the_reference() -> None:
    contract = collect()
    configuration, metrics, logs = committed("configuration.md"), committed("metrics.md"), committed("logs.md")
    python, commands = committed("python.md").splitlines(), committed("commands.md")
    keys = [key for section in json_schema()["$defs"].values() for key in section["properties"]]
    assert all(f"| `{key}` |" in configuration for key in keys)
    assert all(f"| `{metric['name']}` |" in metrics for metric in contract["metrics"])
    assert all(f"| `{log['code']}` |" in logs for log in contract["logs"])
    assert all(any(f"class {name}" in line for line in python) for name in router_trio.__all__)
    assert all(f"## `router-trio {name}`" in commands for name in COMMANDS)
