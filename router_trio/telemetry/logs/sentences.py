"""The sentences of log lines, one for each kind of event.

The line also has the fields of the event by name; the sentence is for people. It contains no text of other programs:
that is in the field `detail`, if it may be shown at all (see `shown`). The exceptions are a failed attempt to connect
and a router that is not ready, whose sentences are about such a text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from router_trio import events
from router_trio.errors import reasons
from router_trio.errors.quotes import excerpt
from router_trio.events import Event

NAMES = 5
"""Maximum number of names that a sentence lists. The fields of the line have all of them."""

SENTENCES: Mapping[type[Event], str] = {
    events.ConnectionEstablished: "Connection {connection} is connected to {server}",
    events.ConnectionRestored: (
        "Connection {connection} reconnected to {server} after {outage_seconds:.1f} s "
        "and {reconnect_attempts:count attempt}"
    ),
    events.ConnectionLost: (
        "Connection {connection} lost its link to {server}: {reason}; reconnecting, "
        "{pending_count:count operation} pending"
    ),
    events.ConnectionFailed: (
        "Connection {connection} could not connect (attempt {attempt} of {max_attempts}): {problem}{cure}"
    ),
    events.UnexpectedLinkError: (
        "Connection {connection} closed its link to {server} after an unexpected {error_type} at {place}: "
        "this is a bug in router_trio, please report it"
    ),
    events.ReconnectAttempt: "Connection {connection} is connecting to {server}, attempt {attempt} of {max_attempts}",
    events.ReconnectExhausted: (
        "Connection {connection} failed to connect in {reconnect_attempts:count attempt}; {after_the_round}"
    ),
    events.LameDuck: (
        "Server {server} is in lame duck mode and will shut down; connection {connection} is moving to another server"
    ),
    events.RetryPending: (
        "Connection {connection} is sending "
        "{pending_count:count operation that was|operations that were} queued or unconfirmed during the outage"
    ),
    events.RetryComplete: (
        "Connection {connection} has settled all operations from before the reconnect: "
        "{success_count} succeeded, {failed_count} failed"
    ),
    events.PublishFailed: (
        "{by_route}core publish{to_subject}{of_message} on connection {connection} failed: {reason}{advice}"
    ),
    events.PublishWithAckFailed: (
        "{by_route}JetStream publish{to_subject}{of_message} on connection {connection} failed: {reason}{advice}"
    ),
    events.PublishQueued: (
        "Connection {connection} is not connected: core publishes are queued, {pending_count} pending"
    ),
    events.PublishWithAckQueued: (
        "Connection {connection} is not connected: JetStream publishes are queued, {pending_count} pending"
    ),
    events.PublishFailedOpen: "Connection {connection} discarded publishes, because fail_open is set: {reason}",
    events.QueueFull: (
        "The queue of connection {connection} is full ({queue_size} of {max_size:count operation}): {when_full}"
    ),
    events.PendingDropped: "Connection {connection} dropped pending operations: {reason}",
    events.AckFailed: (
        "{by_route}acks{to_subject} on connection {connection} failed: {reason}; "
        "the stream will redeliver these messages"
    ),
    events.RefusalNotAttributed: (
        "Connection {connection}: the server refused an operation that can't be matched to any publish, ack or request "
        "of this router: {detail}; all core publishes in flight count as failed"
    ),
    events.NakFailed: (
        "{by_route}naks{to_subject} on connection {connection} failed: {reason}; "
        "the stream will redeliver these messages after its ack wait"
    ),
    events.SubscribeFailed: (
        "{by_route}could not subscribe or open the consumer on connection {connection}: {reason}; retrying"
    ),
    events.ConsumerDiffers: (
        "Route {route}: consumer {durable} of stream {stream} differs from the configuration and was left unchanged: "
        "{detail}; change the consumer or the configuration"
    ),
    events.ConsumerLimitsRemoved: (
        "Route {route}: the router removed {detail} from consumer {durable} of stream {stream}, since a route counts "
        "attempts itself and its durable must outlast a restart"
    ),
    events.ConsumerReset: (
        "Route {route}: consumer {durable} of stream {stream} was reset or recreated and continues at message "
        "{to_sequence} instead of {from_sequence}; {after_reset}"
    ),
    events.RouteScheduleLost: (
        "Route {route}: {lost:count schedule} of stream {stream} will never be published: of {scheduled} schedules, "
        "{fired} were published, {cancelled} cancelled, and {there} are still there; the others were purged or "
        "deleted, or a limit was set on the stream"
    ),
    events.RouteRetriesDraining: (
        "Route {route}: {waiting:count message waits|messages wait} in stream {stream} below {prefix} for the next "
        "attempt, as scheduled before the reload; the route retries them from there until none is left"
    ),
    events.RouteRetriesDrained: (
        "Route {route}: no message waits in stream {stream} below {prefix} any more; the route does not read there now"
    ),
    events.RouteRetriesLeft: (
        "Route {route}: {left_waiting} in stream {stream} of connection {connection} below {prefix} for the next "
        "attempt, and no route receives them after this reload; load the settings of before again, and keep the route "
        "until they are retried, or see them with `router-trio schedules` and those settings"
    ),
    events.RouteInCircle: (
        "Route {route}: {returned} of the last {received:count message} had passed it before: they go round in a "
        "circle; their header Router-Passed names the routes on the way, this one as {passed_as}, and each of them "
        "reports its own name; `router-trio check --online` shows a way over streams and durables"
    ),
    events.DeliveryLimitReached: (
        "Route {route}: consumer {durable} of stream {stream} reached its limit of deliveries with "
        "{count:count message}, from {from_sequence} to {to_sequence}, which it does not deliver any more; "
        "`router-trio audit` lists those without a copy"
    ),
    events.ConsumerPaused: "Route {route} receives nothing: {detail}",
    events.ConsumerResumed: "Route {route}: consumer {durable} of stream {stream} is not paused any more",
    events.FilterOutside: (
        "Route {route} receives nothing: its filter {filter} matches none of the subjects of stream {stream}, which "
        "are {subjects}; correct the filter or the stream"
    ),
    events.RouteStandby: "Route {route} is on standby, waiting for the lead of consumer {durable} of stream {stream}",
    events.RouteMembersChanged: (
        "Route {route}: {count:count process shares|processes share} the partitions of stream {stream} ({joined} "
        "joined, {left} left); this one should lead {share:count partition}"
    ),
    events.RoutePartitionTaken: "Route {route} leads partition {partition} of stream {stream}, after {seconds:.1f} s",
    events.RoutePartitionGivenUp: (
        "Route {route} has given up partition {partition} of stream {stream}, after {seconds:.1f} s"
    ),
    events.RoutePartitionLost: (
        "Route {route} has lost partition {partition} of stream {stream}: {detail}; unsettled messages are redelivered "
        "to the process that leads it next"
    ),
    events.RoutePartitionsUnled: "Route {route}, stream {stream}: {detail}",
    events.RouteReady: "Route {route} is receiving from {source} on connection {connection}",
    events.MessageFailed: "Route {route}: {which_message} failed: {reason}{raised}",
    events.MessageDeadLettered: (
        "Route {route}: {which_message} was dead-lettered after {attempts:count attempt}: {reason}"
    ),
    events.MessageGivenUp: "Route {route}: {which_message} was given up after {attempts:count attempt}: {reason}",
    events.DeadLetterNotStored: (
        "Route {route}: the dead letter of {which_message} could not be stored: {reason}; {kept_or_lost}"
    ),
    events.BucketConflict: (
        "Route {route}: {which_message} is not copied to connection {connection}, where its key has a value that was "
        "written {later:g} s later, in {kept_from}"
    ),
    events.RouteLimited: "Route {route} is delaying messages: its rate limit of {rate} is reached",
    events.BreakerOpened: (
        "Route {route} opened the circuit breaker of {subject} on connection {connection} after "
        "{failed_count:count failure} in a row, the last one {reason}; next attempt in {pause_seconds:g} s"
    ),
    events.BreakerClosed: (
        "Route {route} closed the circuit breaker of {subject} on connection {connection} after {open_seconds:.1f} s"
    ),
    events.DestinationNotStored: (
        "Route {route} can't deliver to {subject} on connection {connection}: {reason}{advice}"
    ),
    events.DestinationUnconfirmed: (
        "Route {route} sends core publishes to {subject} on connection {connection}, which stream {stream} stores: "
        "a message that the stream refuses counts as routed; set jetstream = true for this destination"
    ),
    events.DestinationStored: "Route {route} can deliver to {subject} on connection {connection} again",
    events.DestinationsUnknown: (
        "Connection {connection} could not look up the streams of its destinations: {reason}; "
        "a stream that accepts nothing is noticed only when a publish fails"
    ),
    events.DuplicatesPossible: (
        "Connection {connection} reconnected after {outage_seconds:.1f} s: {this_stream} may store "
        "{at_least}{count:count message} twice, sent up to {unanswered_seconds:.1f} s ago without a PubAck, "
        "longer than its duplicate window of {window_seconds:g} s{assumed}"
    ),
    events.ServiceNotOffered: (
        "Connection {connection} does not offer the router as a NATS service: {reason}; grant the permissions, or set "
        "service = false under [router]"
    ),
    events.StreamAcksEarly: (
        "Stream {stream} on connection {connection} confirms messages before writing them (persist_mode is async): "
        "a crash of its server can lose messages that count as routed"
    ),
    events.StreamCreated: "Stream {stream} was created on connection {connection}",
    events.AdvisoriesRefused: (
        "Connection {connection} has no permission to subscribe to advisories of JetStream: the causes that servers "
        "report are not logged; everything else works as with the permission"
    ),
    events.QuorumLost: (
        "Connection {connection}: {detail}; nothing is stored or delivered there until more than half of the replicas "
        "are up"
    ),
    events.StreamDiffers: (
        "Stream {stream} on connection {connection} differs from [[streams]] and was left unchanged: {detail}; "
        "change the stream or the configuration"
    ),
    events.StreamNotMade: (
        "Stream {stream} could not be looked up or created on connection {connection}: {reason}; retrying"
    ),
    events.StreamWentBack: (
        "Route {route}: stream {stream} was recreated, purged or restored: {detail}; its messages are routed as new"
    ),
    events.FaultInjectionEnabled: "FAULT INJECTION IS ENABLED: anyone who reaches {page} can make this router fail",
    events.FaultInjected: "Injecting {fault} into {operation} with probability {probability:g}, {until_cleared}",
    events.FaultsCleared: "Injected faults were cleared: {operation}",
    events.SettingIgnored: "{key} {detail}",
    events.PositionNotSaved: ("No checkpoint of consumer {consumer} of route {route} was saved, retrying: {detail}"),
    events.HangupIgnored: (
        "SIGHUP was ignored when this process started (as under nohup), so it does not reload the configuration; "
        "run with --watch to reload when a file changes"
    ),
    events.InterruptIgnored: (
        "SIGINT was ignored when this process started (as with & in a script), so it does not end the router; "
        "send SIGTERM to drain and end it"
    ),
    events.StatusPageReady: "Status page: {url}",
    events.TapOpened: "Route {route}: a tap was opened from {peer}{by_user}, on {tapped}",
    events.TapClosed: (
        "Route {route}: the tap from {peer}{by_user} was closed: {reason}; {shown:count message} shown, "
        "{left_out} left out"
    ),
    events.RouterReloaded: (
        "Configuration reloaded: added {added}, removed {removed}, changed {changed}; "
        "connections and routes unchanged: {unchanged}{and_unsettled}{and_left}"
    ),
    events.ReloadRefused: ("Configuration not reloaded, the previous one stays in force: {count:count problem} found"),
    events.RestartNeeded: "Configuration reloaded. Changes to {keys} take effect only after a restart",
    events.EmbeddedServerLost: "The embedded nats-server {reason}; restarting it in {delay_ms} ms",
    events.EmbeddedServerRestarted: "The embedded nats-server is running again, pid {pid}",
    events.WorkerStarted: "Worker {worker} started, pid {pid}",
    events.WorkerLost: (
        "Worker {worker} (pid {pid}) {reason}; restarting it in {delay_ms} ms. Unsettled when it ended: "
        "{dropped:count publish|publishes} dropped, {returned:count message} returned to streams, "
        "{lost:count message} lost"
    ),
    events.WorkerLostInHandler: (
        "Worker {worker} (pid {pid}) ended while the handler of route {route} had {which_message}; "
        "{deaths:count process has|processes have} ended with only this message in a handler; {next_try}"
    ),
    events.RouterStarted: "Router {name} is running: {connections:count connection}, {routes:count route}",
    events.HandlerLeftBehind: (
        "Route {route} ended before {count:count call} of its handler returned; "
        "messages from a stream are redelivered, others are lost"
    ),
    events.LifespanLost: "The lifespan {detail}{raised}: the router drains and ends",
    events.TasksLeftBehind: (
        "Handlers have left {count:count task} running on the asyncio loop, at {places}; cancelled, since the router "
        "has ended"
    ),
    events.SignalRestored: (
        "{signal} was set to {taken_by}; the router restored its own signal handler, without which it can't drain; "
        "handlers and their libraries must leave signals alone"
    ),
    events.LoopBlocked: (
        "{by_route}the event loop has been blocked for {blocked_seconds:g} s{at_message}{raised}: "
        "nothing is sent, received or answered meanwhile{in_a_thread}"
    ),
    events.AsyncioLoopBlocked: (
        "{by_route}the asyncio loop has been blocked for {blocked_seconds:g} s{at_message}{raised}: other handlers on "
        "asyncio wait meanwhile; run blocking code with asyncio.to_thread, or as a plain def with `thread = true`"
    ),
    events.RouterNotReady: "Router is not ready ({count:count reason}): {reasons}",
    events.RouterReady: "Router is ready: all connections and routes can deliver messages{again}",
    events.RouterDraining: "Router is draining {pending_count:count operation}, for at most {timeout_seconds:g} s",
    events.RouterStopped: "Router stopped, {unsettled:count message} left unsettled{and_redelivered}",
}


IN_A_THREAD = (
    "; run blocking code in a thread: a plain def with `thread = true` in its route, or trio.to_thread.run_sync in an "
    "async def"
)
"""Advice for a handler that blocks the event loop."""


def sentence(event: Event) -> str:
    """Return the sentence of an event. For a kind without one, as in an embedding program, return its help text."""
    template = SENTENCES.get(type(event))
    if template is None:
        return (type(event).__doc__ or type(event).__name__).strip().splitlines()[0]
    fields = {"connection": None, "route": None, **_details(event)}
    counted = {name: _counted(value) for name, value in fields.items()}
    text = template.format_map(_Parts(counted))
    return text[:1].upper() + text[1:] if template.startswith("{by_route}") else text


def _details(event: Event) -> dict[str, Any]:
    fields = dict(event.details())
    server = fields.get("server")
    if server and "://" not in server:
        fields["server"] = f"nats://{server}"  # servers announce each other without a scheme
    return fields


class _Count(int):
    """A number that is formatted with its noun: `{:count attempt}` gives `1 attempt` or `2 attempts`.

    `{:count message was|messages were}` has both forms for irregular plurals.
    """

    def __format__(self, form: str) -> str:
        word, _, noun = form.partition(" ")
        if word != "count":
            return format(int(self), form)
        one, _, several = noun.partition("|")
        return f"{int(self)} {one}" if self == 1 else f"{int(self)} {several or one + 's'}"


class _Parts(dict[str, Any]):
    """The fields of an event, and parts of sentences that are empty if a field is absent."""

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
    """Return the text of the error up to its cure, with the server's address."""
    problem, address = fields["detail"].partition("; ")[0], fields["server"].rpartition("://")[2]
    return str(problem) if address in problem else f"{problem}, at {address}"


def _cure(fields: Mapping[str, Any]) -> str:
    _, mark, cure = fields["detail"].partition("; ")
    return f"{mark}{cure}"


_AFTER_THE_ROUND: Mapping[str, str] = {
    "keep_trying": "it keeps trying",
    "stop": 'the router stops (on_reconnect_exhausted = "stop")',
}

_WHEN_FULL: Mapping[str, str] = {
    reasons.DROPPED_OLDEST: "the oldest operations were dropped",
    reasons.REJECTED: "new publishes are rejected",
    reasons.BLOCKED: "publishers wait for room",
}


def _advice(fields: Mapping[str, Any]) -> str:
    advice = reasons.advice(fields["reason"])
    return f"; {advice}" if advice else ""


def _tapped(fields: Mapping[str, Any]) -> str:
    kind = f"messages with the fate {fields['fate']}" if "fate" in fields else "all messages"
    where = f" where {excerpt(fields['where'])}" if "where" in fields else ""
    return f"{kind}{where}, {'with' if fields['payloads'] else 'without'} payloads"


_PARTS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "by_route": lambda fields: f"Route {fields['route']}: " if fields["route"] is not None else "",
    "to_subject": lambda fields: f" to {excerpt(fields['subject'])}" if "subject" in fields else "",
    "of_message": lambda fields: f", of message {fields['sequence']} of its stream," if "sequence" in fields else "",
    "which_message": _which_message,
    "raised": _raised,
    "advice": _advice,
    "after_the_round": lambda fields: _AFTER_THE_ROUND.get(fields["action"], fields["action"]),
    "when_full": lambda fields: _WHEN_FULL.get(fields["reason"], fields["reason"]),
    "kept_or_lost": lambda fields: (
        "it stays in its stream and will be redelivered" if "sequence" in fields else "the message is lost"
    ),
    "next_try": lambda fields: (
        "its next attempt, if any is left, handles it alone" if "sequence" in fields else "the message is lost"
    ),
    "until_cleared": lambda fields: f"{fields['times']:count time}" if fields["times"] else "until cleared",
    "and_unsettled": lambda fields: (
        f", {fields['unsettled']:count message} left unsettled" if fields["unsettled"] else ""
    ),
    "and_left": lambda fields: "".join(f"; {one}" for one in fields["left"]),
    "this_stream": lambda fields: f"stream {fields['stream']}" if "stream" in fields else "a stream",
    "assumed": lambda fields: (
        " (the server's default, since it could not be looked up)" if fields["window_assumed"] else ""
    ),
    "at_least": lambda fields: "at least " if fields["window_assumed"] else "",
    "left_waiting": lambda fields: (
        f"{_Count(fields['waiting']):count message waits|messages wait}" if "waiting" in fields else "messages may wait"
    ),
    "after_reset": lambda fields: (
        "messages that the route has settled are acked, not routed again; to route them again, stop the router first"
        if fields["to_sequence"] < fields["from_sequence"]
        else "the messages between them are skipped"
    ),
    "at_message": lambda fields: f", with {_which_message(fields)} in the handler" if "subject" in fields else "",
    "in_a_thread": lambda fields: IN_A_THREAD if fields["route"] is not None else "",
    "and_redelivered": lambda fields: f", {fields['redelivered']} to be redelivered" if fields["redelivered"] else "",
    "again": lambda fields: (
        f"; it was not ready for {fields['not_ready_seconds']:.1f} s" if fields["not_ready_seconds"] else ""
    ),
    "by_user": lambda fields: f" by {excerpt(fields['user'])}" if fields["user"] else "",
    "tapped": _tapped,
    "problem": _problem,
    "cure": _cure,
}


def _counted(value: Any) -> Any:
    """Return a value for use in a sentence: an integer as `_Count`, a tuple as a list of its first names."""
    if type(value) is int:
        return _Count(value)
    if not isinstance(value, tuple):
        return value
    more = f" and {len(value) - NAMES} more" if len(value) > NAMES else ""
    return (", ".join(map(str, value[:NAMES])) or "nothing") + more


def shown(event: Event, *, handler_errors: bool = False) -> dict[str, Any]:
    """Return the fields of an event that may be shown.

    An exception raised by a handler may quote the payload, and payloads never appear in logs. So only its type is
    shown, and a text that was written to be shown, unless `handler_errors` allows its text and traceback.
    """
    fields = _details(event)
    if not handler_errors and isinstance(event, events.MessageFailed) and event.error_type is not None:
        fields.pop("traceback", None)
        if not event.is_public:
            fields.pop("detail", None)
    return fields
