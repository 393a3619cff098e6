"""Events that claim a loss, a limit, a gap, a duplicate, a reset or a rollback, each held against the books.

A false alarm costs the trust in the true ones. So whenever a simulated router emits such an event, a judge compares it
with what the fake servers and the schedule know at that moment. `JUDGES` has each of these events, `CLAIM_NOTHING` all
others: a new event belongs to one of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from router_trio import events
from router_trio.errors import reasons
from router_trio.events import Event
from router_trio.subjects.patterns import overlaps
from router_trio.testing import FakeBroker
from router_trio.testing.consumers import Consumer
from router_trio.testing.streams import Stream
from tests.simulation.failing import OF_DESTINATIONS
from tests.simulation.faults import GOES_BACK
from tests.simulation.schedule import Plan, Step

KNOWN_FOR = 10.0
"""Seconds for which a router may report what a lookup has shown: it looks every 5 s, for 2 s at most, and an answer may
be late.
"""

PRECISION = 1e-5
"""Seconds by which the times of two values may be rounded."""

PERMISSIONS = ("publish denied", "short window", "acks refused", "pulls refused", "requests refused")
"""Kinds of faults that deny a permission."""

FULL_BY = {"drop_oldest": "dropped_oldest", "reject": "rejected", "block": "blocked"}
"""Reasons of `QueueFull` by `on_pending_full`."""


@dataclass(slots=True)
class World:
    """A simulated world as its judges see it.

    `broker_of` returns the broker of a connection. `sources` are broker, stream and durable of each route from a
    stream. `steps` are the faults, `plans` the drawn routes, `connections` their options. `is_ending` returns whether
    the process is being left, `has_letter` whether a dead letter of a message is stored, `rollbacks` how often the
    streams of a broker were rolled back, `schedules_gone` how many schedules a client has taken from a stream, `unled`
    how many partitions had no leader lately, and `is_calm` whether nothing has changed their leads lately.
    """

    broker_of: Callable[[str], FakeBroker]
    sources: Mapping[str, tuple[str, str, str]] = field(default_factory=dict)
    steps: Sequence[Step] = ()
    plans: Mapping[str, Plan] = field(default_factory=dict)
    connections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    is_ending: Callable[[], bool] = lambda: False
    has_letter: Callable[[str, int | None], bool] = lambda route, sequence: False
    rollbacks: Callable[[str], float] = lambda broker: 0
    schedules_gone: Callable[[str], int] = lambda stream: 0
    unled: Callable[[], int] = int
    is_calm: Callable[[], bool] = lambda: True
    rolled_back: Counter[str] = field(default_factory=Counter)
    """How often a process has reported that the stream of a route was rolled back."""

    def began(self, event: Event, broker: str, *kinds: str, within: float | None = None) -> list[Step]:
        """Return the steps of these kinds at a broker that had begun at an event, and were not over for `within` s."""
        return [
            step
            for step in self.steps
            if step.kind in kinds and step.what.get("broker", broker) == broker and step.at <= event.at
            if within is None or event.at <= step.at + step.seconds + within
        ]

    def consumer(self, event: events.DeliveryLimitReached | events.ConsumerPaused) -> Consumer | None:
        """Return the durable that an event names."""
        broker, _, _ = self.sources[event.route]
        return self.broker_of(broker)._server.consumers.get((event.stream, event.durable))

    def happened_to(self, event: Any, *kinds: str, within: float | None = None) -> bool:
        """Return True if one of these faults has happened to the durable that an event names: see `began`."""
        found = self.began(event, self.sources[event.route][0], *kinds, within=within)
        return any(step.what.get("durable", event.durable) == event.durable for step in found)

    def stream(self, connection: str, name: str) -> Stream | None:
        """Return a stream of the broker of a connection."""
        return self.broker_of(connection)._server.streams.get(name)


Judge = Callable[[Any, World], "str | None"]
"""Returns what is wrong with an event in a world; None if it is true."""


def wrong(event: Event, world: World) -> Iterator[str]:
    """Yield what is wrong with an event, if anything is."""
    judge = JUDGES.get(type(event))
    detail = None if judge is None else judge(event, world)
    if detail is not None:
        yield f"{event.code} is false: {detail}: {event}"


# --- messages ---


def _limit_reached(event: events.DeliveryLimitReached, world: World) -> str | None:
    consumer = world.consumer(event)
    given_up = 0 if consumer is None else len(consumer._at_the_limit)
    return None if event.count <= given_up else f"the durable has given up {given_up}"


def _dead_lettered(event: events.MessageDeadLettered, world: World) -> str | None:
    if not world.has_letter(event.route, event.sequence):
        return "no dead letter is stored"
    return _fault_of_the_message(event, world)


def _given_up(event: events.MessageGivenUp, world: World) -> str | None:
    if world.plans[event.route].dead_letter is not None:
        return "its route has dead letters"
    return _fault_of_the_message(event, world)


def _fault_of_the_message(event: events.MessageDeadLettered | events.MessageGivenUp, world: World) -> str | None:
    plan = world.plans[event.route]
    if not plan.stream:
        return None if world.is_ending() else _named(plan, event.reason)
    if event.reason == reasons.SHUTDOWN:
        return "a stream redelivers it"
    return _named(plan, event.reason)


def _named(plan: Plan, reason: str) -> str | None:
    is_named = reason not in OF_DESTINATIONS or reason in plan.retry.get("not", ())
    return None if is_named else "it is the fault of a destination, and uses up no attempt"


def _letter_not_stored(event: events.DeadLetterNotStored, world: World) -> str | None:
    return None if world.plans[event.route].dead_letter is not None else "its route has no dead letters"


def _schedule_lost(event: events.RouteScheduleLost, world: World) -> str | None:
    gone = world.schedules_gone(event.stream)
    return None if 0 < event.lost <= gone else f"{gone} schedules were taken from the stream"


def _conflict(event: events.BucketConflict, world: World) -> str | None:
    """Judge that two values of the key were written that long one after the other: one may have come as a copy."""
    key = event.subject.split(".", 2)[2]
    written = [
        (name, one.timestamp)
        for connection in (world.sources[event.route][0], event.connection)
        for name, stream in world.broker_of(connection)._server.streams.items()
        if name.startswith("KV_")
        for one in stream.stored
        if one.subject.split(".", 2)[2] == key
    ]
    kept = [at for name, at in written if name == event.kept_from]
    is_later = any(abs((at - before) / 1e9 - event.later) < PRECISION for at in kept for _, before in written)
    return None if event.later >= 0 and is_later else f"no value of {key} was written then"


def _limited(event: events.RouteLimited, world: World) -> str | None:
    return None if world.plans[event.route].limit is not None else "its route has no limit"


def _left_behind(event: events.HandlerLeftBehind, world: World) -> str | None:
    plan = world.plans[event.route]
    if plan.handler is None or event.count > plan.concurrency:
        return f"its route has {plan.concurrency} calls of {plan.handler}"
    return None


# --- publishes ---


def _failed(event: events.PublishFailed | events.PublishWithAckFailed, world: World) -> str | None:
    if event.reason == reasons.WRONG_EXPECTATION and world.plans:  # schedules and values of buckets expect something
        return "no publish expects anything of its stream"
    if event.reason == reasons.PERMISSION_DENIED and not world.began(event, event.connection[0], *PERMISSIONS):
        return "nothing was denied"
    return None


def _failed_open(event: events.PublishFailedOpen, world: World) -> str | None:
    return None if world.connections[event.connection].get("fail_open") else "the connection does not fail open"


def _full(event: events.QueueFull, world: World) -> str | None:
    options = world.connections[event.connection]
    policy = options["on_pending_full"]
    # A publish to a destination that refuses is not blocked.
    if event.reason not in (FULL_BY[policy], "rejected"):
        return f"the policy is {policy}"
    most = max(options["max_pending_operations"], options["max_pending_bytes"])
    return None if event.max_size <= most else f"the limit is {most}"


def _dropped(event: events.PendingDropped, world: World) -> str | None:
    if event.reason == "expired":
        return None if world.connections[event.connection].get("pending_max_age") else "nothing expires there"
    reloads = any(step.kind == "reload" and step.at <= event.at for step in world.steps)
    return None if world.is_ending() or reloads else "the process goes on"


def _not_answered(event: events.AckFailed | events.NakFailed, world: World) -> str | None:
    # A link may end while it is written to, before the connection counts as lost.
    return None if event.reason in (reasons.NOT_CONNECTED, reasons.NETWORK) else _refused(event, world)


def _refused(event: events.AckFailed | events.NakFailed | events.RefusalNotAttributed, world: World) -> str | None:
    return None if world.began(event, event.connection[0], *PERMISSIONS) else "nothing was denied"


def _may_be_doubled(event: events.DuplicatesPossible, world: World) -> str | None:
    stream = None if event.stream is None else world.stream(event.connection, event.stream)
    if stream is not None and not event.window_assumed and event.window_seconds != stream.duplicate_window:
        return f"the window is {stream.duplicate_window:g} s"
    is_longer = event.window_seconds < event.unanswered_seconds <= event.at and event.count > 0
    return None if is_longer else "they were answered within the window"


# --- streams and durables ---


def _rolled_back(event: events.StreamWentBack, world: World) -> str | None:
    world.rolled_back[event.route] += 1
    times = world.rollbacks(world.sources[event.route][0])
    return None if world.rolled_back[event.route] <= times else f"the stream was rolled back {times} times"


def _reset(event: events.ConsumerReset, world: World) -> str | None:
    rolled_back = world.began(event, world.sources[event.route][0], *GOES_BACK)
    return None if rolled_back or world.happened_to(event, "durable deleted") else "the durable is as it was"


def _paused(event: events.ConsumerPaused, world: World) -> str | None:
    consumer = world.consumer(event)
    is_paused = consumer is not None and event.at < consumer.paused_until
    was_paused = world.happened_to(event, "durable paused", within=KNOWN_FOR)
    return None if is_paused or was_paused else "the durable delivers"


def _outside(event: events.FilterOutside, world: World) -> str | None:
    stream = world.stream(world.sources[event.route][0], event.stream)
    inside = stream is not None and any(overlaps(event.filter, one) for one in stream.subjects)
    return "the stream takes such subjects" if inside else None


def _limits_removed(event: events.ConsumerLimitsRemoved, world: World) -> str | None:
    return None if world.happened_to(event, "durable limited") else "the durable never had a limit"


def _differs(event: events.ConsumerDiffers, world: World) -> str | None:
    was_edited = world.happened_to(event, "durable edited", "durable narrowed", "durable limited")
    return None if was_edited else "no client has edited the durable"


def _no_quorum(event: events.QuorumLost, world: World) -> str | None:
    elections = world.began(event, event.connection[0], "election", within=KNOWN_FOR)
    stream = world.stream(event.connection, event.stream)
    lost = (
        stream is None
        or stream.cut_off
        or any(one.what.get("stream", event.stream) == event.stream for one in elections)
    )
    return None if lost else "the stream has its leader"


def _acks_early(event: events.StreamAcksEarly, world: World) -> str | None:
    stream = world.stream(event.connection, event.stream)
    return None if stream is not None and stream.acks_before_writing else "the stream writes before it acks"


# --- destinations ---


def _not_stored(event: events.DestinationNotStored, world: World) -> str | None:
    broker = event.connection[0]
    causes = REFUSES.get(event.reason)
    # A lookup does not show whether a permission is missing: until a message arrives, the last refusal is all that is
    # known, and a route that follows at a reload reports it once more.
    within = None if event.reason == reasons.PERMISSION_DENIED else KNOWN_FOR
    if causes is None or world.began(event, broker, *causes, within=within):
        return None
    return f"none of {', '.join(causes)} happens there, or has lately"


REFUSES = {
    "no_stream": ("sink missing", "sink made anew"),
    "no_responders": ("sink missing", "sink made anew", "election", "requests refused"),
    "stream_full": ("full stream",),
    "limit": ("full stream",),
    "stream_cut_off": ("election",),
    "stream_sealed": (),
    "permission_denied": PERMISSIONS,
}
"""Faults by which a destination stores nothing, by the reason that is reported."""


def _unconfirmed(event: events.DestinationUnconfirmed, world: World) -> str | None:
    stream = world.stream(event.connection, event.stream)
    return None if stream is not None else "there is no such stream"


def _breaker(event: events.BreakerOpened, world: World) -> str | None:
    breakers = [target.breaker for target in world.plans[event.route].targets if target.broker == event.connection]
    is_set = any(one is not None and one["failures"] == event.failed_count for one in breakers)
    return None if is_set else f"its breakers are {breakers}"


# --- partitions ---


def _partition_lost(event: events.RoutePartitionLost, world: World) -> str | None:
    return "nothing has changed" if world.is_calm() else None


def _unled(event: events.RoutePartitionsUnled, world: World) -> str | None:
    unled = world.unled()
    return None if event.count <= unled else f"{unled} had no leader"


# --- what no simulated world has ---


def never(event: Event, world: World) -> str | None:
    return "no simulated world has its cause"


JUDGES: Mapping[type[Event], Judge] = {
    events.DeliveryLimitReached: _limit_reached,
    events.MessageDeadLettered: _dead_lettered,
    events.MessageGivenUp: _given_up,
    events.DeadLetterNotStored: _letter_not_stored,
    events.RouteScheduleLost: _schedule_lost,
    events.BucketConflict: _conflict,
    events.RouteLimited: _limited,
    events.HandlerLeftBehind: _left_behind,
    events.PublishFailed: _failed,
    events.PublishWithAckFailed: _failed,
    events.PublishFailedOpen: _failed_open,
    events.QueueFull: _full,
    events.PendingDropped: _dropped,
    events.AckFailed: _not_answered,
    events.NakFailed: _not_answered,
    events.RefusalNotAttributed: _refused,
    events.DuplicatesPossible: _may_be_doubled,
    events.StreamWentBack: _rolled_back,
    events.ConsumerReset: _reset,
    events.ConsumerPaused: _paused,
    events.FilterOutside: _outside,
    events.ConsumerLimitsRemoved: _limits_removed,
    events.ConsumerDiffers: _differs,
    events.QuorumLost: _no_quorum,
    events.StreamAcksEarly: _acks_early,
    events.DestinationNotStored: _not_stored,
    events.DestinationUnconfirmed: _unconfirmed,
    events.BreakerOpened: _breaker,
    events.RoutePartitionLost: _partition_lost,
    events.RoutePartitionsUnled: _unled,
    events.RouteInCircle: never,
    events.RouteRetriesLeft: never,
    events.LifespanLost: never,
    events.WorkerLost: never,
    events.WorkerLostInHandler: never,
    events.EmbeddedServerLost: never,
    events.UnexpectedLinkError: never,
    events.LoopBlocked: never,
    events.AsyncioLoopBlocked: never,
    events.TasksLeftBehind: never,
    events.PositionNotSaved: never,
}
"""The judge of each event that claims something of this kind."""

CLAIM_NOTHING: frozenset[type[Event]] = frozenset(
    {
        # links, and attempts to connect
        events.ConnectionEstablished,
        events.ConnectionFailed,
        events.ConnectionLost,
        events.ConnectionRestored,
        events.LameDuck,
        events.ReconnectAttempt,
        events.ReconnectExhausted,
        events.RetryComplete,
        events.RetryPending,
        # what this user may not do, or what is not there
        events.AdvisoriesRefused,
        events.DestinationsUnknown,
        events.ServiceNotOffered,
        events.SubscribeFailed,
        events.StreamCreated,
        events.StreamDiffers,
        events.StreamNotMade,
        # what is tried again
        events.MessageFailed,
        events.PublishQueued,
        events.PublishWithAckQueued,
        # ends of what other events report
        events.BreakerClosed,
        events.ConsumerResumed,
        events.DestinationStored,
        events.RouteRetriesDrained,
        events.RouteRetriesDraining,
        # routes, and who leads them
        events.RouteMembersChanged,
        events.RoutePartitionGivenUp,
        events.RoutePartitionTaken,
        events.RouteReady,
        events.RouteStandby,
        # the router itself
        events.EmbeddedServerRestarted,
        events.FaultInjected,
        events.FaultInjectionEnabled,
        events.FaultsCleared,
        events.HangupIgnored,
        events.InterruptIgnored,
        events.ReloadRefused,
        events.RestartNeeded,
        events.RouterDraining,
        events.RouterNotReady,
        events.RouterReady,
        events.RouterReloaded,
        events.RouterStarted,
        events.RouterStopped,
        events.SettingIgnored,
        events.SignalRestored,
        events.StatusPageReady,
        events.TapClosed,
        events.TapOpened,
        events.WorkerStarted,
    }
)
"""All other events."""
