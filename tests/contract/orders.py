"""The stream and the consumer that the tests of the contract open, and readers of its deliveries."""

from __future__ import annotations

from router_trio.link import ConsumerSpec
from router_trio.protocol.framing import RawMessage, header_block
from router_trio.protocol.headers import find_number, status
from tests.contract.peers import Peer

SPEC = ConsumerSpec("ORDERS", "router", (), ack_wait=1.0, max_deliver=-1, max_ack_pending=1000)


async def publish_orders(peer: Peer, count: int) -> None:
    """Create the stream ORDERS, and publish messages to orders.0, orders.1 and so on."""
    await peer.add_stream("ORDERS", ["orders.>"])
    for n in range(count):
        await peer.publish(f"orders.{n}")


def sequences(raws: list[RawMessage]) -> list[int]:
    """Return the stream sequence of each message, from its ack subject."""
    return [int(raw[1].split(b".")[5]) for raw in raws]


def delivered(raw: RawMessage) -> int:
    """Return how often the message was delivered."""
    return int(raw[1].split(b".")[4])


def ending(raw: RawMessage) -> tuple[int, str, int | None, int | None]:
    """Return code and description of a status, and what the request did not bring: messages and bytes."""
    block = header_block(raw)
    left = (find_number(block, name) for name in (b"Nats-Pending-Messages", b"Nats-Pending-Bytes"))
    return (*status(block), *left)  # type: ignore[return-value]
