"""The files of `make dist`: wheels and an sdist, reproducible byte for byte, and an SBOM of the image's packages."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.supply.locks import ROOT, lock, project
from tests.supply.test_compiling import needs_compiler

NAME = f"router_trio-{project()['project']['version']}"


def dist(directory: Path, pure: str = "1") -> Path:
    """Run `make dist` into a directory, in this environment. `pure` is `ROUTER_TRIO_PURE`."""
    command = ["make", "dist", f"DIST={directory}"]
    # This environment has what the lock of packaging names, so there is no need for another one.
    ours = Path(sys.executable).parents[1]
    command += [f"--old-file={ours}/.installed", f"PACKAGING={ours}"]
    environment = dict(os.environ, SOURCE_DATE_EPOCH="1700000000", ROUTER_TRIO_PURE=pure)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=1000)
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dist(tmp_path_factory.mktemp("dist"))


def test_links_of_an_ignored_folder_take_no_place_in_the_sdist(tmp_path: Path) -> None:
    """As those that `make compiled` makes."""
    tree = tmp_path / "tree"
    for path in ("hatch_build.py", "pyproject.toml", "README.md", "LICENSE", ".gitignore", "requirements/dev.txt"):
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tree / path)
    shutil.copytree(ROOT / "router_trio", tree / "router_trio", ignore=shutil.ignore_patterns("__pycache__"))
    (tree / ".compiled").mkdir()
    for folder in ("requirements", "router_trio"):
        (tree / ".compiled" / folder).symlink_to(tree / folder)
    build = [sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", str(tmp_path), str(tree)]
    subprocess.run(build, check=True, capture_output=True)
    with tarfile.open(tmp_path / f"{NAME}.tar.gz") as sdist:
        files = set(sdist.getnames())
    assert {f"{NAME}/requirements/dev.txt", f"{NAME}/router_trio/__init__.py"} <= files
    assert not [name for name in files if "/.compiled" in name]


def test_there_is_a_wheel_an_sdist_and_an_sbom(made: Path) -> None:
    names = {path.name for path in made.iterdir()}
    assert names == {f"{NAME}-py3-none-any.whl", f"{NAME}.tar.gz", f"{NAME}.cdx.json"}
    with zipfile.ZipFile(made / f"{NAME}-py3-none-any.whl") as wheel:
        folders = {name.split("/")[0] for name in wheel.namelist()}
    assert folders == {"router_trio", f"{NAME}.dist-info"}
    with tarfile.open(made / f"{NAME}.tar.gz") as sdist:
        files = set(sdist.getnames())
    assert {f"{NAME}/{name}" for name in ("pyproject.toml", "Makefile", "requirements/dev.txt")} <= files
    assert not [name for name in files if "/.venv" in name or "__pycache__" in name]


def test_a_second_build_gives_the_same_bytes(made: Path, tmp_path: Path) -> None:
    again = dist(tmp_path)
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        path.name: path.read_bytes() for path in made.iterdir()
    }


@pytest.mark.nightly
@needs_compiler
def test_a_compiled_wheel_is_made_beside_the_pure_one_and_a_second_one_is_the_same(made: Path, tmp_path: Path) -> None:
    both = [dist(tmp_path / name, pure="0") for name in ("first", "second")]
    first, second = ({path.name: path.read_bytes() for path in one.iterdir()} for one in both)
    assert first == second
    [compiled] = first.keys() - {path.name for path in made.iterdir()}
    assert re.fullmatch(rf"{NAME}-(cp\d+)-\1-\w+\.whl", compiled)
    assert first[f"{NAME}-py3-none-any.whl"] == (made / f"{NAME}-py3-none-any.whl").read_bytes()


def test_the_sbom_lists_what_the_image_installs(made: Path) -> None:
    bom: dict[str, Any] = json.loads((made / f"{NAME}.cdx.json").read_text())
    assert bom["bomFormat"] == "CycloneDX"
    described = bom["metadata"]["component"]
    assert (described["name"], described["version"]) == ("router-trio", project()["project"]["version"])
    listed = {}
    for component in bom["components"]:
        hashes = [one["content"] for where in component["externalReferences"] for one in where.get("hashes", ())]
        listed[component["purl"]] = set(hashes)
    locked = {f"pkg:pypi/{pin.name}@{pin.version}": pin.hashes for pin in lock("runtime")}
    assert listed == {url: {one.removeprefix("sha256:") for one in hashes} for url, hashes in locked.items()}
