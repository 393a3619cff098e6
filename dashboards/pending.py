"""Pending: how full the queues are, the age of the oldest operation, and how they drain."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards import frame
from dashboards.panels import (
    ALERT_IF_ANY,
    BLUE,
    GREEN,
    ORANGE,
    RED,
    Panel,
    colored,
    dashed,
    limited,
    lines,
    now,
    number,
    query,
)
from dashboards.queries import in_range, of_connection, rate, total

COUNT = of_connection("router_nats_pending_operations_count")
LIMIT = of_connection("router_nats_pending_operations_limit")
BYTES = of_connection("router_nats_pending_bytes")
BYTES_LIMIT = of_connection("router_nats_pending_bytes_limit")
AGE = of_connection("router_nats_pending_oldest_age_seconds")
IN_FLIGHT = of_connection("router_nats_in_flight_operations_count")
DROPPED = of_connection("router_nats_pending_operations_dropped_total")
RETRIED = of_connection("router_nats_pending_operations_retry_total")
RETRY_SUCCEEDED = of_connection("router_nats_pending_operations_retry_success_total")
RETRY_FAILED = of_connection("router_nats_pending_operations_retry_failed_total")

FULL = ((0.8, ORANGE), (1, RED))


def pending() -> Dashboard:
    """Build the dashboard."""
    return frame.build(
        "pending",
        "Pending",
        "The queue of each connection: its depth and limit, the age of its oldest operation, retries and drops.",
        [("Now", _now()), ("Depth and age", _depth()), ("Drain and loss", _drain())],
    )


def _now() -> list[Panel]:
    return [
        number("Pending", "Operations accepted but not yet written.", "short", query(total(COUNT))).span(6),
        number(
            "Fullest queue",
            "Depth of the fullest queue as a share of its limit of operations. At 100 % the oldest operation is "
            "dropped, new ones are refused, or publishers wait, depending on on_pending_full.",
            "percentunit",
            query(f"max({COUNT} / {LIMIT})"),
            ((0, GREEN), *FULL),
            alerts=["RouterPendingQueueHigh"],
        ).span(6),
        number(
            "Oldest",
            "Age of the oldest pending operation.",
            "s",
            query(f"max({AGE})"),
            ((0, GREEN), (60, ORANGE), (600, RED)),
        ).span(6),
        number(
            "Dropped",
            "Pending operations dropped in the time range: these messages are lost. Prometheus extrapolates this "
            "number slightly; the ledger on the Delivery dashboard is exact.",
            "locale",
            now(total(in_range(DROPPED))),
            ALERT_IF_ANY,
            alerts=["RouterMessagesDropped"],
        ).span(6),
    ]


def _depth() -> list[Panel]:
    return [
        dashed(
            lines(
                "Depth and limit",
                "Pending operations, with the limit of each queue as a dashed line.",
                "short",
                query(f"max by (instance, connection) ({COUNT})", "{{connection}} {{instance}}"),
                query(f"max by (instance, connection) ({LIMIT})", "limit of {{connection}} {{instance}}"),
                alerts=["RouterPendingQueueHigh"],
            ),
            "limit.*",
            RED,
        ).span(12),
        limited(
            lines(
                "How full",
                "Queue depth as a share of its limits of operations and of bytes. A queue is full as soon as one of "
                "them reaches 100 %.",
                "percentunit",
                query(f"max by (instance, connection) ({COUNT} / {LIMIT})", "{{connection}} {{instance}}, operations"),
                query(f"max by (instance, connection) ({BYTES} / {BYTES_LIMIT})", "{{connection}} {{instance}}, bytes"),
                alerts=["RouterPendingQueueHigh"],
            ),
            *FULL,
        ).span(12),
        lines(
            "Age of the oldest",
            "Age of the oldest pending operation of each queue.",
            "s",
            query(f"max by (instance, connection) ({AGE})", "{{connection}} {{instance}}"),
            alerts=["RouterConnectionDown"],
        ),
        lines(
            "Bytes",
            "Size in memory of the frames of the pending operations.",
            "bytes",
            query(f"max by (instance, connection) ({BYTES})", "{{connection}} {{instance}}"),
            alerts=["RouterPendingQueueHigh"],
        ),
        lines(
            "In flight",
            "Operations written but not yet confirmed. They return to the queue if the connection is lost.",
            "short",
            query(f"max by (instance, connection) ({IN_FLIGHT})", "{{connection}} {{instance}}"),
        ),
    ]


def _drain() -> list[Panel]:
    return [
        colored(
            lines(
                "Drain after a reconnect",
                "Operations kept through an outage, and how many of them were confirmed or could not be delivered "
                "after the reconnect.",
                "ops",
                query(total(rate(RETRIED)), "to send"),
                query(total(rate(RETRY_SUCCEEDED)), "confirmed"),
                query(total(rate(RETRY_FAILED)), "not delivered"),
            ),
            {"to send": BLUE, "confirmed": GREEN, "not delivered": RED},
        ).span(12),
        lines(
            "Dropped, by reason",
            "Pending operations dropped because the queue was full, they had expired, or the router stopped.",
            "ops",
            query(total(rate(DROPPED), "reason"), "{{reason}}"),
            alerts=["RouterMessagesDropped"],
        ).span(12),
    ]
