"""What a log line says: one sentence for each kind of event.

The fields of an event go into the line by name as well; the sentence is for the person who reads it at night. It holds
no free text of other programs: that is in `detail`, where it may be shown at all (see `shown`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from router_trio import events
from router_trio.events import Event

NAMES = 5
"""Names that a sentence lists; the fields of the line have more."""

SENTENCES: Mapping[type[Event], str] = {
    events.ConnectionEstablished: "Connection {connection} is connected to {server}",
    events.ConnectionRestored: (
        "Connection {connection} is connected again to {server}, after {outage_seconds:.1f} s "
        "and {reconnect_attempts} attempts"
    ),
    events.ConnectionLost: (
        "Connection {connection} lost its link to {server}: {reason}; {pending_count} operations are pending"
    ),
    events.ConnectionFailed: (
        "Connection {connection} could not connect to {server}: {reason} (attempt {attempt} of {max_attempts})"
    ),
    events.UnexpectedLinkError: (
        "Connection {connection} ended its link to {server} because of {error_type} at {place}: "
        "a bug of router_trio, please report it"
    ),
    events.ReconnectAttempt: "Connection {connection} is connecting to {server}, attempt {attempt} of {max_attempts}",
    events.ReconnectExhausted: (
        "Connection {connection} used up its {reconnect_attempts} attempts to reconnect; next: {action}"
    ),
    events.LameDuck: "Server {server} will shut down; connection {connection} is moving to another one",
    events.RetryPending: (
        "Connection {connection} is sending {pending_count} operations that were queued or unconfirmed"
    ),
    events.RetryComplete: (
        "Connection {connection} has settled what was queued or unconfirmed: "
        "{success_count} succeeded, {failed_count} failed"
    ),
    events.PublishFailed: "Core publishes on {connection} failed: {reason}",
    events.PublishWithAckFailed: "JetStream publishes on {connection} failed: {reason}",
    events.PublishQueued: "Core publishes on {connection} are queued while it is not connected",
    events.PublishWithAckQueued: "JetStream publishes on {connection} are queued while it is not connected",
    events.PublishFailedOpen: "Publishes on {connection} were discarded, because fail_open is set: {reason}",
    events.QueueFull: "The queue of {connection} is full ({queue_size} of {max_size} operations): {reason}",
    events.PendingDropped: "Pending operations of {connection} were dropped: {reason}",
    events.AckFailed: "Acks on {connection} could not be sent: {reason}; the stream will redeliver these messages",
    events.NakFailed: (
        "Naks on {connection} could not be sent: {reason}; the stream will redeliver these messages after its ack wait"
    ),
    events.SubscribeFailed: "Could not subscribe or open a consumer on {connection}: {reason}; retrying",
    events.ConsumerDiffers: (
        "Route {route}: the consumer {durable} of stream {stream} differs from the configuration: {detail}; "
        "change one of them"
    ),
    events.RouteStandby: "Route {route} waits for the lead of the consumer {durable} of stream {stream}",
    events.RouteReady: "Route {route} receives from {source} on {connection}",
    events.MessageFailed: "Messages of route {route} failed: {reason}",
    events.MessageDeadLettered: "Route {route} dead-lettered messages, the last after {attempts} attempts: {reason}",
    events.MessageGivenUp: "Route {route} gave up messages, the last after {attempts} attempts: {reason}",
    events.DeadLetterNotStored: "Route {route} could not store dead letters: {reason}",
    events.RouteLimited: "Route {route} holds messages back: its limit is {rate}",
    events.BreakerOpened: (
        "Route {route} leaves {subject} on {connection} alone for {pause_seconds:g} s: "
        "{failed_count} failures in a row, the last one {reason}"
    ),
    events.BreakerClosed: "Route {route} sends to {subject} on {connection} again, after {open_seconds:.1f} s",
    events.DestinationNotStored: "Route {route} can't deliver to {subject} on {connection}: {reason}",
    events.DestinationStored: "Route {route} can deliver to {subject} on {connection} again",
    events.DestinationsUnknown: (
        "Could not look up the streams that {connection} publishes to: {reason}; "
        "only publishes show whether they accept messages"
    ),
    events.StreamCreated: "Stream {stream} was made on {connection}",
    events.StreamDiffers: (
        "Stream {stream} on {connection} is not as [[streams]] says, and is left as it is: {detail}; change one of them"
    ),
    events.StreamNotMade: "Stream {stream} could not be looked up or made on {connection}: {reason}; retrying",
    events.StreamWentBack: (
        "Stream {stream} of route {route} went back in time: {detail}; its messages are routed as new"
    ),
    events.FaultInjectionEnabled: "FAULT INJECTION IS ENABLED: anyone who reaches {page} can make this router fail",
    events.FaultInjected: "Fault {fault} is set for {operation}, with probability {probability:g}",
    events.FaultsCleared: "Injected faults were cleared: {operation}",
    events.SettingIgnored: "{key} {detail}",
    events.RouterReloaded: (
        "The configuration was reloaded: added {added}, removed {removed}, changed {changed}; "
        "{unchanged} connections and routes are unchanged"
    ),
    events.ReloadRefused: "The configuration was not reloaded, and nothing has changed: it has {count} problems",
    events.RestartNeeded: "The configuration was reloaded, but for {keys}: restart the router to change that",
    events.RouterStarted: "Router {name} is running: {connections} connections, {routes} routes",
    events.RouterDraining: "Router is draining {pending_count} operations, for at most {timeout_seconds:g} s",
    events.RouterStopped: "Router has stopped; {unsettled} messages were left unsettled",
}


def sentence(event: Event) -> str:
    """Return the sentence of an event, or the help text of one without a sentence, as that of an embedding program."""
    template = SENTENCES.get(type(event))
    if template is None:
        return (type(event).__doc__ or type(event).__name__).strip().splitlines()[0]
    return template.format_map({"connection": None, "route": None, **{k: _text(v) for k, v in event.details()}})


def _text(value: Any) -> Any:
    """Return a value as a sentence has it: of several names the first."""
    if not isinstance(value, tuple):
        return value
    more = f" and {len(value) - NAMES} more" if len(value) > NAMES else ""
    return (", ".join(map(str, value[:NAMES])) or "nothing") + more


def shown(event: Event, *, handler_errors: bool = False) -> dict[str, Any]:
    """Return the fields of an event that may be shown.

    What a handler raises may quote the payload, and payloads never appear in logs: of its error only the type is shown,
    unless `handler_errors` asks for the text as well.
    """
    fields = dict(event.details())
    if not handler_errors and isinstance(event, events.MessageFailed) and event.error_type is not None:
        fields.pop("detail", None)
    return fields
