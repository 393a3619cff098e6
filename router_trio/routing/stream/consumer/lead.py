"""The lead of a route with standby: of all processes with its durable, one routes.

A process that waits for the lead counts as running: its consumer exists, and it takes over when the leader is silent. A
process that takes the lead behaves like one that was just started: unacked deliveries are redelivered first.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf

import trio

from router_trio.connection.latch import Latch
from router_trio.events import Emit, RouteStandby
from router_trio.link import ConsumerSpec, Learn, Link, PullConsumer
from router_trio.routing.resubscribe import SourceRetry
from router_trio.routing.source_status import SourceStatus
from router_trio.states import RUNNING

WHILE_DRAINING_EVERY = 1.0
"""Seconds between two signs that keep the lead while messages in hand are still routed, after the intake ended."""


class Lead:
    """The lead of one route. Without standby, its methods do nothing."""

    def __init__(self, retry: SourceRetry, status: SourceStatus, emit: Emit) -> None:
        self._retry = retry
        self._status = status
        self._emit = emit
        self._pin: str | None = None
        self._waiting = trio.CancelScope()
        self._consumer: PullConsumer | None = None

    def go_on(self, before: Lead) -> None:
        """Continue the lead of the source before this one, if that has not given it up."""
        if before._consumer is not None:
            self._pin = before._pin

    async def taken(self, link: Link, spec: ConsumerSpec, tried: Latch, learn: Learn) -> ConsumerSpec:
        """Wait for the lead, and return the spec with its pin; without a pin if the wait was stopped.

        `learn` is called meanwhile with the position of the durable. Raises `SourceError` and `LinkError`.
        """
        self._waiting = trio.CancelScope()
        self._status.standby = True
        self._status.enter(RUNNING)
        self._retry.tried(tried)  # nothing waits until the lead is taken
        self._report_waiting(spec)
        pin = None
        try:
            with self._waiting:
                pin = await link.take_the_lead(replace(spec, pin=self._pin), learn)
        finally:
            self._status.standby = False
        self._pin = pin
        return replace(spec, pin=pin)

    def _report_waiting(self, spec: ConsumerSpec) -> None:
        at, route = trio.current_time(), self._status.name
        self._emit(RouteStandby(at=at, route=route, stream=spec.stream, durable=spec.durable))

    def stop_waiting(self) -> None:
        """Stop waiting for the lead."""
        self._waiting.cancel()

    def holds(self, consumer: PullConsumer) -> None:
        """Hold the lead with this open consumer."""
        if self._pin is not None:
            self._consumer = consumer
            consumer.hold_lead()

    @property
    def held_for(self) -> float:
        """Keep the lead. Return the seconds until this has to be called again."""
        if self._consumer is None:
            return inf
        self._consumer.hold_lead()
        return WHILE_DRAINING_EVERY

    def give_up(self) -> None:
        """Release the lead, since all is settled, so that another process can take it at once."""
        if self._consumer is not None:
            self._consumer.release_lead()
            self._consumer = None
