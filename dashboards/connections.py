"""Connections: when each was away, for how long, and how the attempts to come back went."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards import frame
from dashboards.panels import (
    ALERT_IF_ANY,
    BLUE,
    GREEN,
    ORANGE,
    RED,
    YELLOW,
    Panel,
    bars,
    colored,
    limited,
    lines,
    now,
    number,
    query,
    states,
    steps,
)
from dashboards.queries import events, in_range, of_connection, rate, total

STATUS = of_connection("router_nats_connection_status")
ESTABLISHED = of_connection("router_nats_connection_established_total")
LOST = of_connection("router_nats_connection_lost_total")
RESTORED = of_connection("router_nats_connection_restored_total")
EXHAUSTED = of_connection("router_nats_reconnection_exhausted_total")
FAILURES = of_connection("router_nats_connection_failures_total")
ATTEMPTS = of_connection("router_nats_reconnect_attempts_total")
ATTEMPTS_FAILED = of_connection("router_nats_reconnect_failures_total")

CONNECTION_STATES = ((0, "disconnected", RED), (0.5, "reconnecting", ORANGE), (1, "connected", GREEN))

AWAY = f"sum_over_time(({STATUS} < bool 1)[$__range:$__interval]) * $__interval_ms / 1000"
"""Seconds: the samples at which it was away, times the distance between them."""


def connections() -> Dashboard:
    """Build the dashboard."""
    return frame.build(
        "connections",
        "Connections",
        "The state of each connection over time, its losses, and its attempts to come back.",
        [("State and availability", _state()), ("Events and attempts", _events())],
    )


def _state() -> list[Panel]:
    return [
        states(
            "State",
            "Each connection's state. Reconnecting: it was lost, and attempts are under way.",
            query(f"min by (instance, connection) ({STATUS})", "{{connection}} {{instance}}"),
            CONNECTION_STATES,
            alerts=["RouterConnectionDown"],
        )
        .span(24)
        .height(6),
        number(
            "Connected",
            "Share of the connections that are connected now.",
            "percentunit",
            query(f"avg({STATUS} == bool 1)"),
            ((0, RED), (1, GREEN)),
            alerts=["RouterConnectionDown"],
        ).span(4),
        number(
            "Losses",
            "Live links that died, in the time range.",
            "short",
            now(total(in_range(LOST))),
            ((0, GREEN), (1, ORANGE)),
            alerts=["RouterConnectionFlapping"],
        ).span(4),
        number(
            "Rounds used up",
            "Rounds of reconnecting without success, in the time range. After one the router goes on at its longest "
            "delay, or stops, as its settings say.",
            "short",
            now(total(in_range(EXHAUSTED))),
            ALERT_IF_ANY,
            alerts=["RouterReconnectionExhausted"],
        ).span(4),
        bars(
            "Time away",
            "How long each connection was not connected, in the time range.",
            "s",
            now(f"max by (connection) ({AWAY})", "{{connection}}"),
            ((0, GREEN), (1, ORANGE), (60, RED)),
            alerts=["RouterConnectionDown"],
        )
        .span(6)
        .height(4),
        bars(
            "Availability",
            "Share of the time range in which each connection was connected.",
            "percentunit",
            now(f"min by (connection) (avg_over_time(({STATUS} == bool 1)[$__range:$__interval]))", "{{connection}}"),
            ((0, RED), (0.99, ORANGE), (0.999, GREEN)),
        )
        .max(1)
        .decimals(2)
        .span(6)
        .height(4),
    ]


def _events() -> list[Panel]:
    subscribed = of_connection("router_nats_subscribe_total")
    not_subscribed = of_connection("router_nats_subscribe_failures_total")
    ratio = f"{total(rate(ATTEMPTS_FAILED), 'connection')} / {total(rate(ATTEMPTS), 'connection')}"
    return [
        colored(
            steps(
                lines(
                    "Lost and restored",
                    "Events within the last few scrapes, over all chosen connections. Established is the first "
                    "connect of a process.",
                    "short",
                    query(total(events(ESTABLISHED)), "established"),
                    query(total(events(LOST)), "lost"),
                    query(total(events(RESTORED)), "restored"),
                    query(total(events(EXHAUSTED)), "round used up"),
                    alerts=["RouterConnectionFlapping"],
                )
            ),
            {"established": BLUE, "lost": ORANGE, "restored": GREEN, "round used up": RED},
        ).span(12),
        colored(
            steps(
                lines(
                    "Attempts to connect",
                    "Attempts to connect again and those that failed, and all failed attempts (the first connect's "
                    "included), within the last few scrapes.",
                    "short",
                    query(total(events(ATTEMPTS)), "attempts to reconnect"),
                    query(total(events(ATTEMPTS_FAILED)), "of these failed"),
                    query(total(events(FAILURES)), "failed, first connect included"),
                    alerts=["RouterReconnectFailureRatioHigh"],
                )
            ),
            {"attempts to reconnect": BLUE, "of these failed": RED, "failed, first connect included": ORANGE},
        ).span(12),
        limited(
            lines(
                "Share of failed attempts",
                "Failed of all attempts to connect again; no value while there are none. Over 50 % for long: the "
                "servers are away, or refuse.",
                "percentunit",
                query(ratio, "{{connection}}"),
                alerts=["RouterReconnectFailureRatioHigh"],
            ),
            (0.5, YELLOW),
        )
        .max(1)
        .span(12),
        lines(
            "Subscriptions and consumers",
            "Those of the routes, made anew after each connect, within the last few scrapes.",
            "short",
            query(total(events(subscribed), "connection"), "{{connection}} made"),
            query(total(events(not_subscribed), "connection"), "{{connection}} failed"),
            alerts=["RouterRouteNotRunning"],
        ).span(12),
    ]
