"""Whether the data plane under test is compiled, and which tests are of what may differ then.

`make test-compiled` runs tests on the compiled package as `pip install` installs it, `make test` those that are marked.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

import router_trio
from router_trio.protocol import framing

PACKAGE = Path(router_trio.__file__).parent
"""The package that is tested. Wheels have the sources of what is compiled as well."""

COMPILED = not str(framing.__file__).endswith(".py")

looks_inside = pytest.mark.skipif(COMPILED, reason="looks into, or replaces, what is compiled here")

_OF_DECISIONS = ("tests/unit/", "tests/contract/")
"""Folders whose tests call what is compiled: they slice, copy, compare, replace and inspect it."""

_OF_PROCESSES = re.compile(r"\bworkers\b|fork|pickle|multiprocessing")
"""Words in files with tests of what passes from one process to another."""


def differs_if_compiled(item: pytest.Item) -> bool:
    """Return True if a test is of what compiled code may do differently."""
    if item.nodeid.startswith(_OF_DECISIONS) and item.get_closest_marker("slow") is None:
        return True
    return _is_of_processes(item.path)


@cache
def _is_of_processes(path: Path) -> bool:
    return path.suffix == ".py" and _OF_PROCESSES.search(path.read_text(encoding="utf-8")) is not None
