"""Overview: throughput, failures and latency of the routes. The first dashboard to open when on call."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards import frame
from dashboards.panels import ALERT_IF_ANY, GREEN, ORANGE, RED, Panel, heat, lines, now, number, query, states
from dashboards.queries import (
    OF_THE_SENDER,
    events,
    in_range,
    of_connection,
    of_process,
    of_route,
    quantile,
    rate,
    total,
)

RECEIVED = of_route("router_messages_received_total")
ROUTED = of_route("router_messages_routed_total")
FAILED = of_route("router_messages_failed_total")
UNDELIVERED = of_route("router_route_messages_settled_total", 'fate=~"dead_lettered|given_up|lost"')
DURATION = of_route("router_route_duration_seconds_bucket")
STATUS = of_connection("router_nats_connection_status")
RUNNING = of_route("router_route_running")

READY_STATES = ((0, "not ready", RED), (1, "ready", GREEN))
RELOAD_STATES = ((0, "refused", RED), (1, "accepted", GREEN))
ROUTE_STATES = ((0, "not running", RED), (1, "running", GREEN))


def overview() -> Dashboard:
    """Build the dashboard."""
    return frame.build(
        "overview",
        "Overview",
        "Rate, errors and duration of the routes, with the state of the router at a glance.",
        [("At a glance", _glance()), ("Routes: rate, errors, duration", _routes()), ("Routes: state", _state())],
        routes=True,
    )


def _glance() -> list[Panel]:
    pending = of_connection("router_nats_pending_operations_count")
    dropped = of_connection("router_nats_pending_operations_dropped_total")
    unbalanced = of_connection("router_ledger_unbalanced")
    route_unbalanced = of_route("router_route_ledger_unbalanced")
    return [
        number(
            "Routers",
            "Routers that answer scrapes.",
            "short",
            query(f"count({of_process('router_info')})"),
            ((0, RED), (1, GREEN)),
            alerts=["RouterAbsent"],
        ),
        number(
            "Connections down",
            "Connections that are currently not connected, including those that are reconnecting.",
            "short",
            query(f"count({STATUS} < 1) or vector(0)"),
            ALERT_IF_ANY,
            alerts=["RouterConnectionDown"],
        ),
        number(
            "Routes not running",
            "Routes whose subscription or consumer is not active.",
            "short",
            query(f"count({RUNNING} == 0) or vector(0)"),
            ALERT_IF_ANY,
            alerts=["RouterRouteNotRunning"],
        ),
        number("Receiving", "Messages received per second, over all routes.", "mps", query(total(rate(RECEIVED)))),
        number(
            "Not delivered",
            "Messages that were lost, given up or dead-lettered, but not by their own fault, as a share of the "
            "messages received in the time range. The error budget is 0.1 %.",
            "percentunit",
            now(
                f"clamp((sum(increase({UNDELIVERED}[$__range])) - sum({_by_own_fault('increase', '$__range')}))"
                f" / (sum(increase({RECEIVED}[$__range])) > 0), 0, 1) or vector(0)"
            ),
            ((0, GREEN), (0.001, ORANGE), (0.0144, RED)),
            alerts=["RouterErrorBudgetBurnFast", "RouterErrorBudgetBurnSlow"],
        ),
        number(
            "Pending",
            "Operations accepted but not yet written, over all connections.",
            "short",
            query(total(pending)),
            alerts=["RouterPendingQueueHigh"],
        ),
        number(
            "Dropped",
            "Pending operations dropped in the time range: these messages are lost. Prometheus extrapolates this "
            "number slightly; the ledger on the Delivery dashboard is exact.",
            "locale",
            now(total(in_range(dropped))),
            ALERT_IF_ANY,
            alerts=["RouterMessagesDropped"],
        ),
        number(
            "Ledgers off by",
            "Largest imbalance of the ledger of a connection (accepted - settled - pending - in flight) or of a route "
            "(received - settled - in hand). Any value other than 0 is a bug in the router.",
            "short",
            query(f"max(abs({unbalanced}) or abs({route_unbalanced}))"),
            ALERT_IF_ANY,
            alerts=["RouterLedgerUnbalanced", "RouterRouteLedgerUnbalanced"],
        ),
    ]


def _by_own_fault(function: str, window: str) -> str:
    """Return the messages that failed by their own fault for the last time, as the recording rules do."""
    given_up = f"{function}({of_route('router_messages_given_up_total', OF_THE_SENDER)}[{window}])"
    failed = f"{function}({of_route('router_messages_failed_total', OF_THE_SENDER)}[{window}])"
    return f"{given_up} or ({failed} unless ignoring (reason) {of_route('router_messages_given_up_total')})"


def _routes() -> list[Panel]:
    by_own_fault = total(_by_own_fault("rate", "$__rate_interval"), "route")
    undelivered = f"({total(rate(UNDELIVERED), 'route')} - {by_own_fault})"
    ratio = f"clamp({undelivered} / {total(rate(RECEIVED), 'route')}, 0, 1)"
    return [
        lines(
            "Received",
            "Messages received, by route.",
            "mps",
            query(total(rate(RECEIVED), "route"), "{{route}}"),
            alerts=["RouterRouteStalled"],
        ),
        lines(
            "Routed",
            "Messages confirmed by a destination, by route and by the template of the destination's subject. "
            "A message sent to two destinations counts for both.",
            "mps",
            query(total(rate(ROUTED), "route", "destination"), "{{route}} to {{destination}}"),
            alerts=["RouterRouteStalled"],
        ),
        lines(
            "Failed, by reason",
            "Failed attempts to route a message, by reason. The message may be delivered by a later attempt.",
            "mps",
            query(total(rate(FAILED), "reason"), "{{reason}}"),
            alerts=["RouterErrorBudgetBurnFast"],
        ),
        lines(
            "Share not delivered",
            "Messages that were lost, given up or dead-lettered, but not by their own fault, as a share of the "
            "received messages, by route; no value while nothing is received. The error budget is 0.1 %.",
            "percentunit",
            query(ratio, "{{route}}"),
            alerts=["RouterErrorBudgetBurnFast", "RouterErrorBudgetBurnSlow"],
        ),
        lines(
            "Duration",
            "Time from receiving a message to settling it. It includes the time for which the destination was down. "
            "Dots are sampled messages, if Prometheus stores exemplars; a click opens the trace.",
            "s",
            query(quantile(0.5, DURATION, "route"), "{{route}} median"),
            query(quantile(0.99, DURATION, "route"), "{{route}} 99 %").exemplar(True),
        ),
        heat(
            "Duration distribution",
            "Messages per second by duration; a stronger colour means more messages.",
            "s",
            query(total(rate(DURATION), "le"), "{{le}}"),
        ),
    ]


def _state() -> list[Panel]:
    filtered = of_route("router_messages_filtered_total")
    conflicts = of_route("router_route_conflicts_total")
    mirrors = of_route("router_mirror_failures_total")
    unanswered = of_route("router_messages_unanswered_total")
    given_up = of_route("router_messages_given_up_total")
    dead = of_route("router_messages_dead_lettered_total")
    behind = of_route("router_route_behind_count")
    partitions = of_route("router_route_partitions_count")
    led = of_route("router_route_partitions_led_count")
    return [
        states(
            "Routers ready",
            "Whether each router would deliver every message, that is, whether /readyz answers 200. The log has the "
            "reasons too.",
            query(f"min by (instance) ({of_process('router_ready')})", "{{instance}}"),
            READY_STATES,
            alerts=["RouterNotReady"],
        ).span(7),
        states(
            "Last reloads",
            "Whether the last reload of each router was accepted. If it was refused, the previous configuration stays "
            "in force, and /status lists the problems.",
            query(f"min by (instance) ({of_process('router_config_last_reload_successful')})", "{{instance}}"),
            RELOAD_STATES,
            alerts=["RouterReloadRefused"],
        ).span(7),
        states(
            "Routes ready",
            "Whether each route would deliver a message: it is running and all its connections are connected.",
            query(f"min by (instance, route) ({of_route('router_route_ready')})", "{{route}} {{instance}}"),
            READY_STATES,
            alerts=["RouterNotReady"],
        ).span(10),
        states(
            "Routes running",
            "Whether the subscription or consumer of each route is active. It is not while the connection is down.",
            query(f"min by (instance, route) ({RUNNING})", "{{route}} {{instance}}"),
            ROUTE_STATES,
            alerts=["RouterRouteNotRunning"],
        ).span(9),
        lines(
            "Filtered out",
            "Messages filtered out, by reason: `when` was false (when), the handler returned nothing (handler), no "
            "destination matched (unmatched), or a bucket has a newer value (older) or the same one (echo). And values "
            "of buckets that another writer had written later (conflicts).",
            "mps",
            query(total(rate(filtered), "route", "reason"), "{{route}}: {{reason}}"),
            query(total(rate(conflicts), "route"), "{{route}}: conflicts"),
        ).span(5),
        lines(
            "Mirrors failed",
            "Mirror copies that were not delivered, by reason. The message itself does not fail because of them.",
            "mps",
            query(total(rate(mirrors), "route", "reason"), "{{route}}: {{reason}}"),
        ).span(5),
        lines(
            "Unanswered",
            "Messages that a route with `respond` did not answer, by reason: they had no reply subject, or a reserved "
            "one.",
            "mps",
            query(total(rate(unanswered), "route", "reason"), "{{route}}: {{reason}}"),
        ).span(5),
        lines(
            "Behind",
            "Messages of its stream that each route has not settled, at the server or in hand. Routes from a subject "
            "have no value; others none while it is not known. Processes that share a durable know the same messages, "
            "and those that share partitions different ones.",
            "short",
            query(f"{total(f'{behind} and {partitions}', 'route')} or max by (route) ({behind})", "{{route}}"),
            alerts=["RouterRouteBehind"],
        ).span(12),
        lines(
            "Behind, oldest message",
            "Age of the oldest message that each route has not settled, by the time when its stream stored it.",
            "s",
            query(f"max by (route) ({of_route('router_route_behind_seconds')})", "{{route}}"),
            alerts=["RouterRouteBehind"],
        ).span(12),
        lines(
            "Partitions led",
            "Partitions of each route with partitions that each process leads.",
            "short",
            query(total(led, "route", "instance"), "{{route}} {{instance}}"),
            alerts=["RouterPartitionsUnfair"],
        ).span(12),
        lines(
            "Partitions without a leader",
            "Partitions of each route that no process leads, and (not fair) those that a process should lead and does "
            "not.",
            "short",
            query(f"max by (route) ({partitions}) - {total(led, 'route')}", "{{route}}"),
            query(total(of_route("router_route_partitions_wanted_count"), "route"), "{{route}}: not fair"),
            alerts=["RouterPartitionsUnled", "RouterPartitionsUnfair"],
        ).span(12),
        lines(
            "Being retried",
            "Messages that failed and will be retried.",
            "short",
            query(total(of_route("router_route_retrying_count"), "route"), "{{route}}"),
            alerts=["RouterMessageRetriedForLong"],
        ).span(12),
        lines(
            "Oldest retry",
            "Time since the first failure of the message that has been retried for longest.",
            "s",
            query(f"max by (route) ({of_route('router_route_retrying_oldest_seconds')})", "{{route}}"),
            alerts=["RouterMessageRetriedForLong"],
        ).span(12),
        lines(
            "Schedules waiting",
            "Delayed copies, and retries of each route that wait in another stream, as of the last minute. All "
            "processes of a route know the same ones.",
            "short",
            query(f"max by (route, kind) ({of_route('router_route_schedules_waiting_count')})", "{{route}}: {{kind}}"),
        ).span(12),
        lines(
            "Schedules",
            "Schedules that were stored, retries that were received when they were due, and schedules that left the "
            "stream of retries unpublished, within the last few scrapes.",
            "short",
            query(
                total(events(of_route("router_route_schedules_stored_total")), "route", "kind"),
                "{{route}}: {{kind}} stored",
            ),
            query(total(events(of_route("router_route_schedules_fired_total")), "route"), "{{route}}: fired"),
            query(total(events(of_route("router_route_schedules_lost_total")), "route"), "{{route}}: lost"),
        ).span(12),
        lines(
            "Given up",
            "Messages that will not be retried, by the reason of their last failure, and messages whose dead letter "
            "was stored, within the last few scrapes.",
            "short",
            query(total(events(given_up), "route", "reason"), "{{route}}: {{reason}}"),
            query(total(events(dead), "route"), "{{route}}: dead letters stored"),
            alerts=["RouterMessagesDeadLettered", "RouterDeadLettersNotStored"],
        ).span(24),
    ]
