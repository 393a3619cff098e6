"""Send the messages of one read from a core subscription to the destinations that their content chooses.

Messages for one core destination alone are collected until the batch ends, and offered together. All others are sent
one by one, after the messages collected for their destinations, so each destination gets messages in source order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from router_trio.errors import EvaluationError, MappingError, PublishError
from router_trio.errors.reasons import UNMATCHED, WHEN
from router_trio.expressions.message import Arrived, Facts
from router_trio.outbox.operation import FrameOwners
from router_trio.protocol.framing import RawMessage
from router_trio.routing.content.routing import ContentRouting
from router_trio.routing.delivery import BatchDelivery, Delivery
from router_trio.routing.outlets.outlet import Outlet

_Way = tuple[Callable[[RawMessage], None] | None, Callable[[RawMessage, Facts], bytes] | None, Callable[[bytes], None]]
"""Functions that collect a message unchanged, or make its frame and collect that; without either it is sent alone."""
_NOTHING = cast(Facts, None)
"""The facts of a message that no expression reads."""


class ContentBatch:
    """A batch of a route that decides by content, or changes its messages. `offer_kept` is called at the end.

    Fast path of `ContentRouting.forward`; held equal by
    tests/unit/routing/test_content.py::test_a_batch_is_sent_where_its_messages_would_be_sent_one_by_one, worth 660
    instructions a message (tests/performance/test_fast_paths.py::test_messages_that_go_by_their_content_together).
    """

    def __init__(self, routing: ContentRouting, received_at: float) -> None:
        self._routing = routing
        self._received_at = received_at
        self._ways = _Ways(routing.outlets)

    def forward_batch(self, batch: Sequence[RawMessage]) -> None:
        """Send messages that are not sampled."""
        ways, state = self._ways, self._routing.state
        reader, when, choose, chosen = self._routing.content.parts
        filtered = unmatched = 0
        facts: Facts = _NOTHING
        asked: Any
        for raw in batch:
            if reader is None:
                asked = raw
            else:
                asked = facts = Arrived(raw, reader)
            try:
                if when is not None and not when(asked):
                    filtered += 1
                    continue
                if choose is not None:
                    chosen = choose(asked)
            except EvaluationError as error:
                delivery = self._delivery(raw)
                self._routing.expression_failed(error, delivery)
                delivery.done()
                continue
            if len(chosen) == 1:
                keep, frame_of, keep_frame = ways[chosen[0]]
                if keep is not None:
                    keep(raw)
                    continue
                if frame_of is not None:
                    try:
                        keep_frame(frame_of(raw, facts))
                        continue
                    except (EvaluationError, MappingError, PublishError):
                        pass  # sent alone below, where the failure is counted
            elif not chosen:
                unmatched += 1
                continue
            self._send(raw, facts, chosen)
        if filtered:
            state.filter_out(WHEN, filtered)
            state.elapsed.record(0.0, filtered)
            if self._routing.flow is not None:
                self._routing.flow.filtered(filtered)
        if unmatched:
            state.filter_out(UNMATCHED, unmatched)
            state.elapsed.record(0.0, unmatched)

    def forward_traced(self, raw: RawMessage) -> None:
        """Send one sampled message."""
        self.offer_kept()
        delivery = self._delivery(raw)
        self._routing.begin_trace(delivery)
        self._routing.forward(delivery)

    def _delivery(self, raw: RawMessage) -> Delivery:
        return Delivery(self._routing.state, raw, self._received_at)

    def _send(self, raw: RawMessage, facts: Facts, chosen: Sequence[int]) -> None:
        for place in chosen:
            self._offer(place)
        delivery = self._delivery(raw)
        self._routing.forward_chosen(delivery, facts, chosen)
        delivery.done()

    def offer_kept(self) -> None:
        """Offer the collected messages to their destinations."""
        for place in self._ways:
            self._offer(place)

    def _offer(self, place: int) -> None:
        routing, raws, frames = self._routing, self._ways.raws.get(place), self._ways.frames.get(place)
        if not raws and not frames:
            return
        outlet = routing.outlets[place]
        delivery = BatchDelivery(routing.state, self._received_at, len(raws or frames or ()))
        owner = delivery.owner_for(outlet.template)
        if raws:
            for number, reason, detail in outlet.forward_core(raws, owner):
                owner.refuse(number, reason)
                routing.emit_failure(reason, detail, subject=raws[number][0])
            raws.clear()
        elif frames:
            outlet.count(frames)
            outlet.outbox.offer_frames(frames[:], FrameOwners([owner], [len(frames)]))
            frames.clear()


class _Ways(dict[int, _Way]):
    """Collects messages for one destination alone, by the place of the destination."""

    def __init__(self, outlets: Sequence[Outlet]) -> None:
        self.raws: dict[int, list[RawMessage]] = {}
        self.frames: dict[int, list[bytes]] = {}
        self._outlets = outlets

    def __missing__(self, place: int) -> _Way:
        """Start to collect messages for a destination."""
        outlet = self._outlets[place]
        way: _Way = (None, None, _never)
        if not outlet.waits_for_puback:
            if outlet.changes:
                frames = self.frames[place] = []
                way = (None, outlet.frame_by_content, frames.append)
            else:
                raws = self.raws[place] = []
                way = (raws.append, None, _never)
        self[place] = way
        return way


def _never(frame: bytes) -> None:
    """Collect nothing: never called."""
