"""The metrics, as one table: names, types, labels, help, and how each is read.

Metrics are defined here only: `/metrics` is rendered from the table and `router-trio contract` prints it, so the two
can't differ. A raw subject, a message id or an error text is never a label value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from router_trio.errors import reasons
from router_trio.message import FATES
from router_trio.outbox.ledger import DROP_REASONS, OPERATIONS
from router_trio.protocol.metadata import package_version
from router_trio.states import FILTER_REASONS, ROUTE_FATES, RUNNING, UNANSWERED_REASONS
from router_trio.telemetry.metrics import readers
from router_trio.telemetry.metrics.metric import (
    CONNECTIONS,
    ROUTER,
    ROUTES,
    HistogramMetric,
    Labels,
    Metric,
    ProcessMetric,
)
from router_trio.telemetry.view import ConnectionView

BREAKER = ("destination", "destination_connection")

FAILURE_REASONS: Mapping[str, Labels] = {
    "publish": reasons.labelled(reasons.PUBLISHES),
    "publish_with_ack": reasons.labelled(reasons.PUBLISHES_WITH_ACK),
    "ack": reasons.labelled(reasons.ANSWERS),
    "nak": reasons.labelled(reasons.ANSWERS),
    "subscribe": reasons.labelled(reasons.ANSWERS),
}
"""Failure reasons whose series exist from the start, at zero. The series of any other reason begins when it occurs."""


def _gauge(name: str, text: str, number: Callable[[ConnectionView], float]) -> Metric:
    return Metric(name, "gauge", CONNECTIONS, (), text, readers.connection(number))


def _counter(name: str, text: str, number: Callable[[ConnectionView], float]) -> Metric:
    return Metric(name, "counter", CONNECTIONS, (), text, readers.connection(number))


def _operation(operation: str, text: str) -> tuple[Metric, Metric]:
    return (
        _counter(f"router_nats_{operation}_total", f"{text} that succeeded.", readers.succeeded(operation)),
        Metric(
            f"router_nats_{operation}_failures_total",
            "counter",
            CONNECTIONS,
            ("reason",),
            f"{text} that failed, by reason. Not being connected counts as a failure, once per operation.",
            readers.connection_by(FAILURE_REASONS[operation], readers.failed(operation)),
        ),
    )


_OPERATION_TEXTS = {
    "publish": "Core publishes",
    "publish_with_ack": "JetStream publishes",
    "ack": "Acks of source messages",
    "nak": "Naks of source messages",
    "subscribe": "Subscriptions and consumers of routes",
}

_QUEUE = "router_nats_pending_operations"

TABLE: tuple[Metric | HistogramMetric | ProcessMetric, ...] = (
    _gauge(
        "router_nats_connection_status",
        "State of the connection: 0 disconnected, 0.5 reconnecting, 1 connected.",
        lambda one: one.state.gauge,
    ),
    _gauge(f"{_QUEUE}_count", "Operations accepted but not yet written.", lambda one: one.outbox.pending),
    _gauge(
        "router_nats_in_flight_operations_count",
        "Operations written but not yet confirmed.",
        lambda one: one.outbox.in_flight,
    ),
    _gauge(f"{_QUEUE}_limit", "Maximum number of pending operations.", lambda one: one.outbox.max_operations),
    _gauge("router_nats_pending_bytes", "Size of the pending operations in bytes.", readers.pending_bytes),
    _gauge(
        "router_nats_pending_bytes_limit",
        "Maximum size of the pending operations in bytes.",
        lambda one: one.outbox.max_bytes,
    ),
    _gauge(
        "router_nats_pending_oldest_age_seconds",
        "Seconds since the oldest pending operation was accepted; 0 if nothing is pending.",
        readers.oldest_age,
    ),
    _gauge(
        "router_ledger_unbalanced",
        "Accepted - settled - pending - in flight. Always 0; any other value is a bug in the router.",
        readers.unbalanced,
    ),
    _counter(
        "router_nats_connection_established_total",
        "First connects since the process started. Later ones count as restored.",
        lambda one: one.state.established,
    ),
    _counter("router_nats_connection_lost_total", "Established connections lost.", lambda one: one.state.lost),
    _counter("router_nats_connection_restored_total", "Successful reconnects.", lambda one: one.state.restored),
    _counter(
        "router_nats_connection_failures_total",
        "Failed attempts to connect or reconnect.",
        lambda one: one.state.failures,
    ),
    _counter("router_nats_reconnect_attempts_total", "Reconnect attempts.", lambda one: one.state.reconnect_attempts),
    _counter(
        "router_nats_reconnect_failures_total",
        "Failed reconnect attempts.",
        lambda one: one.state.reconnect_failures,
    ),
    _counter(
        "router_nats_reconnection_exhausted_total",
        "Rounds of reconnect attempts in which every attempt failed.",
        lambda one: one.state.exhausted,
    ),
    *(row for operation in OPERATIONS for row in _operation(operation, _OPERATION_TEXTS[operation])),
    _counter(
        f"{_QUEUE}_retry_total",
        "Operations that were queued or unconfirmed at a reconnect, to be sent after it.",
        lambda one: one.outbox.counters.retried,
    ),
    _counter(
        f"{_QUEUE}_retry_success_total",
        "Operations confirmed in the drain after a reconnect.",
        lambda one: one.outbox.counters.retry_succeeded,
    ),
    _counter(
        f"{_QUEUE}_retry_failed_total",
        "Operations that failed in the drain after a reconnect.",
        lambda one: one.outbox.counters.retry_failed,
    ),
    Metric(
        f"{_QUEUE}_dropped_total",
        "counter",
        CONNECTIONS,
        ("reason",),
        "Pending operations dropped, by reason.",
        readers.connection_by(DROP_REASONS, lambda one: one.outbox.counters.dropped),
    ),
    _counter(
        "router_nats_operations_accepted_total",
        "Publishes accepted.",
        lambda one: one.outbox.ledger.accepted,
    ),
    Metric(
        "router_nats_operations_settled_total",
        "counter",
        CONNECTIONS,
        ("fate",),
        "Accepted publishes settled, by fate.",
        readers.connection_by(FATES, lambda one: one.outbox.ledger.settled),
    ),
    Metric(
        "router_messages_received_total",
        "counter",
        ROUTES,
        (),
        "Messages received, excluding redeliveries of messages that are in hand or settled.",
        readers.route(lambda route: route.received),
    ),
    Metric(
        "router_messages_routed_total",
        "counter",
        ROUTES,
        ("destination",),
        "Messages confirmed by a destination; the label is the template of its subject.",
        readers.route_by((), lambda route: route.routed),
    ),
    Metric(
        "router_messages_failed_total",
        "counter",
        ROUTES,
        ("reason",),
        "Failed attempts to route a message, by reason.",
        readers.route_by(reasons.labelled(reasons.FAILURES), lambda route: route.failed),
    ),
    Metric(
        "router_mirror_failures_total",
        "counter",
        ROUTES,
        ("reason",),
        "Mirror copies that were not delivered, by reason. The message itself does not fail because of them.",
        readers.route_by(reasons.labelled(reasons.MIRRORS), lambda route: route.mirror_failed),
    ),
    Metric(
        "router_messages_dead_lettered_total",
        "counter",
        ROUTES,
        (),
        "Messages given up whose dead letter was stored.",
        readers.route(lambda route: route.dead_lettered),
    ),
    Metric(
        "router_messages_given_up_total",
        "counter",
        ROUTES,
        ("reason",),
        "Messages that will not be retried, with or without a dead letter, by the reason of their last failure.",
        readers.given_up(tuple(name for name in reasons.labelled(reasons.FAILURES) if name in reasons.OF_THE_SENDER)),
    ),
    Metric(
        "router_messages_filtered_total",
        "counter",
        ROUTES,
        ("reason",),
        "Messages filtered out: `when` was false, the handler returned nothing, or no destination matched.",
        readers.route_by(FILTER_REASONS, lambda route: route.filtered),
    ),
    Metric(
        "router_messages_unanswered_total",
        "counter",
        ROUTES,
        ("reason",),
        "Messages that a route with respond did not answer. Reason no_reply: the message has no reply subject. "
        "Reason reserved_subject: its reply subject is below $, or is an inbox of a router, or is neither an inbox "
        "nor in reply_to.",
        readers.route_by(UNANSWERED_REASONS, lambda route: route.unanswered),
    ),
    Metric(
        "router_route_messages_settled_total",
        "counter",
        ROUTES,
        ("fate",),
        "Messages settled, by fate. Settled + in hand = received, where received includes every redelivery.",
        readers.route_by(ROUTE_FATES, lambda route: route.settled),
    ),
    Metric(
        "router_route_in_hand_count",
        "gauge",
        ROUTES,
        (),
        "Messages received but not yet settled.",
        readers.route(lambda route: route.in_hand),
    ),
    Metric(
        "router_route_retrying_count",
        "gauge",
        ROUTES,
        (),
        "Messages that failed and will be retried.",
        readers.route(lambda route: route.retrying[0]),
    ),
    Metric(
        "router_route_retrying_oldest_seconds",
        "gauge",
        ROUTES,
        (),
        "Seconds since the first failure of the message that has been retried for longest; 0 if there is none.",
        readers.route(lambda route: route.retrying[1]),
    ),
    Metric(
        "router_route_in_flight_limit",
        "gauge",
        ROUTES,
        (),
        "Maximum number of messages of the stream in flight (max_in_flight); 0 for a route from a subject.",
        readers.route(lambda route: route.in_flight_limit),
    ),
    Metric(
        "router_route_behind_count",
        "gauge",
        ROUTES,
        (),
        "Messages of the stream that match and are not settled, at the server or in hand, at most 5 s ago. Only for "
        "routes from a stream; absent while it is not known.",
        readers.behind(lambda behind: behind.messages),
    ),
    Metric(
        "router_route_behind_seconds",
        "gauge",
        ROUTES,
        (),
        "Age of the oldest message by which the route is behind, by the time when its stream stored it; 0 if there is "
        "none. Absent where router_route_behind_count is.",
        readers.behind(lambda behind: behind.seconds),
    ),
    Metric(
        "router_route_partitions_count",
        "gauge",
        ROUTES,
        (),
        "Partitions of the route (partitions), over all processes that share them. Only for routes with partitions.",
        readers.partitions(lambda partitions: partitions.count),
    ),
    Metric(
        "router_route_partitions_led_count",
        "gauge",
        ROUTES,
        (),
        "Partitions that this process leads: it has their lead, or no process has it and there is nothing to deliver. "
        "The sum over all processes is router_route_partitions_count. Only for routes with partitions.",
        readers.partitions(lambda partitions: len(partitions.led)),
    ),
    Metric(
        "router_route_partitions_wanted_count",
        "gauge",
        ROUTES,
        (),
        "Partitions that are the share of this process, and that it does not lead. Only for routes with partitions.",
        readers.partitions(lambda partitions: len(partitions.wanted)),
    ),
    Metric(
        "router_route_partitions_members_count",
        "gauge",
        ROUTES,
        (),
        "Processes that share the partitions of the route, as this process sees them; 0 before it has joined. Only for "
        "routes with partitions.",
        readers.partitions(lambda partitions: len(partitions.members)),
    ),
    Metric(
        "router_route_partitions_uncopied_count",
        "gauge",
        ROUTES,
        (),
        "Messages that the server has not copied yet to the stream with the partitions; the same in every process, and "
        "0 if the stream itself has the partitions. Only for routes with partitions.",
        readers.partitions(lambda partitions: partitions.uncopied),
    ),
    Metric(
        "router_route_schedules_stored_total",
        "counter",
        ROUTES,
        ("kind",),
        "Schedules that this process stored, by kind: delay (copies for destinations with a delay) or retry (messages "
        "that wait for their next attempt). Only for routes with such a destination, or with a schedule for retries.",
        readers.schedules(lambda schedules: schedules.stored),
    ),
    Metric(
        "router_route_schedules_waiting_count",
        "gauge",
        ROUTES,
        ("kind",),
        "Schedules of the route that its streams had and had not published yet, at most a minute ago, whichever "
        "process stored them. Absent while it is not known.",
        readers.schedules(lambda schedules: schedules.waiting),
    ),
    Metric(
        "router_route_schedules_fired_total",
        "counter",
        ROUTES,
        (),
        "Scheduled retries that this process received when they were due. Only for routes with a schedule for retries.",
        readers.retries(lambda schedules: schedules.fired),
    ),
    Metric(
        "router_route_schedules_lost_total",
        "counter",
        ROUTES,
        (),
        "Schedules that left the stream of retries and will not be published, as found by this process. If several "
        "routes share the stream, the route that counted first has them. Only for routes with a schedule for retries.",
        readers.retries(lambda schedules: schedules.lost),
    ),
    Metric(
        "router_route_ledger_unbalanced",
        "gauge",
        ROUTES,
        (),
        "Received - in hand - settled. Always 0; any other value is a bug in the router.",
        readers.route(lambda route: route.received_in_all - route.in_hand - sum(route.settled.values())),
    ),
    Metric(
        "router_route_limited_total",
        "counter",
        ROUTES,
        (),
        "Messages delayed by the rate limit of their route. Only for routes that have a limit.",
        readers.limited(lambda route: route.limited),
    ),
    Metric(
        "router_route_conflicts_total",
        "counter",
        ROUTES,
        (),
        "Values of a KV bucket that were not copied because another writer had written the key later. Only for routes "
        "with last_writer that had one.",
        readers.conflicts,
    ),
    Metric(
        "router_route_limit_waiting_count",
        "gauge",
        ROUTES,
        (),
        "Messages in hand waiting for the rate limit of their route; more may wait in the stream. Only for routes that "
        "have a limit.",
        readers.limited(lambda route: route.waiting_for_limit),
    ),
    Metric(
        "router_breaker_state",
        "gauge",
        ROUTES,
        BREAKER,
        "State of the circuit breaker of a destination: 0 closed, 0.5 half open, 1 open.",
        readers.breaker_states,
    ),
    Metric(
        "router_breaker_opened_total",
        "counter",
        ROUTES,
        BREAKER,
        "Times the circuit breaker of a destination opened. Opening again after a failed probe is not counted.",
        readers.openings,
    ),
    Metric(
        "router_route_running",
        "gauge",
        ROUTES,
        (),
        "1 while the route's subscription or consumer is active, else 0.",
        readers.route(lambda route: float(route.state == RUNNING)),
    ),
    Metric(
        "router_route_ready",
        "gauge",
        ROUTES,
        (),
        "1 while the route would deliver a message (it is running and all its connections are connected), else 0.",
        readers.route_ready,
    ),
    Metric(
        "router_ready",
        "gauge",
        ROUTER,
        (),
        "1 while /readyz answers 200 (every connection and every route would deliver a message), else 0.",
        readers.router(lambda sources: float(sources.ready())),
    ),
    Metric(
        "router_config_reloads_total",
        "counter",
        ROUTER,
        ("outcome",),
        "Configuration reloads since the process started, by outcome: accepted or refused. The start is not counted.",
        readers.reloads,
    ),
    Metric(
        "router_config_last_reload_successful",
        "gauge",
        ROUTER,
        (),
        "1 if the last configuration reload was accepted or none was requested, 0 if it was refused.",
        readers.router(lambda sources: float(sources.view.config.last_error is None)),
    ),
    Metric(
        "router_config_last_reload_timestamp_seconds",
        "gauge",
        ROUTER,
        (),
        "Unix time at which the configuration in force was loaded, at startup or by a reload.",
        readers.router(lambda sources: sources.view.config.loaded_at),
    ),
    Metric(
        "router_config_info",
        "gauge",
        ROUTER,
        ("hash",),
        "Always 1; the label is the hash of the configuration in force. Several series if workers run different ones.",
        lambda sources, _: [((one,), 1.0) for one in sources.view.config.hashes],
    ),
    HistogramMetric(
        "router_route_duration_seconds",
        ROUTES,
        "Seconds from receiving a message to settling it.",
        lambda _, route: route.durations,
    ),
    Metric(
        "router_log_lines_dropped_total",
        "counter",
        ROUTER,
        (),
        "Log lines dropped because stderr did not accept them.",
        readers.router(lambda sources: sources.log_lines_dropped()),
    ),
    Metric(
        "router_spans_dropped_total",
        "counter",
        ROUTER,
        (),
        "Spans dropped because too many were queued or the collector did not accept them.",
        readers.router(lambda sources: sources.spans_dropped()),
    ),
    Metric(
        "router_traces_not_followed_total",
        "counter",
        ROUTER,
        (),
        "Messages sampled by their sender but routed untraced, because there were more than max_traces_per_second.",
        readers.router(lambda sources: sources.traces_not_followed()),
    ),
    Metric(
        "router_traces_not_begun_total",
        "counter",
        ROUTER,
        (),
        "Messages chosen by trace_sample_ratio that started no trace, because there were more than "
        "max_traces_per_second.",
        readers.router(lambda sources: sources.traces_not_begun()),
    ),
    Metric(
        "router_listener_errors_total",
        "counter",
        ROUTER,
        (),
        "Exceptions raised by listeners of events.",
        readers.router(lambda sources: sources.listener_errors()),
    ),
    HistogramMetric(
        "router_event_loop_lag_seconds",
        ROUTER,
        "Scheduling delay of a task in the event loop in seconds, measured ten times a second.",
        lambda sources, _: sources.loop_lags,
    ),
    ProcessMetric("process_cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds."),
    ProcessMetric("process_resident_memory_bytes", "gauge", "Resident memory size in bytes."),
    ProcessMetric("process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes."),
    ProcessMetric("process_open_fds", "gauge", "Number of open file descriptors."),
    ProcessMetric("process_max_fds", "gauge", "Maximum number of open file descriptors."),
    ProcessMetric("process_start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds."),
    Metric(
        "router_info",
        "gauge",
        ROUTER,
        ("version",),
        "Always 1; the label is the version of the router.",
        lambda sources, _: [((package_version(),), 1.0)],
    ),
)
