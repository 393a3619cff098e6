"""Connections: when each was down, for how long, and how its reconnect attempts went."""

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
"""Seconds of downtime: the number of samples at which the connection was down, times the time between samples."""


def connections() -> Dashboard:
    """Build the dashboard."""
    return frame.build(
        "connections",
        "Connections",
        "The state of each connection over time, its losses, and its reconnect attempts.",
        [("State and availability", _state()), ("Events and attempts", _events())],
    )


def _state() -> list[Panel]:
    return [
        states(
            "State",
            "State of each connection. Reconnecting means that it was lost and the router is trying to reconnect.",
            query(f"min by (instance, connection) ({STATUS})", "{{connection}} {{instance}}"),
            CONNECTION_STATES,
            alerts=["RouterConnectionDown"],
        )
        .span(24)
        .height(6),
        number(
            "Connected",
            "Share of connections that are currently connected.",
            "percentunit",
            query(f"avg({STATUS} == bool 1)"),
            ((0, RED), (1, GREEN)),
            alerts=["RouterConnectionDown"],
        ).span(4),
        number(
            "Losses",
            "Established connections lost in the time range.",
            "short",
            now(total(in_range(LOST))),
            ((0, GREEN), (1, ORANGE)),
            alerts=["RouterConnectionFlapping"],
        ).span(4),
        number(
            "Failed rounds",
            "Rounds of reconnect attempts that failed completely, in the time range. After such a round the router "
            "keeps trying at its longest delay, or stops, depending on on_reconnect_exhausted.",
            "short",
            now(total(in_range(EXHAUSTED))),
            ALERT_IF_ANY,
            alerts=["RouterReconnectionExhausted"],
        ).span(4),
        bars(
            "Downtime",
            "Time for which each connection was not connected, in the time range.",
            "s",
            now(f"max by (connection) ({AWAY})", "{{connection}}"),
            ((0, GREEN), (1, ORANGE), (60, RED)),
            alerts=["RouterConnectionDown"],
        )
        .span(6)
        .height(4),
        bars(
            "Availability",
            "Share of the time range for which each connection was connected.",
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
                    "Events within the last few scrapes, summed over the selected connections. Established is the "
                    "first connect of a process.",
                    "short",
                    query(total(events(ESTABLISHED)), "established"),
                    query(total(events(LOST)), "lost"),
                    query(total(events(RESTORED)), "restored"),
                    query(total(events(EXHAUSTED)), "round failed"),
                    alerts=["RouterConnectionFlapping"],
                )
            ),
            {"established": BLUE, "lost": ORANGE, "restored": GREEN, "round failed": RED},
        ).span(12),
        colored(
            steps(
                lines(
                    "Attempts to connect",
                    "Reconnect attempts, failed reconnect attempts, and all failed attempts including the first "
                    "connect, within the last few scrapes.",
                    "short",
                    query(total(events(ATTEMPTS)), "reconnect attempts"),
                    query(total(events(ATTEMPTS_FAILED)), "failed reconnect attempts"),
                    query(total(events(FAILURES)), "all failed attempts"),
                    alerts=["RouterReconnectFailureRatioHigh"],
                )
            ),
            {"reconnect attempts": BLUE, "failed reconnect attempts": RED, "all failed attempts": ORANGE},
        ).span(12),
        limited(
            lines(
                "Share of failed attempts",
                "Share of reconnect attempts that failed; no value while there are none. If it stays above 50 %, the "
                "servers are down or refuse the connection.",
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
            "Subscriptions and consumers opened for routes within the last few scrapes. Each connect opens all of them "
            "again.",
            "short",
            query(total(events(subscribed), "connection"), "{{connection}} opened"),
            query(total(events(not_subscribed), "connection"), "{{connection}} failed"),
            alerts=["RouterRouteNotRunning"],
        ).span(12),
    ]
