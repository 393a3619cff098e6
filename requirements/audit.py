"""Ask the advisory database about every version in the locks, with pip-audit: `make audit`, where there is a network.

Exit codes: 0 when no version has a known vulnerability, 1 when one has, 3 when a version could not be audited. That is
not 0, because pip-audit itself says "No known vulnerabilities found" when the database has answered nothing at all,
and a release must not take silence for a clean bill. Where no database can be reached, `make audit UNREACHABLE_OK=1`
accepts that.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LOCKS = sorted(Path(__file__).parent.glob("*.txt"))
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;]+)", re.MULTILINE)


def main(unreachable_ok: bool) -> int:
    """Audit every version, and return the exit code."""
    pins = {(name, version) for lock in LOCKS for name, version in _PIN.findall(lock.read_text(encoding="utf-8"))}
    audited: set[tuple[str, str]] = set()
    vulnerable = []
    reasons: set[str] = set()
    for turn in _turns(pins):
        answers, reason = _ask(turn)
        reasons |= {reason} - {""}
        for answer in answers:
            if "skip_reason" in answer:
                reasons.add(str(answer["skip_reason"]))
                continue
            audited.add((str(answer["name"]), str(answer["version"])))
            for found in answer["vulns"]:
                fixed = ", ".join(found.get("fix_versions", ())) or "no version yet"
                vulnerable.append(f"{answer['name']} {answer['version']}: {found['id']}, mended in {fixed}")
    missing = sorted(pins - audited)

    print(f"{len(pins)} versions in {len(LOCKS)} locks: {len(audited)} audited, {len(missing)} not audited.")
    for line in vulnerable:
        print(f"vulnerable: {line}")
    if missing:
        names = ", ".join(f"{name} {version}" for name, version in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        print(f"NOT AUDITED, the advisory database gave no answer: {names}{more}")
        for reason in sorted(reasons)[:1]:
            print(f"  {reason}")
        print("Run it where https://pypi.org/pypi/NAME/VERSION/json can be reached, or set UNREACHABLE_OK=1.")
    if vulnerable:
        return 1
    return 3 if missing and not unreachable_ok else 0


def _turns(pins: set[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """Return the versions in groups with one version of each package: pip-audit takes no more at once.

    A lock has two versions of a package where an old Python needs another one than a new Python.
    """
    turns: list[dict[str, str]] = []
    for name, version in sorted(pins):
        for turn in turns:
            if name not in turn:
                turn[name] = version
                break
        else:
            turns.append({name: version})
    return [list(turn.items()) for turn in turns]


def _ask(pins: list[tuple[str, str]]) -> tuple[list[dict[str, Any]], str]:
    """Return what pip-audit says of each version, and why it says nothing if it doesn't."""
    with tempfile.TemporaryDirectory() as directory:
        # Without the markers: what other platforms install is audited as well.
        given = Path(directory, "requirements.txt")
        given.write_text("".join(f"{name}=={version}\n" for name, version in pins), encoding="utf-8")
        command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--no-deps", "--progress-spinner", "off"]
        command += ["--format", "json", "--requirement", str(given)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        answers: list[dict[str, Any]] = list(json.loads(done.stdout)["dependencies"])
    except (ValueError, KeyError, TypeError):
        lines = done.stderr.strip().splitlines()
        return [], lines[-1] if lines else f"pip-audit ended with {done.returncode}"
    return answers, ""


if __name__ == "__main__":
    sys.exit(main("--unreachable-ok" in sys.argv[1:]))
