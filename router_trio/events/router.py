"""Events of the router itself: start and end, workers, reloads, injected faults."""

from __future__ import annotations

from typing import Any

from router_trio.errors.quotes import LONGEST_TEXT, bounded, excerpt
from router_trio.events.event import Event, Level
from router_trio.events.sentences import by_route, counted, listed, listed_sentences, named_message, raised_by

MOST_NAMES = 100
"""Maximum number of names or problems that an event of a reload lists. `count` is the number of all."""

MOST_REASONS = 20
"""Maximum number of reasons that `ROUTER_NOT_READY` lists. `count` is the number of all."""

IN_A_THREAD = (
    "run blocking code in a thread: a plain def with `thread = true` in its route, or trio.to_thread.run_sync in an "
    "async def"
)
"""Advice for a handler that blocks the event loop."""


class FaultInjectionEnabled(Event):
    """This router injects faults on request, for rehearsals. Never leave it enabled in production."""

    code = "ROUTER_FAULT_INJECTION_ENABLED"
    level = Level.WARN
    page: str

    def sentence(self) -> str:
        return f"FAULT INJECTION IS ENABLED: anyone who reaches {self.page} can make this router fail"


class FaultInjected(Event):
    """A fault was injected into an operation; it affects `times` operations, or with 0 all of them until cleared."""

    code = "ROUTER_FAULT_INJECTED"
    level = Level.WARN
    operation: str
    fault: str
    probability: float
    times: int

    def sentence(self) -> str:
        until = "once" if self.times == 1 else f"{self.times} times" if self.times else "until cleared"
        return f"Injecting {self.fault} into {self.operation} with probability {self.probability:g}, {until}"


class FaultsCleared(Event):
    """The fault injected into one operation was cleared, or all faults were."""

    code = "ROUTER_FAULTS_CLEARED"
    level = Level.WARN
    operation: str

    def sentence(self) -> str:
        return f"Injected faults were cleared: {self.operation}"


class SettingIgnored(Event):
    """A key of the configuration has no effect; `detail` says why, and what to write instead."""

    code = "ROUTER_SETTING_IGNORED"
    level = Level.WARN
    key: str
    detail: str

    def sentence(self) -> str:
        return f"{self.key} {self.detail}"


class PositionNotSaved(Event):
    """The checkpoint of a consumer could not be saved. The last one stays, and each interval of it tries again.

    Emitted once until a checkpoint is saved.
    """

    code = "ROUTER_POSITION_NOT_SAVED"
    level = Level.WARN
    consumer: str
    route: str
    detail: str

    def sentence(self) -> str:
        return f"No checkpoint of consumer {self.consumer} of route {self.route} was saved, retrying: {self.detail}"


class HangupIgnored(Event):
    """SIGHUP does not reload the configuration, because it was ignored when the process started, as under `nohup`."""

    code = "ROUTER_HANGUP_IGNORED"
    level = Level.INFO

    def sentence(self) -> str:
        return (
            "SIGHUP was ignored when this process started (as under nohup), so it does not reload the configuration; "
            "run with --watch to reload when a file changes"
        )


class InterruptIgnored(Event):
    """SIGINT does not end the router, because it was ignored when the process started, as with `&` in a script."""

    code = "ROUTER_INTERRUPT_IGNORED"
    level = Level.INFO

    def sentence(self) -> str:
        return (
            "SIGINT was ignored when this process started (as with & in a script), so it does not end the router; "
            "send SIGTERM to drain and end it"
        )


class SignalRestored(Event):
    """A handler or a library replaced a signal handler of the router, which restored its own.

    `taken_by` is what the signal was set to: `SIG_IGN`, `SIG_DFL`, or the place of a function, which is not called.
    """

    code = "ROUTER_SIGNAL_RESTORED"
    level = Level.WARN
    signal: str
    taken_by: str

    def sentence(self) -> str:
        return (
            f"{self.signal} was set to {self.taken_by}; the router restored its own signal handler, without which it "
            "can't drain; handlers and their libraries must leave signals alone"
        )


class StatusPageReady(Event):
    """The HTTP server is listening; `url` is the address of the status page."""

    code = "ROUTER_STATUS_PAGE"
    level = Level.INFO
    url: str

    def sentence(self) -> str:
        return f"Status page: {self.url}"


class TapEvent(Event):
    """The base of events about one tap on a route, by a client at `peer`."""

    route: str
    peer: str
    user: str

    @property
    def _client(self) -> str:
        return f"{self.peer} by {excerpt(self.user)}" if self.user else self.peer


class TapOpened(TapEvent):
    """`router-trio tap`, or another client at `peer`, begins to show messages of a route.

    `user` is its user, as the client reports it. `fate` and `where` choose the messages; `payloads` is True if their
    payloads are shown as well.
    """

    code = "ROUTER_TAP_OPENED"
    level = Level.INFO
    fate: str | None
    where: str | None
    payloads: bool

    def __post_init__(self) -> None:
        for name in ("user", "where"):
            text = getattr(self, name)
            self._set(name, None if text is None else excerpt(text, LONGEST_TEXT))

    def sentence(self) -> str:
        messages = "all messages" if self.fate is None else f"messages with the fate {self.fate}"
        where = "" if self.where is None else f" where {excerpt(self.where)}"
        return (
            f"Route {self.route}: a tap was opened from {self._client}, on {messages}{where}, "
            f"{'with' if self.payloads else 'without'} payloads"
        )


class TapClosed(TapEvent):
    """A tap on a route has ended, for this `reason`.

    `shown` is the number of messages that were shown, `left_out` the number of those that were only counted: they were
    settled meanwhile, and neither shown nor compared with `where`.
    """

    code = "ROUTER_TAP_CLOSED"
    level = Level.INFO
    reason: str
    shown: int
    left_out: int

    def sentence(self) -> str:
        return (
            f"Route {self.route}: the tap from {self._client} has ended: {self.reason}; "
            f"{counted(self.shown, 'message')} shown, {self.left_out} left out"
        )


class RouterStarted(Event):
    """Each connection has made its first attempt, and each subscription that could be made is active."""

    code = "ROUTER_STARTED"
    level = Level.INFO
    name: str
    connections: int
    routes: int

    def sentence(self) -> str:
        return (
            f"Router {self.name} is running: {counted(self.connections, 'connection')}, {counted(self.routes, 'route')}"
        )


class BlockedEvent(Event):
    """The base of events about a loop that a handler blocks: for how long, where, and with which message in hand."""

    blocked_seconds: float
    route: str | None = None
    subject: str | None = None
    stream: str | None = None
    sequence: int | None = None
    place: str | None = None

    def _blocked(self, loop: str) -> str:
        message = named_message(self.subject, self.stream, self.sequence)
        in_handler = "" if self.subject is None else f", with {message} in the handler"
        return f"the {loop} has been blocked for {self.blocked_seconds:g} s{in_handler}{raised_by(None, self.place)}"


class LoopBlocked(BlockedEvent):
    """The event loop has been blocked for `blocked_seconds` by a handler at `place`, or by the router's own code.

    Nothing is sent, received or answered meanwhile. `route`, `subject`, `stream` and `sequence` name the message in the
    handler, as far as it is known.
    """

    code = "ROUTER_LOOP_BLOCKED"
    level = Level.ERROR

    def sentence(self) -> str:
        text = f"{self._blocked('event loop')}: nothing is sent, received or answered meanwhile"
        return by_route(self.route, text if self.route is None else f"{text}; {IN_A_THREAD}")


class AsyncioLoopBlocked(BlockedEvent):
    """The asyncio loop of handlers has been blocked for `blocked_seconds` by a handler at `place`.

    Other handlers on asyncio wait meanwhile; everything else continues. `route`, `subject`, `stream` and `sequence`
    name the message in the handler, as far as it is known.
    """

    code = "ROUTER_ASYNCIO_BLOCKED"
    level = Level.ERROR

    def sentence(self) -> str:
        text = f"{self._blocked('asyncio loop')}: other handlers on asyncio wait meanwhile; run blocking code with "
        return by_route(self.route, f"{text}asyncio.to_thread, or as a plain def with `thread = true`")


class TasksLeftBehind(Event):
    """Handlers have left tasks running on their asyncio loop, which were cancelled at the end of the router.

    `places` are where the first of them waited.
    """

    code = "ROUTER_TASKS_LEFT_BEHIND"
    level = Level.WARN
    count: int
    places: tuple[str, ...]

    def sentence(self) -> str:
        places = listed(tuple(dict.fromkeys(self.places)))  # those of equal tasks are equal
        elsewhere = " and elsewhere" if self.count > len(self.places) else ""
        return (
            f"Handlers have left {counted(self.count, 'task')} running on the asyncio loop, at {places}{elsewhere}; "
            "cancelled, since the router has ended"
        )


class LifespanLost(Event):
    """The lifespan has failed or ended while the router was running. The router drains, and ends with this error."""

    code = "ROUTER_LIFESPAN_LOST"
    level = Level.ERROR
    detail: str
    place: str | None = None

    def sentence(self) -> str:
        place = "" if self.place is None else f" ({self.place})"
        return f"The lifespan {self.detail}{place}: the router drains and ends"


class RouterNotReady(Event):
    """The router can't deliver every message now. `reasons` are those of `/readyz`, `count` is the number of all.

    Emitted when the set of connections, routes and workers that are not ready differs from that of a second before.
    """

    code = "ROUTER_NOT_READY"
    level = Level.WARN
    count: int
    reasons: tuple[str, ...]

    def __post_init__(self) -> None:
        self._set("reasons", tuple(map(bounded, self.reasons[:MOST_REASONS])))

    def sentence(self) -> str:
        return f"Router is not ready ({counted(self.count, 'reason')}): {listed_sentences(self.reasons, self.count)}"


class RouterReady(Event):
    """All connections and routes can deliver messages, for the first time or again.

    `reasons` is empty; `not_ready_seconds` is how long the router was not ready, 0 the first time.
    """

    code = "ROUTER_READY"
    level = Level.INFO
    reasons: tuple[str, ...]
    not_ready_seconds: float

    def sentence(self) -> str:
        again = f"; it was not ready for {self.not_ready_seconds:.1f} s" if self.not_ready_seconds else ""
        return f"Router is ready: all connections and routes can deliver messages{again}"


class RouterDraining(Event):
    """Shutdown: intake has stopped, and accepted messages are being settled."""

    code = "ROUTER_DRAINING"
    level = Level.INFO
    pending_count: int
    timeout_seconds: float

    def sentence(self) -> str:
        return f"Router is draining {counted(self.pending_count, 'operation')}, for at most {self.timeout_seconds:g} s"


class RouterStopped(Event):
    """The router has stopped; `ledger` has the counts of every connection. WARN if messages were left unsettled.

    `redelivered`: messages that the shutdown returned to their streams, which redeliver them.
    """

    code = "ROUTER_STOPPED"
    level = Level.INFO
    ledger: dict[str, Any]
    unsettled: int
    redelivered: int = 0

    @property
    def severity(self) -> Level:
        """Return WARN if messages were left unsettled."""
        return Level.WARN if self.unsettled else Level.INFO

    def sentence(self) -> str:
        redelivered = f", {self.redelivered} to be redelivered" if self.redelivered else ""
        return f"Router stopped, {counted(self.unsettled, 'message')} left unsettled{redelivered}"


class EmbeddedServerLost(Event):
    """The server of `--embedded-nats` ended unexpectedly, or could not be restarted; tried again after `delay_ms`."""

    code = "ROUTER_SERVER_LOST"
    level = Level.ERROR
    reason: str
    delay_ms: int

    def sentence(self) -> str:
        reason = excerpt(self.reason, LONGEST_TEXT)  # may have lines of the server's log
        return f"The embedded nats-server {reason}; restarting it in {self.delay_ms} ms"


class EmbeddedServerRestarted(Event):
    """The server of `--embedded-nats` is running again, with the same port, password and store."""

    code = "ROUTER_SERVER_RESTARTED"
    level = Level.INFO
    pid: int

    def sentence(self) -> str:
        return f"The embedded nats-server is running again, pid {self.pid}"


class WorkerStarted(Event):
    """A worker process has started and receives its share of the messages. `restarts`: how often it was restarted."""

    code = "ROUTER_WORKER_STARTED"
    level = Level.INFO
    worker: int
    pid: int
    restarts: int

    def sentence(self) -> str:
        return f"Worker {self.worker} started, pid {self.pid}"


class WorkerLost(Event):
    """A worker process ended unexpectedly and is restarted after `delay_ms`.

    Its unsettled messages are settled now: `dropped` publishes; `returned` messages, which their stream redelivers;
    `lost` messages of core subscriptions.
    """

    code = "ROUTER_WORKER_LOST"
    level = Level.ERROR
    worker: int
    pid: int
    reason: str
    delay_ms: int
    dropped: int
    returned: int
    lost: int

    def sentence(self) -> str:
        return (
            f"Worker {self.worker} (pid {self.pid}) {self.reason}; restarting it in {self.delay_ms} ms. Unsettled when "
            f"it ended: {counted(self.dropped, 'publish', 'publishes')} dropped, {counted(self.returned, 'message')} "
            f"returned to streams, {counted(self.lost, 'message')} lost"
        )


class WorkerLostInHandler(Event):
    """A worker ended while this message was in a handler, which may have ended the process.

    `deaths` is how many processes have ended with only this message in a handler. A message of a stream is next handled
    alone, until the `attempts` of its route are used up; a message of a core subscription is lost.
    """

    code = "ROUTER_WORKER_LOST_IN_HANDLER"
    level = Level.ERROR
    worker: int
    pid: int
    route: str
    subject: str
    stream: str | None
    sequence: int | None
    deaths: int

    def sentence(self) -> str:
        message = named_message(self.subject, self.stream, self.sequence)
        ended = counted(self.deaths, "process", "processes")
        alone = f"; it was the only message in a handler when {ended} ended" if self.deaths else ""
        then = "the message is lost" if self.sequence is None else "its next attempt, if any is left, handles it alone"
        return (
            f"Worker {self.worker} (pid {self.pid}) ended while the handler of route {self.route} had {message}"
            f"{alone}; {then}"
        )


class RouterReloaded(Event):
    """A reload is done: `added`, `removed` and `changed` name the connections, streams and routes that differ.

    `keys` has each key that differs, with its old and its new value as `router-trio diff` shows them. `unchanged` is
    the number of connections and routes that were not affected, `unsettled` the number of messages that the connections
    and routes that ended could not settle in time. `left` is what routes leave behind on servers: durables that no
    route reads any more, and retries that wait where the new settings schedule none.
    """

    code = "ROUTER_RELOADED"
    level = Level.INFO
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    unchanged: int
    unsettled: int
    keys: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("added", "removed", "changed"):
            self._set(name, getattr(self, name)[:MOST_NAMES])
        for name in ("keys", "left"):
            self._set(name, tuple(map(bounded, getattr(self, name)[:MOST_NAMES])))

    def sentence(self) -> str:
        added, removed, changed = (listed(each, most=MOST_NAMES) for each in (self.added, self.removed, self.changed))
        unsettled = f", {counted(self.unsettled, 'message')} left unsettled" if self.unsettled else ""
        left = "".join(f"; {text}" for text in self.left)
        return (
            f"Configuration reloaded: added {added}, removed {removed}, changed {changed}; "
            f"connections and routes unchanged: {self.unchanged}{unsettled}{left}"
        )


class ReloadRefused(Event):
    """A reload was refused and nothing was changed: `problems` lists what is wrong with the configuration."""

    code = "ROUTER_RELOAD_REFUSED"
    level = Level.ERROR
    count: int
    problems: tuple[str, ...]

    def __post_init__(self) -> None:
        self._set("problems", tuple(map(bounded, self.problems[:MOST_NAMES])))

    def sentence(self) -> str:
        return f"Configuration not reloaded, the previous one stays in force: {counted(self.count, 'problem')} found"


class RestartNeeded(Event):
    """The configuration was reloaded, but changes to these `keys` take effect only after a restart."""

    code = "ROUTER_RESTART_NEEDED"
    level = Level.WARN
    keys: tuple[str, ...]

    def sentence(self) -> str:
        return f"Configuration reloaded. Changes to {listed(self.keys)} take effect only after a restart"
