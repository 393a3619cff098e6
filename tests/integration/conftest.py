"""Fixtures of several files: certificates, and a router as its pages show it."""

from __future__ import annotations

import pytest

from router_trio.states import CONNECTED, RUNNING
from tests.support.certificates import Certificates, create_certificates
from tests.support.telemetry_views import View, make_view


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return create_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def view() -> View:
    view = make_view(["main", "edge"], ["eu"])
    for connection in view.connections.values():
        connection.state.enter(CONNECTED, server="nats://127.0.0.1:4222")
        # Far ahead on any clock: fresh for the duration of a test.
        connection.state.fenced_at, connection.state.fence_bound = 1e12, 1000.0
    view.routes[0].enter(RUNNING)
    return view
