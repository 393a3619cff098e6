"""`make audit` never takes silence for a clean bill: versions without an answer are named, and set the exit code.

A module of the same name replaces pip-audit, since the real one queries an index.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.supply.locks import LOCKS, REQUIREMENTS, lock
from tests.support.command import environment

PLAYED = """
import json, sys
given = open(sys.argv[sys.argv.index("--requirement") + 1]).read().split()
assert len({line.split("==")[0] for line in given}) == len(given), "pip-audit takes one version of a package"
answers = [{"name": line.split("==")[0], "version": line.split("==")[1], "vulns": []} for line in given]
"""
CLEAN = 'print(json.dumps({"dependencies": answers, "fixes": []}))'
NOT_FOUND = """
answers = [{"name": one["name"], "skip_reason": "Dependency not found on PyPI"} for one in answers]
print("No known vulnerabilities found", file=sys.stderr)
print(json.dumps({"dependencies": answers, "fixes": []}))
"""
GARBLED = 'print(json.dumps({"dependencies": None}))'
UNREACHABLE = 'sys.exit("requests.exceptions.ConnectionError: Failed to resolve pypi.org")'
VULNERABLE = """
for one in answers:
    if one["name"] == "trio":
        one["vulns"] = [{"id": "PYSEC-1", "fix_versions": ["9.9"], "aliases": [], "description": ""}]
print(json.dumps({"dependencies": answers, "fixes": []}))
sys.exit(1)
"""
SILENT_ON_ONE = 'print(json.dumps({"dependencies": answers[1:], "fixes": []}))'
EVERY = len({(pin.name, pin.version) for name in LOCKS for pin in lock(name)})


def audit(tmp_path: Path, behaviour: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "pip_audit.py").write_text(PLAYED + behaviour)
    command = [sys.executable, str(REQUIREMENTS / "audit.py"), *arguments]
    env = environment({"PYTHONPATH": str(tmp_path)})
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=30)


def test_every_version_of_every_lock_is_audited(tmp_path: Path) -> None:
    done = audit(tmp_path, CLEAN)
    assert (done.returncode, done.stdout.strip()) == (
        0,
        f"{EVERY} versions in {len(LOCKS)} locks: {EVERY} audited, 0 not audited.",
    )


def test_a_vulnerability_is_named_with_its_fixed_version(tmp_path: Path) -> None:
    done = audit(tmp_path, VULNERABLE)
    assert done.returncode == 1
    [trio] = [pin.version for pin in lock("dev") if pin.name == "trio"]
    assert f"vulnerable: trio {trio}: PYSEC-1, mended in 9.9" in done.stdout.splitlines()


@pytest.mark.parametrize("behaviour", [NOT_FOUND, UNREACHABLE, GARBLED], ids=["skipped", "no network", "garbled"])
def test_no_answer_is_not_a_clean_bill(tmp_path: Path, behaviour: str) -> None:
    done = audit(tmp_path, behaviour)
    assert done.returncode == 3
    assert f"0 audited, {EVERY} not audited" in done.stdout
    assert "NOT AUDITED" in done.stdout
    told = audit(tmp_path, behaviour, "--unreachable-ok")
    assert told.returncode == 0
    assert "NOT AUDITED" in told.stdout


def test_one_version_without_an_answer_is_named(tmp_path: Path) -> None:
    done = audit(tmp_path, SILENT_ON_ONE)
    assert done.returncode == 3
    first = min((pin.name, pin.version) for name in LOCKS for pin in lock(name))
    assert " ".join(first) in done.stdout


def test_a_vulnerability_is_not_excused_by_an_unreachable_database(tmp_path: Path) -> None:
    done = audit(tmp_path, VULNERABLE.replace("answers, ", "answers[1:], "), "--unreachable-ok")
    assert done.returncode == 1
    assert "NOT AUDITED" in done.stdout
