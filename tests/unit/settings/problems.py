"""Configurations for the tests of settings, and the problems for which a configuration is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from router_trio.errors import ConfigurationError
from router_trio.settings import Settings

MAIN = {"main": {"servers": ["nats://127.0.0.1:4222"]}}

Load = Callable[[str], Settings]


def problems(make: Callable[[], object]) -> dict[str, str]:
    """Return the problems for which the configuration is refused, by key path."""
    with pytest.raises(ConfigurationError) as caught:
        make()
    found = {problem.path: problem.message for problem in caught.value.problems}
    assert len(found) == len(caught.value.problems), "more than one problem for a key"
    return found


def route(**changes: Any) -> dict[str, Any]:
    """Return a valid route with some of its keys changed; those of `from` are given as `from_key`."""
    source = {key.removeprefix("from_"): value for key, value in changes.items() if key.startswith("from_")}
    rest = {key: value for key, value in changes.items() if not key.startswith("from_")}
    return {"name": "r", "from": source or {"subject": "in.*"}, "to": [{"subject": "out"}], **rest}


def one_route(**changes: Any) -> Callable[[], Settings]:
    """Return a constructor of settings with that route."""
    return lambda: Settings(connections=MAIN, routes=[route(**changes)])
