"""The types in the package (`py.typed`) are complete, and without errors for users of pyright.

mypy reads the same sources by other rules: it infers types that are not annotated, where pyright's users would get a
guess.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.supply.locks import ROOT

PATH = os.pathsep.join([str(ROOT / ".venv-tools" / "bin"), os.environ["PATH"]])
NO_DOCSTRING = re.compile(r'No docstring found for (function|class "router_trio\.router\.options\._WithKeyword")')
ELSEWHERE = re.compile(
    r"Type of (parameter|base class) .* is partially unknown|Return type is partially unknown|"
    r"Ambiguous base class override"
)
"""Diagnostics whose cause is reported at another symbol, and an attribute that only its base class declares.

A class that is compiled must not declare an attribute of its base again: see tests/unit/test_compiled.py.
"""

PYRIGHT = shutil.which("basedpyright", path=PATH)

pytestmark = [
    pytest.mark.skipif(PYRIGHT is None, reason="pyright is not installed: `make types` installs it, and runs this"),
    # It reads all sources and those of the dependencies: half a minute of one processor.
    pytest.mark.timeout(300),
]


CASES = Path(__file__).parent / "handlers_to_check.txt"
REFUSED = "  # refused"
OF_MYPY = re.compile(r":([0-9]+): error: ")


def pyright(*arguments: str) -> dict[str, Any]:
    """Return pyright's report on the sources next to these tests. Blocks for up to a minute."""
    # For `--verifytypes` the interpreter is the first on the path, whatever `--pythonpath` says.
    path = os.pathsep.join([str(Path(sys.executable).parent), PATH])
    run = subprocess.run(
        [str(PYRIGHT), "--outputjson", *arguments],
        cwd=ROOT,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    told: dict[str, Any] = json.loads(run.stdout)
    return told


def places(diagnostics: list[dict[str, Any]]) -> list[str]:
    return [f"{one['file']}:{one['range']['start']['line'] + 1}: {one['message']}" for one in diagnostics]


def test_pyright_reports_nothing_for_the_package() -> None:
    told = pyright("--pythonpath", sys.executable)
    assert told["summary"]["filesAnalyzed"] >= 150
    assert places(told["generalDiagnostics"]) == []


def test_the_type_of_every_public_name_is_known() -> None:
    told = pyright("--verifytypes", "router_trio", "--ignoreexternal")["typeCompleteness"]
    assert Path(told["pyTypedPath"]) == ROOT / "router_trio" / "py.typed"
    assert told["exportedSymbolCounts"]["withKnownType"] >= 3000
    # tests/docs/test_docstrings.py checks docstrings, and knows interfaces.
    wrong = {
        one["name"]: [
            said["message"]
            for said in one["diagnostics"]
            if not NO_DOCSTRING.match(said["message"]) and not ELSEWHERE.match(said["message"])
        ]
        for one in told["symbols"]
    }
    assert {name: said for name, said in wrong.items() if said} == {}


def refused_by_pyright(program: Path) -> set[int]:
    """Return the lines of a program in which pyright finds an error."""
    found = pyright("--pythonpath", sys.executable, str(program))["generalDiagnostics"]
    return {one["range"]["start"]["line"] + 1 for one in found if one["severity"] == "error"}


def refused_by_mypy(program: Path) -> set[int]:
    """Return the lines of a program in which mypy finds an error, with a user's own configuration."""
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent", str(program)],
        cwd=program.parent,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1, run.stdout + run.stderr
    return {int(line) for line in OF_MYPY.findall(run.stdout)}


@pytest.mark.parametrize("refused_by", [refused_by_pyright, refused_by_mypy])
def test_mistakes_in_routes_are_refused_by_type_checkers_and_nothing_else_is(
    refused_by: Callable[[Path], set[int]], tmp_path: Path
) -> None:
    program = tmp_path / "handlers_to_check.py"
    program.write_text(CASES.read_text(encoding="utf-8"), encoding="utf-8")
    lines = program.read_text(encoding="utf-8").splitlines()
    refused = {number for number, line in enumerate(lines, 1) if line.endswith(REFUSED)}
    assert len(refused) >= 25
    assert refused_by(program) == refused
