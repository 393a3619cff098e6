"""Messages of one read from a core subscription, each on its way to the destinations that its content chooses.

What goes to one core destination alone is kept until the batch ends, and sent together with all others that go there.
Everything else takes the way of single messages, behind what was kept for its destinations: so each destination gets
what it gets in the order of the source.
"""

from __future__ import annotations

from collections.abc import Sequence

from router_trio.errors import EvaluationError, MappingError, PublishError
from router_trio.expressions.message import Facts
from router_trio.outbox.operation import FrameOwners
from router_trio.protocol.framing import RawMessage
from router_trio.routing.content.routing import ContentRouting
from router_trio.routing.delivery import BatchDelivery, Delivery
from router_trio.routing.policy.reasons import UNMATCHED, WHEN


class ContentBatch:
    """One batch of a route that decides by content, or changes what it sends. `offer_kept` is called at the end.

    Fast path of `ContentRouting.forward`; held equal by
    tests/unit/routing/test_content.py::test_a_batch_goes_where_its_messages_would_go_one_by_one, worth 300 instructions
    a message (tests/performance/test_fast_paths.py::test_messages_that_go_by_their_content_together).
    """

    def __init__(self, routing: ContentRouting, received_at: float) -> None:
        self._routing = routing
        self._received_at = received_at
        self._kept: dict[int, list[bytes]] = {}

    def forward(self, batch: Sequence[RawMessage]) -> None:
        """Send messages that nobody samples."""
        routing, content, kept = self._routing, self._routing.content, self._kept
        outlets, state = routing.outlets, routing.state
        filtered = unmatched = 0
        for raw in batch:
            facts = content.facts(raw)
            try:
                if not content.takes(facts):
                    filtered += 1
                    continue
                chosen = content.choose(facts)
            except EvaluationError as error:
                delivery = self._delivery(raw)
                routing.expression_failed(error, delivery)
                delivery.done()
                continue
            if len(chosen) == 1:
                place = chosen[0]
                if not outlets[place].destination.jetstream:
                    try:
                        frame = outlets[place].frame_by_content(raw, facts)
                    except (EvaluationError, MappingError, PublishError):
                        pass  # the way of single messages says so
                    else:
                        frames = kept.get(place)
                        if frames is None:
                            kept[place] = [frame]
                        else:
                            frames.append(frame)
                        continue
            elif not chosen:
                unmatched += 1
                continue
            self._send(raw, facts, chosen)
        if filtered:
            state.filter_out(WHEN, filtered)
            state.elapsed.record(0.0, filtered)
        if unmatched:
            state.filter_out(UNMATCHED, unmatched)
            state.elapsed.record(0.0, unmatched)

    def forward_traced(self, raw: RawMessage) -> None:
        """Send one message that is sampled."""
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
        """Offer what was kept to its destinations."""
        for place in tuple(self._kept):
            self._offer(place)

    def _offer(self, place: int) -> None:
        frames = self._kept.pop(place, None)
        if frames is None:
            return
        outlet = self._routing.outlets[place]
        owner = BatchDelivery(self._routing.state, self._received_at, len(frames)).owner_for(outlet.template)
        owner.first = outlet.outbox.next_order
        outlet.outbox.offer_frames(frames, FrameOwners([owner], [len(frames)]))
