"""Send acks that the server refused before, once it accepts acks and the stream is seen to have their messages."""

from __future__ import annotations

from router_trio.errors import SourceError
from router_trio.link import PullConsumer
from router_trio.routing.stream.acks import Acks


async def send_owed(consumer: PullConsumer, acks: Acks) -> None:
    """Send refused acks whenever the server accepts acks again, until cancelled. Raises `LinkError` if the link dies.

    While acks were refused, the stream may have been rolled back: it may give their sequences to other messages, which
    the acks would ack. If the stream still has the last of their messages, it has not lost any of the earlier ones. If
    that message is gone or settled, or can't be looked up, none of the acks is sent: a message that is still unacked is
    redelivered after its ack wait, recognized and acked.
    """
    while True:
        sequence, time = await acks.wait_for_owed()
        incarnation = acks.incarnation
        try:
            confirmed = not await consumer.gone({sequence: time}, _none_in_hand)
        except SourceError:
            confirmed = False
        if incarnation == acks.incarnation:
            acks.resend_up_to(sequence, confirmed=confirmed)


def _none_in_hand() -> int:
    """Assume that no other message was delivered, so that an unacked one may be one of those with a refused ack."""
    return 0
