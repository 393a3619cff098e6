"""A fixture that writes a router.toml and loads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from router_trio.settings import Settings
from tests.unit.settings.problems import Load


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Return a function that writes a router.toml and loads it without this process's environment."""

    def load_text(text: str) -> Settings:
        path = tmp_path / "router.toml"
        path.write_text(text)
        return Settings.load(path, environ={})

    return load_text
