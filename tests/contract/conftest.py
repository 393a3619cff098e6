"""The peer of each test: the fake broker or a real nats-server.

Tests that let time pass take `clock`: with the fake they run on an autojump clock, with the real server on the real
one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.contract.peers import Peer, open_peer
from tests.support.server_version import why_not


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.slow)])
def kind(request: pytest.FixtureRequest) -> str:
    mark = request.node.get_closest_marker("real_needs_server")
    if request.param == "real" and mark is not None and (reason := why_not(*mark.args, **mark.kwargs)):
        pytest.skip(reason)
    return str(request.param)


@pytest.fixture
def clock(kind: str) -> trio.abc.Clock | None:
    return trio.testing.MockClock(autojump_threshold=0) if kind == "fake" else None


@pytest.fixture
async def peer(kind: str, tmp_path: Path) -> AsyncIterator[Peer]:
    async with open_peer(kind, tmp_path) as opened:
        yield opened
