"""Both ways to publish, under one name, and a broker whose stream accepts either."""

from __future__ import annotations

from typing import Any

import pytest

from router_trio import Live, Receipt
from router_trio.testing import FakeBroker
from tests.support.world import World

WITH_ACK = pytest.mark.parametrize("with_ack", [False, True], ids=["publish", "publish_with_ack"])


def broker_with_stream(**options: Any) -> dict[str, FakeBroker]:
    broker = FakeBroker(**options)
    broker.add_stream("S", ["s.>"])
    return {"main": broker}


async def publish(
    live: Live, payload: bytes = b"x", *, with_ack: bool, subject: str = "s.x", **options: Any
) -> Receipt:
    if with_ack:
        return await live.publish_with_ack(subject, payload, **options)
    return await live.publish(subject, payload, **options)


def operation(with_ack: bool) -> str:
    return "publish_with_ack" if with_ack else "publish"


def confirmed(with_ack: bool) -> str:
    return "acked" if with_ack else "fenced"


def event(name: str, with_ack: bool) -> str:
    return f"NATS_PUBLISH_{'WITH_ACK_' if with_ack else ''}{name}"


def payloads(w: World) -> list[bytes]:
    return [message.payload for message in w.broker.published]


async def fates(receipts: list[Receipt]) -> list[str]:
    return [(await receipt.settled()).name for receipt in receipts]
