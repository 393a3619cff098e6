"""Compare the limits of a server's consumer with the configuration of its route."""

from __future__ import annotations

from router_trio.errors import SourceError, reasons
from router_trio.link import ConsumerSpec, PullConsumer
from router_trio.routing.policy.failed_messages import MOST_REMEMBERED
from router_trio.routing.policy.retry import RetryPolicy
from router_trio.settings import SourceSettings

STOPPED_FOR = 86_400.0
"""Seconds for which a router may be stopped without its durables expiring, at least."""

UNLIMITED = -1
"""No limit of deliveries: the server counts deliveries and not failures, so it must not give up messages."""


def consumer_spec(source: SourceSettings) -> ConsumerSpec:
    """Return the consumer for a route whose source has a durable one."""
    consumer = source.kind.consumer(source)
    assert consumer is not None
    return ConsumerSpec(
        *consumer,
        source.kind.consumer_filters(source),
        source.ack_wait,
        UNLIMITED,
        # Room for messages delivered on a dead link that are not yet acked on the next one, and for failed messages
        # that wait for their next attempt: these must not keep out new messages.
        2 * source.max_in_flight + MOST_REMEMBERED,
        standby=source.standby,
        deliver=source.deliver,
        least_ack_pending=source.max_in_flight,
    )


def check_expiry(spec: ConsumerSpec, consumer: PullConsumer) -> None:
    """Raise `SourceError` (`consumer_expires`) if the durable is deleted when the router is stopped for a day."""
    expires_after = consumer.limits.expires_after
    if 0 < expires_after < STOPPED_FOR:
        raise SourceError(
            f"the server deletes the durable {spec.durable!r} of stream {spec.stream!r} when it is unused for "
            f"{expires_after:g} s (inactive_threshold), and a new one would start where `deliver` says; remove "
            "inactive_threshold from consumer_limits of the stream, or set it to a day or more",
            reason=reasons.CONSUMER_EXPIRES,
        )


def check_retention(policy: RetryPolicy, spec: ConsumerSpec, consumer: PullConsumer) -> None:
    """Raise `SourceError` (`would_delete`) if giving a message up would delete it from the stream.

    For routes without dead letters. Messages that a handler rejects are deleted as the handler wants.
    """
    retention = consumer.limits.retention
    if policy.gives_up and retention != "limits":
        raise SourceError(
            f"messages that are given up would be deleted, since the stream {spec.stream!r} has {retention} retention "
            "and this route has no dead letters; add [routes.dead_letter], or remove `attempts` and `not` from "
            "[routes.retry], and `schema`",
            reason=reasons.WOULD_DELETE,
        )


def differences(spec: ConsumerSpec, consumer: PullConsumer, capacity: int) -> list[str]:
    """Return how the consumer differs from `spec`. `capacity`: unacked messages that the route may have."""
    limits = consumer.limits
    found = []
    if limits.deliver and limits.deliver != spec.deliver:
        found.append(f"deliver is {limits.deliver} there and {spec.deliver} here")
    found += [
        f"{name} is {has:g} there and {wanted:g} here"
        for name, has, wanted, differs in (
            ("max_deliver", limits.max_deliver, spec.max_deliver, limits.max_deliver > 0),
            ("ack_wait in seconds", consumer.ack_wait, spec.ack_wait, consumer.ack_wait != spec.ack_wait),
            ("inactive_threshold in seconds", limits.expires_after, 0.0, limits.expires_after > 0),
            ("max_ack_pending", limits.max_ack_pending, capacity, 0 < limits.max_ack_pending < capacity),
        )
        if differs
    ]
    if 1 < limits.max_ack_pending < capacity:
        found.append(f"max_in_flight = {limits.max_ack_pending // 2} in [routes.from] would suit that")
    return found
