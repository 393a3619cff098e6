"""A wheel is compiled where it can be, and else pure; pip shows which one was made, and why."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any, cast

import pytest

import hatch_build
from tests.supply.locks import ROOT, project

NAME = f"router_trio-{project()['project']['version']}"
PURE = f"{NAME}-py3-none-any.whl"

HAS_HEADERS = Path(sysconfig.get_path("include"), "Python.h").exists()
needs_headers = pytest.mark.skipif(not HAS_HEADERS, reason="needs the headers of Python")
CC = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
HAS_COMPILER = subprocess.run(["sh", "-c", f"command -v {CC}"], capture_output=True, check=False).returncode == 0
needs_compiler = pytest.mark.skipif(
    not (HAS_HEADERS and HAS_COMPILER), reason="needs a C compiler and Python's headers"
)


def pip(*arguments: str | Path, python: str | Path = sys.executable, **environment: str) -> tuple[int, str]:
    """Run pip with these variables. Return its exit code and output."""
    variables = {name: value for name, value in os.environ.items() if name != "ROUTER_TRIO_PURE"} | environment
    command = [python, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.returncode, done.stdout


def wheel(folder: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """Build a wheel of the source tree into `folder`, with what is installed here."""
    return pip("wheel", "--no-deps", "--no-build-isolation", *arguments, "--wheel-dir", folder, ".", **environment)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"ROUTER_TRIO_PURE": "1"}, "ROUTER_TRIO_PURE=1"),
        ({"CC": "no-such-compiler -pthread"}, "there is no C compiler (no-such-compiler)"),
        pytest.param({"CC": "false"}, "mypyc or the C compiler failed", marks=[pytest.mark.nightly, needs_headers]),
    ],
    ids=["asked for", "without a compiler", "with a compiler that fails"],
)
def test_a_wheel_that_is_not_compiled_is_pure_and_the_reason_is_shown(
    environment: dict[str, str], reason: str, tmp_path: Path
) -> None:
    code, output = wheel(tmp_path, "--verbose", **environment)
    assert code == 0, output
    assert [path.name for path in tmp_path.iterdir()] == [PURE]
    assert f"filename={PURE}" in output, "without --verbose as well"
    assert f"router-trio is built as pure Python: {reason}" in output


@pytest.mark.slow
def test_a_compiled_wheel_that_was_asked_for_and_is_impossible_is_an_error(tmp_path: Path) -> None:
    code, output = wheel(tmp_path, ROUTER_TRIO_PURE="0", CC="no-such-compiler")
    assert code == 1
    assert "ROUTER_TRIO_PURE=0 asks for a compiled wheel: there is no C compiler (no-such-compiler)" in output
    assert not [*tmp_path.iterdir()]


def make(target: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a target with this interpreter, without installing anything, and as if no other make had started this.

    It prints what it would have another make do.
    """
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--old-file=.venv/.installed", f"BIN={Path(sys.executable).parent}", "MAKE=echo make", target]
    return subprocess.run(command, cwd=ROOT, env=outside | environment, capture_output=True, text=True, check=False)


def test_without_a_compiler_make_test_takes_the_pure_wheel_and_prints_why() -> None:
    done = make("installed", CC="no-such-compiler")
    first, then = done.stdout.splitlines()
    assert first == "What users install here is pure: there is no C compiler (no-such-compiler)", done.stderr
    assert then == "make --no-print-directory pure"


@needs_compiler
@pytest.mark.parametrize(("missing", "version"), [("mypyc", "standard"), ("setuptools", "standard"), ("", "editable")])
def test_nothing_is_compiled_without_mypy_or_in_a_clone_that_is_installed_to_be_edited(
    missing: str, version: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ROUTER_TRIO_PURE", raising=False)
    monkeypatch.setattr(hatch_build, "find_spec", lambda name: None if name == missing else object())
    hook, data = hatch_build.CompileHook(str(ROOT), {}, None, cast(Any, None), "", "wheel"), dict[str, Any]()
    hook.initialize(version, data)
    assert data == {}
    shown = capsys.readouterr().err
    assert ("mypy and setuptools are not installed" in shown) == bool(missing), shown


@pytest.mark.nightly
@needs_compiler
@pytest.mark.parametrize("compiler", [None, "no-such-compiler"], ids=["with a compiler", "without"])
def test_pip_installs_a_router_that_runs_from_the_sdist(compiler: str | None, tmp_path: Path) -> None:
    """In an empty environment, with build isolation: downloads are real."""
    build = [sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    venv.create(tmp_path / "venv", with_pip=True)
    environment = {} if compiler is None else {"CC": compiler}
    python = tmp_path / "venv/bin/python"
    code, output = pip("install", tmp_path / f"{NAME}.tar.gz", python=python, **environment)
    assert code == 0, output
    kind = "cp{}{}".format(*sys.version_info[:2]) if compiler is None else "py3-none-any"
    assert f"filename={NAME}-{kind}" in output
    version = subprocess.run([python.with_name("router-trio"), "--version"], capture_output=True, text=True, check=True)
    assert ("(compiled)" in version.stdout) == (compiler is None)
    check: list[str | Path] = [python.with_name("router-trio"), "check", ROOT / "docs/deploy/router.toml"]
    assert subprocess.run(check, cwd=tmp_path, check=False).returncode == 0
