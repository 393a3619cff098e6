"""The image, which has no pip, has every package that a configuration may need: those of requirements/runtime.txt."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import blocks
from tests.docs.test_configurations import FOLDER, files_of
from tests.supply.locks import ROOT
from tests.supply.test_locks import current, installed

EXAMPLES = sorted([*(ROOT / "examples").glob("*.toml"), *(ROOT / "docs").rglob("*.toml")])
DOCKERFILE = ROOT / "docs" / "deploy" / "Dockerfile"
LOAD = """
import json, sys
sys.path[:0] = sys.argv[1:3]
from router_trio.errors import ConfigurationError
from router_trio.settings import Settings

refused = {}
for path in json.load(sys.stdin):
    try:
        Settings.load(path, environ={})
    except ConfigurationError as error:
        refused[path] = str(error)
print(json.dumps(refused))
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the files of the packages in requirements/runtime.txt, and of no others."""
    folder = tmp_path_factory.mktemp("packages")
    for name in installed("runtime", current()):
        for file in distribution(name).files or ():
            if ".." not in file.parts and "__pycache__" not in file.parts:
                link = folder.joinpath(*file.parts)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(Path(str(file.locate())))
    return folder


def isolated(packages: Path, program: str, given: object) -> Any:
    """Run a program with these packages and this source tree, and return what it prints."""
    ended = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, str(packages), str(ROOT)],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_the_image_installs_that_lock_and_nothing_else() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8").replace("\\\n", " ")
    wheels = re.findall(r"pip wheel .*?--requirement (\S+)", text)
    assert wheels == ["requirements/runtime.txt"]
    assert "pip --python /opt/router-trio/bin/python install --no-cache-dir --no-index --no-deps /wheels/*.whl" in text


def test_each_example_and_each_configuration_of_a_page_is_accepted_with_those_packages(
    packages: Path, tmp_path: Path
) -> None:
    paths = []
    for number, block in enumerate(blocks("toml")):
        folder = tmp_path / str(number)
        folder.mkdir()
        text = block.router_toml.replace(FOLDER, f"{folder}/")
        files_of(text, folder)
        (folder / "router.toml").write_text(text)
        paths.append(folder / "router.toml")
    assert len(paths) >= 10
    assert len(EXAMPLES) >= 8
    assert isolated(packages, LOAD, [str(path) for path in (*paths, *EXAMPLES)]) == {}


def test_a_configuration_that_needs_every_package_is_accepted_with_those_packages(
    packages: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.schema.json").write_text(
        '{"$schema": "https://json-schema.org/draft/2020-12/schema", "properties": {"a": {"pattern": "^b+$"}}}'
    )
    (tmp_path / "router.toml").write_text("""
[connections.main]
servers = ["nats://127.0.0.1:4222"]
[[routes]]
name = "all"
from = { subject = "in.*" }
schema = "a.schema.json"
when = 'subject.matches("^in[.]a+$")'
to = [ { subject = "out" } ]
""")
    assert isolated(packages, LOAD, [str(tmp_path / "router.toml")]) == {}


def test_no_other_package_is_seen(packages: Path) -> None:
    seen = isolated(
        packages,
        "import json, sys\nsys.path[:0] = sys.argv[1:3]\nfrom importlib.util import find_spec\n"
        "print(json.dumps([name for name in ('pytest', 'pip', 'trio', 're2') if find_spec(name)]))",
        None,
    )
    assert seen == ["trio", "re2"]
