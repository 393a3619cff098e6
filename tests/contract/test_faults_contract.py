"""A link with fault injection around it, and no fault in force, keeps every promise of `router_trio.link`."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from router_trio.faults import Faults
from router_trio.link import Connect
from tests.contract import test_link_contract as contract
from tests.contract.worlds import FakeWorld


class FaultyWorld(FakeWorld):
    """The fake broker's world behind fault injection."""

    @property
    def connect(self) -> Connect:
        return Faults().around(super().connect)


@pytest.fixture
def clock() -> trio.abc.Clock:
    return trio.testing.MockClock(autojump_threshold=0)


@pytest.fixture
def kind() -> str:
    return "fake"


@pytest.fixture
def world() -> FaultyWorld:
    return FaultyWorld()


globals().update({name: one for name, one in vars(contract).items() if name.startswith("test_")})
