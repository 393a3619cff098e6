"""Whether the package under test is compiled, and which tests need its sources.

`make suite` runs the tests on the wheel that users install, `make sources` those that need the sources.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import router_trio
from router_trio.protocol import framing

PACKAGE = Path(router_trio.__file__).parent
"""The package that is tested. Wheels have the sources of what is compiled as well."""

COMPILED = not str(framing.__file__).endswith(".py")

looks_inside = pytest.mark.sources
"""The mark of a test that looks into, or replaces, what is compiled in a wheel."""

OF_THE_REPOSITORY = tuple(f"tests/{name}/" for name in ("alerts", "dashboards", "deploy", "docs", "supply"))
"""Folders whose tests read the files of the repository."""


def needs_sources(item: pytest.Item) -> bool:
    """Return True if a test can't run on a compiled wheel, or would find nothing else there."""
    return item.nodeid.startswith(OF_THE_REPOSITORY) or item.get_closest_marker(looks_inside.name) is not None
