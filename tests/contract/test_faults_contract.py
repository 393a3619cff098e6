"""A link wrapped in fault injection, with no fault in force, keeps every promise of `router_trio.link`."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from router_trio.faults import Faults
from router_trio.link import Connect
from tests.contract import (
    test_connecting,
    test_consumers,
    test_core,
    test_lookups,
    test_publishing,
    test_pulls,
    test_redeliveries,
)
from tests.contract.peers import FakePeer, link_of


class FaultyPeer(FakePeer):
    """The fake broker behind fault injection."""

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
def peer() -> FaultyPeer:
    return FaultyPeer()


CONTRACT = (
    test_connecting,
    test_core,
    test_publishing,
    test_pulls,
    test_redeliveries,
    test_consumers,
    test_lookups,
)

for promises in CONTRACT:
    globals().update({name: one for name, one in vars(promises).items() if name.startswith("test_")})

# Faults may block, so nothing is sent in the caller's own turn.
del globals()["test_a_publish_sent_at_once_is_stored_after_earlier_ones_and_acked"]


async def test_a_link_with_fault_injection_never_sends_at_once(
    peer: FaultyPeer, autojump_clock: trio.testing.MockClock
) -> None:
    async with link_of(peer) as link:
        assert not link.can_send_at_once
