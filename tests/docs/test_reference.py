"""The reference pages are those that the code makes today."""

from __future__ import annotations

import runpy

import pytest

import router_trio
from router_trio.cli.command_line.application import COMMANDS
from router_trio.cli.contract import collect
from router_trio.settings import json_schema
from tests.docs.pages import DOCS

GENERATE = DOCS / "reference" / "generate.py"
PAGES: dict[str, str] = runpy.run_path(str(GENERATE))["pages"]()


@pytest.mark.parametrize("name", sorted(PAGES))
def test_a_reference_page_is_current(name: str) -> None:
    committed = (GENERATE.parent / name).read_text(encoding="utf-8")
    assert committed == PAGES[name], "run `python docs/reference/generate.py`, and commit what it wrote"


BY_HAND = {"servers.md"}


def test_the_reference_has_no_other_pages() -> None:
    assert {path.name for path in GENERATE.parent.glob("*.md")} == set(PAGES) | BY_HAND


def test_every_key_metric_code_public_name_and_command_is_in_the_reference() -> None:
    contract = collect()
    keys = [key for section in json_schema()["$defs"].values() for key in section["properties"]]
    assert all(f"| `{key}` |" in PAGES["configuration.md"] for key in keys)
    assert all(f"| `{metric['name']}` |" in PAGES["metrics.md"] for metric in contract["metrics"])
    assert all(f"| `{log['code']}` |" in PAGES["logs.md"] for log in contract["logs"])
    python = PAGES["python.md"].splitlines()
    assert all(any(f"class {name}" in line for line in python) for name in router_trio.__all__)
    names = list(COMMANDS)
    assert all(f"## `router-trio {name}`" in PAGES["commands.md"] for name in names)
