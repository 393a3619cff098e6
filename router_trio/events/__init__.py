"""Everything that can happen, as frozen events: the one source of facts for logs, outage spans and tests.

An event is emitted once, where the thing happens, by a call of an `Emit`. What can happen for every message carries a
`count` and is marked `per_message`: listeners merge those. Texts of an event are bounded when it is made. `at` is the
emitter's monotonic clock in seconds.
The docstring of each class is its help text in `router-trio contract`.
"""

from __future__ import annotations

from router_trio.events.connections import (
    ConnectionEstablished,
    ConnectionEvent,
    ConnectionFailed,
    ConnectionLost,
    ConnectionRestored,
    DestinationsUnknown,
    LameDuck,
    ReconnectAttempt,
    ReconnectExhausted,
    RetryComplete,
    RetryPending,
    StreamCreated,
    StreamDiffers,
    StreamNotMade,
    UnexpectedLinkError,
)
from router_trio.events.event import (
    Emit,
    Event,
    Level,
)
from router_trio.events.publishes import (
    AckFailed,
    NakFailed,
    OperationEvent,
    PendingDropped,
    PublishFailed,
    PublishFailedOpen,
    PublishQueued,
    PublishWithAckFailed,
    PublishWithAckQueued,
    QueueFull,
    SubscribeFailed,
)
from router_trio.events.router import (
    MOST_NAMES,
    FaultInjected,
    FaultInjectionEnabled,
    FaultsCleared,
    ReloadRefused,
    RestartNeeded,
    RouterDraining,
    RouterReloaded,
    RouterStarted,
    RouterStopped,
    SettingIgnored,
    StatusPageReady,
    WorkerLost,
    WorkerStarted,
)
from router_trio.events.routes import (
    BreakerClosed,
    BreakerOpened,
    ConsumerDiffers,
    DeadLetterNotStored,
    DestinationNotStored,
    DestinationStored,
    DestinationUnconfirmed,
    FastIngestChosen,
    FastIngestUnavailable,
    FilterOutside,
    MessageDeadLettered,
    MessageFailed,
    MessageGivenUp,
    RouteEvent,
    RouteLimited,
    RouteReady,
    RouteStandby,
    StreamWentBack,
)


def catalogue() -> tuple[type[Event], ...]:
    """Return every kind of event, by code."""
    kinds = [kind for kind in globals().values() if isinstance(kind, type) and issubclass(kind, Event)]
    return tuple(sorted((kind for kind in kinds if "code" in vars(kind)), key=lambda kind: kind.code))


__all__ = [
    "MOST_NAMES",
    "AckFailed",
    "BreakerClosed",
    "BreakerOpened",
    "ConnectionEstablished",
    "ConnectionEvent",
    "ConnectionFailed",
    "ConnectionLost",
    "ConnectionRestored",
    "ConsumerDiffers",
    "DeadLetterNotStored",
    "DestinationNotStored",
    "DestinationStored",
    "DestinationUnconfirmed",
    "DestinationsUnknown",
    "Emit",
    "Event",
    "FastIngestChosen",
    "FastIngestUnavailable",
    "FaultInjected",
    "FaultInjectionEnabled",
    "FaultsCleared",
    "FilterOutside",
    "LameDuck",
    "Level",
    "MessageDeadLettered",
    "MessageFailed",
    "MessageGivenUp",
    "NakFailed",
    "OperationEvent",
    "PendingDropped",
    "PublishFailed",
    "PublishFailedOpen",
    "PublishQueued",
    "PublishWithAckFailed",
    "PublishWithAckQueued",
    "QueueFull",
    "ReconnectAttempt",
    "ReconnectExhausted",
    "ReloadRefused",
    "RestartNeeded",
    "RetryComplete",
    "RetryPending",
    "RouteEvent",
    "RouteLimited",
    "RouteReady",
    "RouteStandby",
    "RouterDraining",
    "RouterReloaded",
    "RouterStarted",
    "RouterStopped",
    "SettingIgnored",
    "StatusPageReady",
    "StreamCreated",
    "StreamDiffers",
    "StreamNotMade",
    "StreamWentBack",
    "SubscribeFailed",
    "UnexpectedLinkError",
    "WorkerLost",
    "WorkerStarted",
    "catalogue",
]
