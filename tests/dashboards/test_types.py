"""The JSON is checked by `tsc` against Grafana's types: `@grafana/schema` of the supported release line.

Each panel is checked against the types of its kind (options, field configuration), not only against those of a panel.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from dashboards.boards import NAMES
from tests.dashboards.committed import dashboard

SCHEMA = "@grafana/schema@11.6.16"
TYPESCRIPT = "typescript@5.8.3"
INSTALL_WITHIN = 120.0

FOLDERS = {
    "timeseries": "timeseries/panelcfg/x/TimeSeriesPanelCfg",
    "stat": "stat/panelcfg/x/StatPanelCfg",
    "bargauge": "bargauge/panelcfg/x/BarGaugePanelCfg",
    "state-timeline": "statetimeline/panelcfg/x/StateTimelinePanelCfg",
    "heatmap": "heatmap/panelcfg/x/HeatmapPanelCfg",
    "table": "table/panelcfg/x/TablePanelCfg",
}
OWN_FIELDS = {"timeseries", "state-timeline", "heatmap"}
"""Kinds of panels that have a field configuration of their own."""


@pytest.fixture(scope="module")
def checker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the types and the compiler. Skips without npm, except in continuous integration."""
    if shutil.which("npm") is None:
        reason = "npm is not installed: apt-get install npm"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    directory = tmp_path_factory.mktemp("types")
    (directory / "package.json").write_text('{"private": true}')
    install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", SCHEMA, TYPESCRIPT]
    done = subprocess.run(install, cwd=directory, capture_output=True, text=True, timeout=INSTALL_WITHIN, check=False)
    assert done.returncode == 0, done.stderr
    return directory


def check(directory: Path, code: str) -> str:
    """Return the compiler's errors for some TypeScript, `""` for none."""
    (directory / "check.ts").write_text(code, encoding="utf-8")
    flags = ["--noEmit", "--strict", "--skipLibCheck", "--module", "esnext", "--moduleResolution", "bundler"]
    done = subprocess.run(
        ["node_modules/.bin/tsc", *flags, "check.ts"],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=INSTALL_WITHIN,
        check=False,
    )
    assert (done.returncode == 0) == (not done.stdout), done.stderr
    return done.stdout


def code_for(boards: Iterable[dict[str, Any]]) -> str:
    """Return TypeScript that assigns dashboards, and each of their panels, to their types.

    A plain string of JSON can't be assigned to an enumeration, but to the template literal type of its values.
    """
    lines = ["import type { Dashboard } from '@grafana/schema';"]
    for kind, folder in FOLDERS.items():
        module = f"@grafana/schema/dist/esm/raw/composable/{folder}_types.gen.d.ts"
        lines.append(f"import type * as {_identifier(kind)} from '{module}';")
    lines += [
        "type Plain<T> = T extends string ? `${T}` : T extends number | boolean | null | undefined ? T",
        "  : T extends (infer E)[] ? Plain<E>[] : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;",
    ]
    for number, board in enumerate(boards):
        lines += _hold(f"board{number}", "Dashboard", _without_expressions(board))
        for panel in board["panels"]:
            if panel["type"] == "row":
                continue
            kind, name = _identifier(panel["type"]), f"panel{number}_{panel['id']}"
            lines += _hold(f"{name}_options", f"{kind}.Options", panel["options"])
            if panel["type"] in OWN_FIELDS:
                fields = panel["fieldConfig"]["defaults"].get("custom", {})
                lines += _hold(f"{name}_fields", f"{kind}.FieldConfig", fields)
    return "\n".join(lines)


def _hold(name: str, kind: str, value: object) -> list[str]:
    return [f"const {name}: Plain<{kind}> = {json.dumps(value)};"]


def _without_expressions(board: dict[str, Any]) -> dict[str, Any]:
    """Remove the queries, whose types belong to the data source and not to the dashboard."""
    annotations = [{k: v for k, v in one.items() if k != "expr"} for one in board["annotations"]["list"]]
    return board | {"annotations": {"list": annotations}}


def _identifier(kind: str) -> str:
    return kind.replace("-", "_")


@pytest.mark.timeout(180)
def test_dashboards_match_the_types_of_grafana(checker: Path) -> None:
    assert check(checker, code_for(map(dashboard, NAMES))) == ""


@pytest.mark.timeout(180)
def test_the_type_check_finds_mistakes(checker: Path) -> None:
    board = dashboard("overview")
    panel = next(panel for panel in board["panels"] if panel["type"] == "timeseries")
    panel["fieldConfig"]["defaults"]["custom"]["drawStyle"] = "scribble"
    panel["options"]["legend"]["calcs"] = "mean"
    board["refresh"] = 5
    found = check(checker, code_for([board]))
    for mistake in ("scribble", "'string' is not assignable to type 'string[]'", "'number' is not assignable"):
        assert mistake in found
