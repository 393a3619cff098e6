"""The image of the router: pinned, without root, and with the locked versions. No engine is needed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests.deploy.test_compose import DEPLOY, EXACT, SERVICES
from tests.supply.locks import ROOT, lock, project

DOCKERFILE = DEPLOY / "Dockerfile"


def test_the_image_is_pinned_and_its_user_is_numeric() -> None:
    text = DOCKERFILE.read_text()
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert {base.replace("-slim", "") for base in bases[:-1]} == {bases[-1].replace("-slim", "")}, (
        "what is built on one Python does not run on another"
    )
    assert "-slim" in bases[-1]
    assert all(EXACT.fullmatch(base) for base in bases), bases
    [user] = re.findall(r"^USER (.*)$", text, re.MULTILINE)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert text.rindex("\nUSER") < text.rindex("\nENTRYPOINT")
    assert SERVICES["router"]["image"] == f"router-trio:{project()['project']['version']}"


def test_the_image_contains_the_locked_versions() -> None:
    text = DOCKERFILE.read_text().replace("\\\n", "")
    assert not re.search(r"^ADD|curl|wget|apt-get", text, re.MULTILINE)
    fetched = set()
    for line in re.findall(r"^RUN .*\bpip (?:install|wheel|--python) .*$", text, re.MULTILINE):
        words = set(line.split())
        assert "--no-deps" in words, line
        if "--require-hashes" in words:
            fetched.add(line.split()[-1])
        else:
            assert "--no-index" in words or words >= {"--no-build-isolation", "."}, f"fetches without a hash: {line}"
        assert "wheel" not in words or "--no-build-isolation" in words, line
    assert fetched == {"requirements/build.txt", "requirements/compile.txt", "requirements/runtime.txt"}


@pytest.mark.nightly
def test_the_image_can_be_built_by_its_own_steps(tmp_path: Path) -> None:
    """The steps of the Dockerfile run in a directory and without an engine; downloads are real."""
    source = tmp_path / "source"
    shutil.copytree(ROOT / "router_trio", source / "router_trio", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "requirements", source / "requirements")
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    first = DOCKERFILE.read_text().replace("\\\n", "").split("\nFROM ")[1]
    arguments = dict(re.findall(r"^ARG (\w+)=(.*)$", first, re.MULTILINE))
    for step in re.findall(r"^RUN (.*)$", first, re.MULTILINE):
        here = step.replace("/opt/", f"{tmp_path}/").replace("/wheels", f"{tmp_path}/wheels")
        here = re.sub("^python ", f"{sys.executable} ", here)
        subprocess.run(here, shell=True, cwd=source, env=os.environ | arguments, check=True)
    built = tmp_path / "router-trio" / "bin"
    said = subprocess.run([built / "router-trio", "--version"], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["router-trio", project()["project"]["version"], "(compiled)"]
    pip: list[str | Path] = [tmp_path / "build/bin/pip", "--python", built / "python", "freeze"]
    listed = subprocess.run(pip, capture_output=True, text=True, check=True).stdout.split()
    installed = {tuple(line.split("==")) for line in listed if "==" in line}
    locked = {(pin.name, pin.version) for pin in lock("runtime")}
    assert {(canonicalize_name(name), version) for name, version in installed} <= locked
