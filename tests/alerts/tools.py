"""Prometheus' and Alertmanager's own tools, which check the files in `alerts/`.

They are no Python packages: Debian and Ubuntu have them as `prometheus` and `prometheus-alertmanager`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RULES = ROOT / "alerts" / "router_trio.rules.yml"
ALERTMANAGER = ROOT / "alerts" / "alertmanager.example.yml"
RULE_TESTS = sorted((ROOT / "tests" / "alerts" / "rules").glob("*.yml"))
ENDS_WITHIN = 120.0


def tool(*names: str) -> str:
    """Return the path of the first of these programs that is installed; skip the test if none is, and fail it in CI."""
    for name in names:
        if found := shutil.which(name):
            return found
    why = f"no {names[0]} in PATH: apt-get install --no-install-recommends prometheus prometheus-alertmanager"
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)


def run(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a tool to its end. Skips or fails as `tool` does."""
    return subprocess.run(
        [tool(name), *map(str, arguments)], capture_output=True, text=True, check=False, timeout=ENDS_WITHIN
    )


def load(path: Path) -> Any:
    """Return the content of a YAML file, for the caller to change."""
    return deepcopy(_parsed(path))


@cache
def rules(kind: str) -> list[dict[str, Any]]:
    """Return every rule of that kind, `alert` or `record`, in the order of the file."""
    return [rule for group in load(RULES)["groups"] for rule in group["rules"] if kind in rule]


@cache
def _parsed(path: Path) -> Any:
    return yaml.safe_load(path.read_text())
