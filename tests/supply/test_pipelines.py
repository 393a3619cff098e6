"""The pipelines of GitLab, Drone and GitHub are valid, and all of them run the parts of `.ci/run`.

Each is checked with its published schema; GitHub's also with actionlint, where `make tools` has built it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.supply.locks import ROOT
from tests.support.compiled import OF_THE_REPOSITORY
from tests.support.tools import tool

GITLAB, DRONE, GITHUB = ROOT / ".gitlab-ci.yml", ROOT / ".drone.yml", ROOT / ".github/workflows/ci.yml"
SCHEMAS = {
    GITLAB: ["vendor.gitlab-ci", "--data-transform", "gitlab-ci"],
    DRONE: ["vendor.drone-ci"],
    GITHUB: ["vendor.github-workflows"],
}
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def is_valid(pipeline: Path, text: str, tmp_path: Path) -> bool:
    """Return True if each document of a pipeline conforms to its schema; print what is wrong."""
    files = []
    for number, document in enumerate(re.split(r"^---$", text, flags=re.MULTILINE)):
        file = tmp_path / f"{number}{pipeline.name}"
        file.write_text(document, encoding="utf-8")
        files.append(str(file))
    import check_jsonschema  # takes a second, which each worker would spend on collecting the tests

    with pytest.raises(SystemExit) as ended:
        check_jsonschema.main(["--builtin-schema", *SCHEMAS[pipeline], *files])
    assert ended.value.code in (0, 1)
    return ended.value.code == 0


@pytest.mark.parametrize("pipeline", SCHEMAS, ids=lambda path: path.name)
def test_a_pipeline_conforms_to_its_schema(pipeline: Path, tmp_path: Path) -> None:
    assert is_valid(pipeline, pipeline.read_text(encoding="utf-8"), tmp_path)


@pytest.mark.parametrize(
    ("pipeline", "right", "wrong"),
    [
        (GITLAB, "timeout: 6 hours", "timeout: [6]"),
        (DRONE, "commands:", "command:"),
        (GITHUB, "runs-on: ubuntu-24.04", "run-on: ubuntu-24.04"),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else None,
)
def test_a_mistake_would_be_found(pipeline: Path, right: str, wrong: str, tmp_path: Path) -> None:
    text = pipeline.read_text(encoding="utf-8")
    assert right in text
    assert not is_valid(pipeline, text.replace(right, wrong), tmp_path)


def test_actionlint_finds_nothing(tmp_path: Path) -> None:
    actionlint = tool("actionlint")
    # Neither checker is ours to install: the findings do not depend on the machine.
    command = [str(actionlint), "-no-color", "-shellcheck=", "-pyflakes="]
    done = subprocess.run([*command, str(GITHUB)], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = tmp_path / "ci.yml"
    wrong.write_text(GITHUB.read_text(encoding="utf-8").replace("github.event_name ==", "github.event_nam =="))
    done = subprocess.run([*command, str(wrong)], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 1
    assert 'property "event_nam" is not defined' in done.stdout


def commands(node: Any) -> Iterator[str]:
    """Yield every command that a pipeline runs, at any depth."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("script", "commands", "run", "before_script", "after_script"):
                yield from [value] if isinstance(value, str) else value
            else:
                yield from commands(value)
    elif isinstance(node, list):
        for value in node:
            yield from commands(value)


PARTS = ["sources", "unit", "integration", "resilience"]
"""Parts of the standard suites, as .ci/run has them."""


def matrix(node: Any) -> Iterator[list[str]]:
    """Yield the values of a matrix; its job runs once for each."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("part", "PART"):
                yield value
            else:
                yield from matrix(value)
    elif isinstance(node, list):
        for value in node:
            yield from matrix(value)


@pytest.mark.parametrize("pipeline", SCHEMAS, ids=lambda path: path.name)
def test_a_pipeline_runs_each_part_of_the_standard_suites_and_the_nightly_ones(pipeline: Path) -> None:
    documents = list(yaml.safe_load_all(pipeline.read_text()))
    found = [one for document in documents for one in commands(document)]
    for parts in matrix(documents):
        job = next(one for one in found if "$" in one)
        found[found.index(job) : found.index(job) + 1] = [f".ci/run {part}" for part in parts]
    assert found == [f".ci/run {part}" for part in [*PARTS, "nightly"]]


def ci_run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run .ci/run where every package is installed, and make only prints its targets."""
    for name, text in (("make", 'echo "$@"'), ("dpkg", "exit 0")):
        played = tmp_path / name
        played.write_text(f"#!/bin/sh\n{text}\n")
        played.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [str(ROOT / ".ci/run"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=20)


def test_without_an_argument_the_standard_suites_run(tmp_path: Path) -> None:
    assert ci_run(tmp_path).stdout.splitlines() == ["tools", "WORKERS=2 types test"]


def test_the_parts_together_run_every_check_and_every_test_once(tmp_path: Path) -> None:
    targets: list[str] = []
    folders: list[str] = []
    for part in PARTS:
        _, run = ci_run(tmp_path, part).stdout.splitlines()
        before, _, tests = run.partition("TESTS=")
        targets += [word for word in before.split() if "=" not in word]
        folders += tests.split()
    assert sorted(targets) == ["lint", "sources", *["suite"] * (len(PARTS) - 1), "types"]
    with_tests = {f"tests/{path.relative_to(ROOT).parts[1]}" for path in (ROOT / "tests").rglob("test_*.py")}
    assert sorted(folders) == sorted(with_tests - {folder.rstrip("/") for folder in OF_THE_REPOSITORY})


def test_the_usage_names_each_part(tmp_path: Path) -> None:
    assert re.findall(r"\w+", ci_run(tmp_path, "?").stderr)[3:] == [*PARTS, "nightly"]


def test_the_nightly_suites_are_targets_of_make(tmp_path: Path) -> None:
    done = ci_run(tmp_path, "nightly")
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert "--keep-going" in words
    targets = {word for word in words if "=" not in word and not word.startswith("-")}
    assert targets <= TARGETS
    tests = {one for one in TARGETS if one.startswith("test-")}
    assert targets == tests | {"tools", "coverage", "simulate"}, "a suite that no pipeline runs"


def test_an_unknown_part_is_refused(tmp_path: Path) -> None:
    done = ci_run(tmp_path, "nightli")
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage" in done.stderr


def test_the_hooks_of_pre_commit_run_installed_tools() -> None:
    [repository] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        assert {"id", "name", "entry", "language"} <= set(hook)
        tool = Path(hook["entry"].split()[0])
        assert tool.parent == Path(".venv/bin")
        assert (Path(sys.executable).parent / tool.name).is_file(), hook
