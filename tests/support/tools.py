"""Programs of third parties that tests run, as `make tools` builds them from the Go modules in `tests/tools`."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / ".go-tools"


def tool(name: str) -> Path:
    """Return the path of a program. Skips the test if it was not built."""
    program = FOLDER / name
    if not program.exists():
        pytest.skip(f"no {name}: `make tools` builds it, where there is Go")
    return program
