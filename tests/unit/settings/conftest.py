"""A router.toml, written and loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from router_trio.settings import Settings
from tests.unit.settings.problems import Load


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Write a router.toml and load it, away from this process's environment."""

    def load_text(text: str) -> Settings:
        path = tmp_path / "router.toml"
        path.write_text(text)
        return Settings.load(path, environ={})

    return load_text
