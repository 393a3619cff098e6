"""Pending: how full the queues are, how old what is in them is, and how they drain."""

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
        "The queue of each connection: its depth against its limit, its age, what was retried and what was dropped.",
        [("Now", _now()), ("Depth and age", _depth()), ("Drain and loss", _drain())],
    )


def _now() -> list[Panel]:
    return [
        number("Pending", "Operations accepted and not yet written.", "short", query(total(COUNT))).span(6),
        number(
            "Fullest queue",
            "Share of its own limit of operations. At 100 % the oldest is dropped, new ones are refused, or publishers "
            "wait, as the settings say.",
            "percentunit",
            query(f"max({COUNT} / {LIMIT})"),
            ((0, GREEN), *FULL),
            alerts=["RouterPendingQueueHigh"],
        ).span(6),
        number(
            "Oldest",
            "How long the oldest pending operation has waited.",
            "s",
            query(f"max({AGE})"),
            ((0, GREEN), (60, ORANGE), (600, RED)),
        ).span(6),
        number(
            "Dropped",
            "Pending operations that were let go in the time range: these messages are lost. "
            "Prometheus extrapolates a little; the ledger on the dashboard Delivery is exact.",
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
                "Pending of the limit, by operations and by bytes: what reaches 100 % first counts.",
                "percentunit",
                query(f"max by (instance, connection) ({COUNT} / {LIMIT})", "{{connection}} {{instance}}, operations"),
                query(f"max by (instance, connection) ({BYTES} / {BYTES_LIMIT})", "{{connection}} {{instance}}, bytes"),
                alerts=["RouterPendingQueueHigh"],
            ),
            *FULL,
        ).span(12),
        lines(
            "Age of the oldest",
            "How long the oldest pending operation of each queue has waited.",
            "s",
            query(f"max by (instance, connection) ({AGE})", "{{connection}} {{instance}}"),
            alerts=["RouterConnectionDown"],
        ),
        lines(
            "Bytes",
            "Frames of the pending operations, in memory.",
            "bytes",
            query(f"max by (instance, connection) ({BYTES})", "{{connection}} {{instance}}"),
            alerts=["RouterPendingQueueHigh"],
        ),
        lines(
            "In flight",
            "Operations written and not yet confirmed. They return to the queue if the link is lost.",
            "short",
            query(f"max by (instance, connection) ({IN_FLIGHT})", "{{connection}} {{instance}}"),
        ),
    ]


def _drain() -> list[Panel]:
    return [
        colored(
            lines(
                "Drain after a reconnect",
                "Operations that were kept through an outage, those confirmed since, and those that could not be "
                "delivered.",
                "ops",
                query(total(rate(RETRIED)), "to send"),
                query(total(rate(RETRY_SUCCEEDED)), "confirmed"),
                query(total(rate(RETRY_FAILED)), "not delivered"),
            ),
            {"to send": BLUE, "confirmed": GREEN, "not delivered": RED},
        ).span(12),
        lines(
            "Dropped, by reason",
            "Pending operations that were let go: the queue was full, they had expired, or the router stopped.",
            "ops",
            query(total(rate(DROPPED), "reason"), "{{reason}}"),
            alerts=["RouterMessagesDropped"],
        ).span(12),
    ]
