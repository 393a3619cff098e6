"""The peer of each test: the fake broker, or a real nats-server by TCP, by WebSocket, or by WebSocket with TLS.

By WebSocket every test runs at night, and those of `BY_WEBSOCKET` on every run.

Tests that let time pass take `clock`: with the fake they run on an autojump clock, with the real server on the real
one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from tests.contract.peers import Peer, open_peer
from tests.support.clock import waits_for_threads
from tests.support.server_version import why_not

BY_WEBSOCKET = {"test_connecting": "wss", "test_core": "ws", "test_publishing": "ws", "test_lookups": "wss"}
"""The modules whose tests have a peer by WebSocket on every run, and its kind."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each test of the contract its peers."""
    if "kind" in metafunc.fixturenames:
        module = metafunc.module.__name__.rpartition(".")[2]
        kinds = ["fake", pytest.param("real", marks=pytest.mark.slow)]
        for kind in ("ws", "wss"):
            marks = [pytest.mark.slow] if BY_WEBSOCKET.get(module) == kind else [pytest.mark.nightly]
            kinds.append(pytest.param(kind, marks=marks))
        metafunc.parametrize("kind", kinds, indirect=True)


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    mark = request.node.get_closest_marker("real_needs_server")
    if request.param != "fake" and mark is not None and (reason := why_not(*mark.args, **mark.kwargs)):
        pytest.skip(reason)
    return str(request.param)


@pytest.fixture
def clock(kind: str, monkeypatch: pytest.MonkeyPatch) -> trio.abc.Clock | None:
    return waits_for_threads(MockClock(), monkeypatch) if kind == "fake" else None


@pytest.fixture
async def peer(kind: str, tmp_path: Path) -> AsyncIterator[Peer]:
    async with open_peer(kind, tmp_path) as opened:
        yield opened
