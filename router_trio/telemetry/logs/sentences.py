"""What a log line says: one sentence for each kind of event.

The fields of an event go into the line by name as well; the sentence is for the person who reads it at night. It holds
no free text of other programs: that is in `detail`, where it may be shown at all (see `shown`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from router_trio import events
from router_trio.events import Event

SENTENCES: Mapping[type[Event], str] = {
    events.ConnectionEstablished: "Connection {connection} is connected to {server}",
    events.ConnectionRestored: (
        "Connection {connection} is connected again, to {server}, after {outage_seconds:.1f} s "
        "and {reconnect_attempts} attempts"
    ),
    events.ConnectionLost: "Connection {connection} lost {server}: {reason}; {pending_count} operations are pending",
    events.ConnectionFailed: (
        "Connection {connection} could not connect to {server}: {reason} (attempt {attempt} of {max_attempts})"
    ),
    events.UnexpectedLinkError: (
        "Connection {connection} ended its link to {server} because of {error_type} at {place}: "
        "a fault of router_trio, please report it"
    ),
    events.ReconnectAttempt: "Connection {connection} tries {server}, attempt {attempt} of {max_attempts}",
    events.ReconnectExhausted: (
        "Connection {connection} used up its {reconnect_attempts} attempts to reconnect; next: {action}"
    ),
    events.LameDuck: "Server {server} of connection {connection} will shut down; moving to another one",
    events.RetryPending: "Connection {connection} sends {pending_count} operations that were kept",
    events.RetryComplete: (
        "Connection {connection} has sent what was kept: {success_count} succeeded, {failed_count} failed"
    ),
    events.PublishFailed: "Core publishes on {connection} failed: {reason}",
    events.PublishWithAckFailed: "JetStream publishes on {connection} failed: {reason}",
    events.PublishQueued: "Core publishes on {connection} are queued while it is not connected",
    events.PublishWithAckQueued: "JetStream publishes on {connection} are queued while it is not connected",
    events.PublishFailedOpen: "Publishes on {connection} were let go, as fail_open says: {reason}",
    events.QueueFull: "The queue of {connection} is full ({queue_size} of {max_size} operations): {reason}",
    events.PendingDropped: "Pending operations of {connection} were dropped: {reason}",
    events.AckFailed: "Acks on {connection} failed: {reason}; the stream delivers these messages again",
    events.NakFailed: "Naks on {connection} failed: {reason}; the stream delivers these messages after its ack wait",
    events.SubscribeFailed: "Could not subscribe or open a consumer on {connection}: {reason}; trying again",
    events.ConsumerDiffers: (
        "Route {route}: the consumer {durable} of stream {stream} differs from the configuration: {detail}; "
        "change one of them"
    ),
    events.RouteReady: "Route {route} receives from {source} on {connection}",
    events.MessageFailed: "Messages of route {route} failed: {reason}",
    events.MessageDeadLettered: (
        "Route {route} gave messages up after attempt {deliveries}, their last, such as {sequence} of stream {stream}: "
        "{reason}"
    ),
    events.DestinationNotStored: "Route {route} can't deliver to {subject} on {connection}: {reason}",
    events.DestinationStored: "Route {route} can deliver to {subject} on {connection} again",
    events.DestinationsUnknown: (
        "Could not look up the streams that {connection} publishes to: {reason}; "
        "whether they accept messages is known when some are published"
    ),
    events.StreamWentBack: (
        "Stream {stream} of route {route} went back in time: {detail}; what it has now is routed as new"
    ),
    events.FaultInjectionEnabled: "FAULT INJECTION IS ENABLED: whoever reaches {page} can make this router fail",
    events.FaultInjected: "A fault is injected into {operation} from now on, with probability {probability:g}: {fault}",
    events.FaultsCleared: "Injected faults are over: {operation}",
    events.RouterStarted: "Router {name} is running: {connections} connections, {routes} routes",
    events.RouterDraining: "Router is draining {pending_count} operations, for at most {timeout_seconds:g} s",
    events.RouterStopped: "Router has stopped; {unsettled} messages are unsettled",
}


def sentence(event: Event) -> str:
    """The sentence of an event. One without a sentence of its own, as of an embedding program, gives its help text."""
    template = SENTENCES.get(type(event))
    if template is None:
        return (type(event).__doc__ or type(event).__name__).strip().splitlines()[0]
    return template.format_map({"connection": None, "route": None, **dict(event.details())})


def shown(event: Event, *, handler_errors: bool = False) -> dict[str, Any]:
    """The fields of an event that may be shown.

    What a handler raises may quote the payload, and payloads never appear in logs: of its error only the type is shown,
    unless `handler_errors` asks for the text as well.
    """
    fields = dict(event.details())
    if not handler_errors and isinstance(event, events.MessageFailed) and event.error_type is not None:
        fields.pop("detail", None)
    return fields
