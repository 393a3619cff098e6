"""Links of the fake broker for its tests."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from router_trio.errors import LinkError
from router_trio.link import ConsumerSpec
from router_trio.testing import FakeBroker
from tests.support.recorder import INBOX, Recorder

SERVER = "nats://user:secret@one:4222"
SPEC = ConsumerSpec("ORDERS", "router", (), ack_wait=30.0, max_deliver=-1, max_ack_pending=1000)


async def use_until_death(broker: FakeBroker) -> LinkError:
    """Open a link and wait until it dies; return the error that it raised."""

    async def live() -> None:
        async with broker.connect(SERVER, INBOX, Recorder()):
            await trio.sleep_forever()

    with pytest.raises(LinkError) as caught:
        await live()
    return caught.value
