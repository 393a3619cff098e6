"""The lead of a route with standby: of all processes with its durable, one routes.

A process that waits for the lead counts as running: its consumer is there, and takes over when the other is silent.
Whoever takes the lead is like a process that was just started: what was delivered before and has no ack comes first.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf

import trio

from router_trio.events import Emit, RouteStandby
from router_trio.link import ConsumerSpec, Learn, Link, PullConsumer
from router_trio.routing.resubscribe import SourceRetry
from router_trio.states import RUNNING, RouteState

WHILE_DRAINING_EVERY = 1.0
"""Seconds between two signs that keep the lead while what is in hand is still routed, behind the end of the intake."""


class Lead:
    """Of one route. Without standby, nothing of it is called but what does nothing then."""

    def __init__(self, retry: SourceRetry, state: RouteState, emit: Emit) -> None:
        self._retry = retry
        self._state = state
        self._emit = emit
        self._pin: str | None = None
        self._waiting = trio.CancelScope()
        self._consumer: PullConsumer | None = None

    async def taken(self, link: Link, spec: ConsumerSpec, tried: trio.Event, learn: Learn) -> ConsumerSpec:
        """Wait for the lead, and return the spec with its pin; without one if the wait was stopped.

        `learn` is told meanwhile how far the durable is. Raises `SourceError` and `LinkError`.
        """
        self._waiting = trio.CancelScope()
        self._state.standby = True
        self._state.enter(RUNNING)
        self._retry.tried(tried)  # nothing waits for the end of this
        self._emit(
            RouteStandby(at=trio.current_time(), route=self._state.name, stream=spec.stream, durable=spec.durable)
        )
        pin = None
        try:
            with self._waiting:
                pin = await link.take_the_lead(replace(spec, pin=self._pin), learn)
        finally:
            self._state.standby = False
        self._pin = pin
        return replace(spec, pin=pin)

    def stop_waiting(self) -> None:
        """No lead is wanted any more."""
        self._waiting.cancel()

    def holds(self, consumer: PullConsumer) -> None:
        """The consumer is open, and the lead is held by it."""
        if self._pin is not None:
            self._consumer = consumer
            consumer.hold_lead()

    @property
    def held_for(self) -> float:
        """Keep the lead, and return for how many seconds nothing more has to be done for that."""
        if self._consumer is None:
            return inf
        self._consumer.hold_lead()
        return WHILE_DRAINING_EVERY

    def give_up(self) -> None:
        """All is settled: another process need not wait until this one counts as gone."""
        if self._consumer is not None:
            self._consumer.release_lead()
            self._consumer = None
