"""Every configuration and every variable of the documentation is one that the router accepts."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from router_trio.settings import Settings
from tests.docs.pages import Block, blocks, pages

TOML = blocks("toml")
FOLDER = "/etc/router-trio/"
"""Where the pages place the files."""

SAMPLE = '[connections.main]\nservers = ["nats://127.0.0.1:4222"]\n'
VARIABLE = re.compile(r"\b(ROUTER_TRIO_[A-Z0-9_]+)=('[^'\n]*'|[^\s`]+)")


def files_of(text: str, directory: Path) -> None:
    """Create the files that a configuration names."""
    for section in tomllib.loads(text).get("connections", {}).values():
        for key, value in section.items():
            if key.endswith("_file"):
                (directory / value).touch()
    for route in tomllib.loads(text).get("routes", []):
        if "schema" in route:
            (directory / route["schema"]).write_text("{}")


def load(text: str, directory: Path, environ: dict[str, str] | None = None) -> Settings:
    """Load a configuration whose files all exist. Raises `ConfigurationError`."""
    text = text.replace(FOLDER, f"{directory}/")
    files_of(text, directory)
    path = directory / "router.toml"
    path.write_text(text)
    return Settings.load(path, environ=environ or {})


@pytest.mark.parametrize("block", TOML, ids=str)
def test_a_configuration_is_accepted(block: Block, tmp_path: Path) -> None:
    load(block.router_toml, tmp_path)


def test_configurations_are_found() -> None:
    assert len(TOML) >= 10


def variables() -> list[tuple[str, str, str]]:
    """Return every variable that a page sets: the page, its name and its value."""
    return [(str(one), name, value.strip("'")) for one in pages() for name, value in VARIABLE.findall(one.text)]


@pytest.mark.parametrize(("where", "name", "value"), variables())
def test_each_variable_on_a_page_sets_a_key(where: str, name: str, value: str, tmp_path: Path) -> None:
    connections = [SAMPLE, *(f"[connections.{other}]\nservers = ['nats://127.0.0.1'] \n" for other in ("token",))]
    connections.append("[connections.password]\nservers = ['nats://127.0.0.1']\nuser = 'router'\npassword = 'x'\n")
    connections.append('[[routes]]\nname = "a"\nfrom = { connection = "main", subject = "a" }\n')
    connections.append('to = [ { connection = "main", subject = "b" } ]\n')
    if value.startswith("%d/"):  # systemd's directory of credentials
        value = str(tmp_path / value.removeprefix("%d/"))
        Path(value).touch()
    load("\n".join(connections), tmp_path, {name: value})
