"""The compiled data plane: `make test` is to be without it, `make test-compiled` with all of it."""

from __future__ import annotations

import importlib
import os
import tomllib
from pathlib import Path

import pytest

from router_trio.protocol import framing
from tests.support.compiled import COMPILED

ROOT = Path(__file__).parents[2]
HOOKS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]


def test_what_is_tested_is_what_was_asked_for() -> None:
    """What a build left in the source tree, or a path in the wrong order, must not go unnoticed."""
    assert ("TEST_COMPILED" in os.environ) == COMPILED, framing.__file__


@pytest.mark.parametrize("pattern", HOOKS["mypyc"]["include"])
def test_all_that_is_to_be_compiled_is(pattern: str) -> None:
    found = [path.relative_to(ROOT) for path in ROOT.glob(pattern)]
    assert found
    for path in found:
        module = importlib.import_module(".".join(path.with_suffix("").parts))
        assert str(module.__file__).endswith(".so" if COMPILED else ".py")
