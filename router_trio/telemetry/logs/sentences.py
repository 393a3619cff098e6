"""The sentences of log lines: one for each kind of event.

The fields of an event go into the line by name as well; the sentence is for the person who reads it at night. It holds
no free text of other programs: that is in `detail`, where it may be shown at all (see `shown`). An attempt to connect
and a router that is not ready are the exceptions: what is wrong is what their lines are about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from router_trio import events
from router_trio.errors.quotes import excerpt
from router_trio.events import Event

NAMES = 5
"""Names that a sentence lists; the fields of the line have more."""

SENTENCES: Mapping[type[Event], str] = {
    events.ConnectionEstablished: "Connection {connection} is connected to {server}",
    events.ConnectionRestored: (
        "Connection {connection} is connected again to {server}, after {outage_seconds:.1f} s "
        "and {reconnect_attempts:count attempt}"
    ),
    events.ConnectionLost: (
        "Connection {connection} lost its link to {server}: {reason}; "
        "{pending_count:count operation is|operations are} pending"
    ),
    events.ConnectionFailed: "{connection}: {problem} (attempt {attempt} of {max_attempts}){cure}",
    events.UnexpectedLinkError: (
        "Connection {connection} ended its link to {server} because of {error_type} at {place}: "
        "a bug of router_trio, please report it"
    ),
    events.ReconnectAttempt: "Connection {connection} is connecting to {server}, attempt {attempt} of {max_attempts}",
    events.ReconnectExhausted: (
        "Connection {connection} used up its {reconnect_attempts:count attempt} to reconnect; next: {action}"
    ),
    events.LameDuck: "Server {server} will shut down; connection {connection} is moving to another one",
    events.RetryPending: (
        "Connection {connection} is sending "
        "{pending_count:count operation that was|operations that were} queued or unconfirmed"
    ),
    events.RetryComplete: (
        "Connection {connection} has settled what was queued or unconfirmed: "
        "{success_count} succeeded, {failed_count} failed"
    ),
    events.PublishFailed: "{by_route}Core publish{to_subject} on {connection} failed: {reason}",
    events.PublishWithAckFailed: "{by_route}JetStream publish{to_subject} on {connection} failed: {reason}",
    events.PublishQueued: "Core publishes on {connection} are queued while it is not connected",
    events.PublishWithAckQueued: "JetStream publishes on {connection} are queued while it is not connected",
    events.PublishFailedOpen: "Publishes on {connection} were discarded, because fail_open is set: {reason}",
    events.QueueFull: "The queue of {connection} is full ({queue_size} of {max_size:count operation}): {reason}",
    events.PendingDropped: "Pending operations of {connection} were dropped: {reason}",
    events.AckFailed: (
        "{by_route}Acks{to_subject} on {connection} could not be sent: {reason}; "
        "the stream will redeliver these messages"
    ),
    events.RefusalNotAttributed: (
        "The server refused something on {connection} that names no publish, ack or request of the router: {detail}; "
        "core publishes that were on their way count as failed"
    ),
    events.NakFailed: (
        "{by_route}Naks{to_subject} on {connection} could not be sent: {reason}; "
        "the stream will redeliver these messages after its ack wait"
    ),
    events.SubscribeFailed: "{by_route}Could not subscribe or open a consumer on {connection}: {reason}; retrying",
    events.ConsumerDiffers: (
        "Route {route}: the consumer {durable} of stream {stream} differs from the configuration: {detail}; "
        "change one of them"
    ),
    events.ConsumerReset: (
        "Route {route}: the consumer {durable} of stream {stream} was reset, or made again: instead of message "
        "{from_sequence} it goes on with {to_sequence}; {after_reset}"
    ),
    events.FilterOutside: (
        "Route {route} gets nothing: its filter {filter} matches none of the subjects of stream {stream}, which are "
        "{subjects}; correct the filter, or the stream"
    ),
    events.RouteStandby: "Route {route} waits for the lead of the consumer {durable} of stream {stream}",
    events.RouteReady: "Route {route} receives from {source} on {connection}",
    events.MessageFailed: "Route {route}: {which_message} failed: {reason}{raised}",
    events.MessageDeadLettered: "Route {route}: {which_message} dead-lettered after {attempts:count attempt}: {reason}",
    events.MessageGivenUp: "Route {route}: {which_message} given up after {attempts:count attempt}: {reason}",
    events.DeadLetterNotStored: "Route {route}: the dead letter of {which_message} could not be stored: {reason}",
    events.RouteLimited: "Route {route} holds messages back: its limit is {rate}",
    events.BreakerOpened: (
        "Route {route} leaves {subject} on {connection} alone for {pause_seconds:g} s: "
        "{failed_count:count failure} in a row, the last one {reason}"
    ),
    events.BreakerClosed: "Route {route} sends to {subject} on {connection} again, after {open_seconds:.1f} s",
    events.DestinationNotStored: "Route {route} can't deliver to {subject} on {connection}: {reason}",
    events.DestinationUnconfirmed: (
        "Route {route} sends core publishes to {subject} on {connection}, which stream {stream} stores: a message "
        "that the stream refuses counts as routed; set jetstream = true there"
    ),
    events.DestinationStored: "Route {route} can deliver to {subject} on {connection} again",
    events.DestinationsUnknown: (
        "Could not look up the streams that {connection} publishes to: {reason}; "
        "only publishes show whether they accept messages"
    ),
    events.DuplicatesPossible: (
        "Connection {connection} is back after {outage_seconds:.1f} s: {this_stream} may store "
        "{at_least}{count:count message} twice, sent without an answer up to {unanswered_seconds:.1f} s ago, "
        "before its duplicate window of {window_seconds:g} s{assumed}"
    ),
    events.StreamAcksEarly: (
        "Stream {stream} on {connection} confirms messages before it has written them (persist_mode is async): "
        "a crash of its server loses some that count as routed"
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
    events.HangupIgnored: (
        "SIGHUP is ignored, as it was when this process was started (nohup does that), and reloads nothing: "
        "run with --watch to reload when a file changes"
    ),
    events.StatusPageReady: "Status page: {url}",
    events.RouterReloaded: (
        "The configuration was reloaded: added {added}, removed {removed}, changed {changed}; "
        "{unchanged} connections and routes are unchanged"
    ),
    events.ReloadRefused: (
        "The configuration was not reloaded, and nothing has changed: it has {count:count problem|problems}"
    ),
    events.RestartNeeded: "Configuration reloaded. Changes to {keys} take effect only after a restart",
    events.WorkerStarted: "Worker {worker} has started, as process {pid}",
    events.WorkerLost: (
        "Worker {worker} (process {pid}) {reason}, and is started again in {delay_ms} ms; it left "
        "{dropped:count publish|publishes} dropped, {returned:count message} returned to streams and {lost} lost"
    ),
    events.WorkerLostInHandler: (
        "When worker {worker} was lost, the handler of route {route} had {which_message}; "
        "{deaths:count process has|processes have} ended while it had that alone"
    ),
    events.RouterStarted: "Router {name} is running: {connections:count connection}, {routes:count route}",
    events.HandlerLeftBehind: (
        "Route {route} was ended, and left behind {count:count call} of its handler that did not return"
    ),
    events.SignalRestored: (
        "{signal} was taken from the router, by {taken_by}: the router takes it back, or nothing would drain it; "
        "leave signals alone in handlers"
    ),
    events.LoopBlocked: (
        "{by_route}The event loop has not turned for {blocked_seconds:g} s{at_message}{raised}: "
        "nothing is sent, received or answered meanwhile{in_a_thread}"
    ),
    events.RouterNotReady: "Router is not ready, for {count:count reason}: {reasons}",
    events.RouterReady: "Router is ready: every connection and every route would deliver a message{again}",
    events.RouterDraining: "Router is draining {pending_count:count operation}, for at most {timeout_seconds:g} s",
    events.RouterStopped: (
        "Router has stopped; {unsettled:count message was|messages were} left unsettled{and_redelivered}"
    ),
}


IN_A_THREAD = (
    "; let a handler that blocks be called in a thread: a plain def with `thread = true` of its route, what an async "
    "def calls with trio.to_thread.run_sync"
)
"""Advice for a handler that blocks the loop."""


def sentence(event: Event) -> str:
    """Return the sentence of an event, or the help text of one without a sentence, as that of an embedding program."""
    template = SENTENCES.get(type(event))
    if template is None:
        return (type(event).__doc__ or type(event).__name__).strip().splitlines()[0]
    fields = {"connection": None, "route": None, **_details(event)}
    counted = {name: _counted(value) for name, value in fields.items()}
    return template.format_map(_Parts(counted))


def _details(event: Event) -> dict[str, Any]:
    fields = dict(event.details())
    server = fields.get("server")
    if server and "://" not in server:
        fields["server"] = f"nats://{server}"  # as servers tell of each other, and as a server without TLS is called
    return fields


class _Count(int):
    """A number that says what it counts: `{:count attempt}` is `1 attempt` or `2 attempts`.

    `{:count message was|messages were}` gives both forms.
    """

    def __format__(self, form: str) -> str:
        word, _, noun = form.partition(" ")
        if word != "count":
            return format(int(self), form)
        one, _, several = noun.partition("|")
        return f"{int(self)} {one}" if self == 1 else f"{int(self)} {several or one + 's'}"


class _Parts(dict[str, Any]):
    """The fields of an event, and parts of sentences that are left out where a field is absent."""

    def __missing__(self, name: str) -> str:
        return _PARTS[name](self)


def _which_message(fields: Mapping[str, Any]) -> str:
    if "subject" not in fields and "sequence" not in fields:
        return "a message"
    number = f"message {fields['sequence']} of stream {fields['stream']}" if "sequence" in fields else "a message"
    return f"{number} on {excerpt(fields['subject'])}" if "subject" in fields else number


def _raised(fields: Mapping[str, Any]) -> str:
    kind = f" ({fields['error_type']})" if "error_type" in fields else ""
    return f"{kind} at {fields['place']}" if "place" in fields else kind


def _problem(fields: Mapping[str, Any]) -> str:
    """Return the problem, with the server's address: the text of the error up to its cure."""
    problem, address = fields["detail"].partition("; ")[0], fields["server"].rpartition("://")[2]
    return str(problem) if address in problem else f"{problem}, at {address}"


def _cure(fields: Mapping[str, Any]) -> str:
    _, mark, cure = fields["detail"].partition("; ")
    return f"{mark}{cure}"


_PARTS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "by_route": lambda fields: f"Route {fields['route']}: " if fields["route"] is not None else "",
    "to_subject": lambda fields: f" to {excerpt(fields['subject'])}" if "subject" in fields else "",
    "which_message": _which_message,
    "raised": _raised,
    "this_stream": lambda fields: f"stream {fields['stream']}" if "stream" in fields else "a stream",
    "assumed": lambda fields: " (the default: it could not be looked up)" if fields["window_assumed"] else "",
    "at_least": lambda fields: "at least " if fields["window_assumed"] else "",
    "after_reset": lambda fields: (
        "what the route has settled is acked and not routed again: reset it while the router is stopped for that"
        if fields["to_sequence"] < fields["from_sequence"]
        else "what is between them is left out"
    ),
    "at_message": lambda fields: f", with {_which_message(fields)} in the handler" if "subject" in fields else "",
    "in_a_thread": lambda fields: IN_A_THREAD if fields["route"] is not None else "",
    "and_redelivered": lambda fields: f", {fields['redelivered']} to be redelivered" if fields["redelivered"] else "",
    "again": lambda fields: (
        f"; it was not for {fields['not_ready_seconds']:.1f} s" if fields["not_ready_seconds"] else ""
    ),
    "problem": _problem,
    "cure": _cure,
}


def _counted(value: Any) -> Any:
    """Return a value as a sentence has it: a number that says what it counts, and of several names the first."""
    if type(value) is int:
        return _Count(value)
    if not isinstance(value, tuple):
        return value
    more = f" and {len(value) - NAMES} more" if len(value) > NAMES else ""
    return (", ".join(map(str, value[:NAMES])) or "nothing") + more


def shown(event: Event, *, handler_errors: bool = False) -> dict[str, Any]:
    """Return the fields of an event that may be shown.

    What a handler raises may quote the payload, and payloads never appear in logs: of its error only the type is shown,
    unless `handler_errors` asks for the text as well.
    """
    fields = _details(event)
    if not handler_errors and isinstance(event, events.MessageFailed) and event.error_type is not None:
        fields.pop("detail", None)
        fields.pop("traceback", None)
    return fields
