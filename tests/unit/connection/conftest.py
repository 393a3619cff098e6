"""The fake network of a connection, and delays without randomness."""

from __future__ import annotations

from typing import Any

import pytest

import router_trio.connection.attempts
from router_trio.connection.backoff import ReconnectPlan
from tests.unit.connection.network import Network


@pytest.fixture
def network() -> Network:
    return Network()


@pytest.fixture
def longest_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every delay as long as it may be."""

    def longest(*args: Any, **options: Any) -> ReconnectPlan:
        return ReconnectPlan(*args, **options | {"uniform": lambda _, bound: bound})

    monkeypatch.setattr(router_trio.connection.attempts, "ReconnectPlan", longest)
