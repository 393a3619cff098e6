"""Events of the router as a whole: its start and end, its workers, reloads, injected faults."""

from __future__ import annotations

from typing import Any

from router_trio.errors.quotes import bounded
from router_trio.events.event import Event, Level

MOST_NAMES = 100
"""Names, or problems, that an event of a reload lists. `count` is of all."""

MOST_REASONS = 20
"""Reasons that `ROUTER_NOT_READY` lists. `count` is of all."""


class FaultInjectionEnabled(Event):
    """This router injects faults on request, for rehearsals. Never leave that on in production."""

    code = "ROUTER_FAULT_INJECTION_ENABLED"
    level = Level.WARN
    page: str


class FaultInjected(Event):
    """A fault was set for an operation; it strikes `times` operations, or with 0 all of them until it is cleared."""

    code = "ROUTER_FAULT_INJECTED"
    level = Level.WARN
    operation: str
    fault: str
    probability: float
    times: int


class FaultsCleared(Event):
    """The fault of an operation was cleared, or all faults were."""

    code = "ROUTER_FAULTS_CLEARED"
    level = Level.WARN
    operation: str


class SettingIgnored(Event):
    """A key of the configuration has no effect any more; `detail` says what to write instead."""

    code = "ROUTER_SETTING_IGNORED"
    level = Level.WARN
    key: str
    detail: str


class HangupIgnored(Event):
    """SIGHUP reloads nothing, since it was ignored when the process was started, as under `nohup`."""

    code = "ROUTER_HANGUP_IGNORED"
    level = Level.INFO


class SignalRestored(Event):
    """Code in this process, as of a handler or a library, has taken a signal from the router, which took it back.

    `taken_by` is what the signal was set to: `SIG_IGN`, `SIG_DFL`, or the place of a function, which is not called.
    """

    code = "ROUTER_SIGNAL_RESTORED"
    level = Level.WARN
    signal: str
    taken_by: str


class StatusPageReady(Event):
    """The HTTP side answers; `url` is that of the status page."""

    code = "ROUTER_STATUS_PAGE"
    level = Level.INFO
    url: str


class RouterStarted(Event):
    """Each connection has made its first attempt, and each subscription that could be made is active."""

    code = "ROUTER_STARTED"
    level = Level.INFO
    name: str
    connections: int
    routes: int


class LoopBlocked(Event):
    """The event loop has not turned for `blocked_seconds`: a handler at `place` blocks it, or the router's own code.

    Nothing is sent, received or answered meanwhile. `route`, `subject`, `stream` and `sequence` say which message the
    handler has, as far as that is known.
    """

    code = "ROUTER_LOOP_BLOCKED"
    level = Level.ERROR
    blocked_seconds: float
    route: str | None = None
    subject: str | None = None
    stream: str | None = None
    sequence: int | None = None
    place: str | None = None


class RouterNotReady(Event):
    """The router would not deliver every message now: `reasons` are those of `/readyz`, `count` of all of them.

    Emitted when the connections, routes and workers that hold it up are others than a second before.
    """

    code = "ROUTER_NOT_READY"
    level = Level.WARN
    count: int
    reasons: tuple[str, ...]

    def __post_init__(self) -> None:
        self._set("reasons", tuple(map(bounded, self.reasons[:MOST_REASONS])))


class RouterReady(Event):
    """Every connection and every route would deliver a message now: for the first time, or again.

    `reasons` is empty; `not_ready_seconds` is how long the router was not ready, 0 the first time.
    """

    code = "ROUTER_READY"
    level = Level.INFO
    reasons: tuple[str, ...]
    not_ready_seconds: float


class RouterDraining(Event):
    """Shutdown: intake has stopped, and accepted messages are being settled."""

    code = "ROUTER_DRAINING"
    level = Level.INFO
    pending_count: int
    timeout_seconds: float


class RouterStopped(Event):
    """The router has stopped; `ledger` has the counts of every connection. WARN if something was left unsettled.

    `redelivered`: messages that the shutdown gave back to their streams, which redeliver them.
    """

    code = "ROUTER_STOPPED"
    level = Level.INFO
    ledger: dict[str, Any]
    unsettled: int
    redelivered: int = 0

    @property
    def severity(self) -> Level:
        """WARN if something was left unsettled."""
        return Level.WARN if self.unsettled else Level.INFO


class WorkerStarted(Event):
    """A worker process has started, and takes its part of the messages. `restarts`: how often it was started again."""

    code = "ROUTER_WORKER_STARTED"
    level = Level.INFO
    worker: int
    pid: int
    restarts: int


class WorkerLost(Event):
    """A worker process ended by itself, and is started again after `delay_ms`.

    What it had accepted and not settled is settled now: `dropped` publishes; `returned` messages, which their stream
    delivers again; `lost` messages of core subscriptions.
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


class WorkerLostInHandler(Event):
    """A worker that was lost had this message in a handler: that may have ended the process.

    `deaths` is how many processes have ended while no other message was in a handler. A message of a stream is tried
    alone next, and no longer after so many as its route has `attempts`; a message of a core subscription is lost.
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


class RouterReloaded(Event):
    """A reload is done: `added`, `removed` and `changed` name the connections, streams and routes that differ.

    `keys` has each key that differs, with its old and its new value as `router-trio diff` shows them. `unchanged` is
    the number of connections and routes that noticed nothing, `unsettled` the number of messages that what has ended
    could not settle in time.
    """

    code = "ROUTER_RELOADED"
    level = Level.INFO
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    unchanged: int
    unsettled: int
    keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("added", "removed", "changed"):
            self._set(name, getattr(self, name)[:MOST_NAMES])
        self._set("keys", tuple(map(bounded, self.keys[:MOST_NAMES])))


class ReloadRefused(Event):
    """A reload was refused and has changed nothing: `problems` says what is wrong with the configuration."""

    code = "ROUTER_RELOAD_REFUSED"
    level = Level.ERROR
    count: int
    problems: tuple[str, ...]

    def __post_init__(self) -> None:
        self._set("problems", tuple(map(bounded, self.problems[:MOST_NAMES])))


class RestartNeeded(Event):
    """Of a configuration that was reloaded, these `keys` have no effect before the process is started again."""

    code = "ROUTER_RESTART_NEEDED"
    level = Level.WARN
    keys: tuple[str, ...]
