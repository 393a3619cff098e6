"""The causes without which an event that claims a loss, a limit or the like is false in a run.

The simulation knows at each moment what is true (`tests/simulation/claims.py`). Of real servers, only the
faults, the kind of route and the variant are known. Each event that has a judge there has its causes here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from router_trio import events
from router_trio.errors import reasons
from router_trio.events import Event
from tests.resilience.chaos.schedule import Schedule

NEVER: frozenset[str] = frozenset()
ANY = frozenset({"stream", "core"})
"""Events that the machine may cause, or that another promise judges."""

DENIED = frozenset({"no_publish", "no_inbox", "no_acks", "no_api"})
DIES = frozenset({"kill", "terminate", "lame_duck"})
"""Faults by which a server ends; with SIGKILL it may lose what it has not written."""

CAUSES: Mapping[type[Event], frozenset[str]] = {
    events.DeliveryLimitReached: frozenset({"max-deliver"}),
    events.ConsumerLimitsRemoved: frozenset({"max-deliver"}),
    events.ConsumerDiffers: frozenset({"max-deliver"}),
    events.MessageDeadLettered: NEVER,
    events.MessageGivenUp: frozenset({"core"}),
    events.DeadLetterNotStored: NEVER,
    events.RouteScheduleLost: NEVER,
    events.BucketConflict: NEVER,
    events.RouteLimited: NEVER,
    events.HandlerLeftBehind: frozenset({"keys"}),
    events.PublishFailed: DENIED | {"less_payload", "poison", "sink_deleted", *DIES, "freeze"},
    events.PublishWithAckFailed: ANY,
    events.PublishFailedOpen: NEVER,
    events.QueueFull: ANY,
    events.PendingDropped: ANY,
    events.AckFailed: ANY,
    events.NakFailed: ANY,
    events.RefusalNotAttributed: DENIED | {"poison"},
    events.DuplicatesPossible: NEVER,
    events.StreamWentBack: frozenset({"memory", "kill"}),
    # A repeated delivery with its old number looks like one of a durable that counts from 1 again.
    events.ConsumerReset: frozenset({"memory", "kill", "consumer_deleted", "delivered_twice"}),
    events.ConsumerPaused: NEVER,
    events.FilterOutside: NEVER,
    events.QuorumLost: NEVER,
    events.StreamAcksEarly: NEVER,
    events.DestinationNotStored: DENIED | DIES | {"sink_deleted", "memory", "freeze", "less_payload"},
    events.DestinationUnconfirmed: frozenset({"core"}),
    events.BreakerOpened: NEVER,
    events.RoutePartitionLost: NEVER,
    events.RoutePartitionsUnled: NEVER,
    events.RouteInCircle: NEVER,
    events.RouteRetriesLeft: NEVER,
    events.LifespanLost: NEVER,
    events.WorkerLost: NEVER,
    events.WorkerLostInHandler: NEVER,
    events.EmbeddedServerLost: NEVER,
    events.UnexpectedLinkError: NEVER,
    events.LoopBlocked: ANY,
    events.AsyncioLoopBlocked: ANY,
    events.TasksLeftBehind: NEVER,
    events.PositionNotSaved: NEVER,
}
"""The faults, variants or kinds of routes by which an event can be true: a run has one of them."""

OF_DENIALS = (events.PublishFailed, events.PublishWithAckFailed, events.AckFailed, events.NakFailed)
"""Events that name a missing permission, if that is their reason."""


def false(schedule: Schedule, emitted: Iterable[Event]) -> Iterator[str]:
    """Yield each event that has no cause in a run of this schedule."""
    facts = {*schedule.faults, schedule.variant, schedule.kind}
    for event in emitted:
        causes = CAUSES.get(type(event), ANY)
        if isinstance(event, OF_DENIALS) and event.reason == reasons.PERMISSION_DENIED:
            causes = DENIED
        if not causes & facts:
            yield f"{event.code} is false, without any of {sorted(causes)}: {event}"
