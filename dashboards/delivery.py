"""Delivery: what became of every publish. The fates add up, and the sum is on the screen."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards import frame
from dashboards.panels import (
    ALERT_IF_ANY,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    RED,
    YELLOW,
    Panel,
    colored,
    dashed,
    lines,
    now,
    number,
    query,
    stacked,
    table,
)
from dashboards.queries import events, in_range, of_connection, of_route, rate, share_of, total

ACCEPTED = of_connection("router_nats_operations_accepted_total")
SETTLED = of_connection("router_nats_operations_settled_total")
CONFIRMED = of_connection("router_nats_operations_settled_total", 'fate=~"fenced|acked"')
LET_GO = of_connection("router_nats_operations_settled_total", 'fate!~"fenced|acked"')
PENDING = of_connection("router_nats_pending_operations_count")
IN_FLIGHT = of_connection("router_nats_in_flight_operations_count")
UNBALANCED = of_connection("router_ledger_unbalanced")
PUBLISHED = of_connection("router_nats_publish_total")
PUBLISH_FAILED = of_connection("router_nats_publish_failures_total")
STORED = of_connection("router_nats_publish_with_ack_total")
STORE_FAILED = of_connection("router_nats_publish_with_ack_failures_total")
ROUTE_SETTLED = of_route("router_route_messages_settled_total")
IN_HAND = of_route("router_route_in_hand_count")
IN_FLIGHT_LIMIT = of_route("router_route_in_flight_limit")
ROUTE_UNBALANCED = of_route("router_route_ledger_unbalanced")

BREAKERS = of_route("router_breaker_state")
OPENED = of_route("router_breaker_opened_total")
LIMITED = of_route("router_route_limited_total")
LIMIT_WAITING = of_route("router_route_limit_waiting_count")

ROUTE_FATES = {
    "routed": GREEN,
    "filtered": BLUE,
    "dead_lettered": ORANGE,
    "given_up": RED,
    "returned": YELLOW,
    "duplicate": PURPLE,
    "lost": RED,
}
"""What becomes of a message that a route received, and its colour."""


def delivery() -> Dashboard:
    """Build the dashboard."""
    return frame.build(
        "delivery",
        "Delivery",
        "Messages of routes, publishes and acks: what became of each, and the ledgers that add them up.",
        [
            ("Ledger", _ledger()),
            ("Ledger of the routes", _routes()),
            ("Limits and breakers", _flow()),
            ("Publishes", _publishes()),
            ("Acks of source messages", _acks()),
        ],
        routes=True,
    )


def _ledger() -> list[Panel]:
    return [
        number(
            "Accepted",
            "Publishes that the ledger answers for, in the time range. Prometheus extrapolates a little, here and in "
            "the next two; the table below is exact.",
            "locale",
            now(total(in_range(ACCEPTED))),
        ).span(6),
        number(
            "Confirmed",
            "Fenced (the server has it) or acked (a stream has stored it), in the time range.",
            "locale",
            now(total(in_range(CONFIRMED))),
            ((0, GREEN),),
        ).span(6),
        number(
            "Not delivered",
            "Dropped, failed, or let go in fail-open mode, in the time range.",
            "locale",
            now(total(in_range(LET_GO))),
            ALERT_IF_ANY,
            alerts=["RouterMessagesDropped"],
        ).span(6),
        number(
            "Ledger off by",
            "Accepted - settled - pending - in flight. Anything but 0 is a bug of the router.",
            "short",
            query(f"max(abs({UNBALANCED}))"),
            ALERT_IF_ANY,
            alerts=["RouterLedgerUnbalanced"],
        ).span(6),
        colored(
            stacked(
                lines(
                    "Fates",
                    "How accepted publishes ended. Fenced: the server received it. Acked: a stream stored it.",
                    "mps",
                    query(total(rate(SETTLED), "fate"), "{{fate}}"),
                    alerts=["RouterMessagesDropped"],
                )
            ),
            {"fenced": BLUE, "acked": GREEN, "dropped": RED, "failed": ORANGE, "failed_open": PURPLE},
        ).span(12),
        dashed(
            lines(
                "The ledger adds up",
                "Accepted without a fate, and pending with in flight: two counts of the same. They lie on each other, "
                "always.",
                "short",
                query(f"{total(PENDING)} + {total(IN_FLIGHT)}", "pending + in flight"),
                query(f"{total(ACCEPTED)} - {total(SETTLED)}", "accepted - settled"),
                alerts=["RouterLedgerUnbalanced"],
            ),
            "accepted.*",
            ORANGE,
        ).span(12),
        table(
            "Ledger since each router's start",
            "The books of each connection: accepted = pending + in flight + all fates.",
            "locale",
            "connection",
            [
                ("Accepted", total(ACCEPTED, "connection")),
                ("Pending", total(PENDING, "connection")),
                ("In flight", total(IN_FLIGHT, "connection")),
                *(
                    (fate.capitalize().replace("_", " "), total(_with_fate(fate), "connection"))
                    for fate in ("fenced", "acked", "dropped", "failed", "failed_open")
                ),
                ("Off by", total(UNBALANCED, "connection")),
            ],
        )
        .span(24)
        .height(5),
    ]


def _routes() -> list[Panel]:
    return [
        colored(
            stacked(
                lines(
                    "Fates of received messages",
                    "What became of what routes received. Routed: all chosen destinations have it. Returned: given "
                    "back to its stream, to come again. Lost: a core message that not all of them got.",
                    "mps",
                    query(total(rate(ROUTE_SETTLED), "fate"), "{{fate}}"),
                    alerts=["RouterErrorBudgetBurnFast", "RouterMessagesDeadLettered"],
                )
            ),
            ROUTE_FATES,
        ).span(12),
        lines(
            "In hand",
            "Messages that each route received and that have no fate yet.",
            "short",
            query(total(IN_HAND, "route"), "{{route}}"),
            query(f"{total(IN_FLIGHT_LIMIT, 'route')} > 0", "{{route}}, at most in flight"),
            alerts=["RouterRouteStalled"],
        ).span(12),
        table(
            "Ledger since each router's start, by route",
            "Received = in hand + all fates. Off by: anything but 0 is a bug of the router "
            "(alert RouterRouteLedgerUnbalanced).",
            "locale",
            "route",
            [
                ("In hand", total(IN_HAND, "route")),
                *((fate.capitalize().replace("_", " "), total(_of_fate(fate), "route")) for fate in ROUTE_FATES),
                ("Off by", total(ROUTE_UNBALANCED, "route")),
            ],
        )
        .span(24)
        .height(5),
    ]


def _flow() -> list[Panel]:
    return [
        lines(
            "Breakers of destinations",
            "0: closed. 1: the destination is left alone because it fails. 0.5: a message tries. Openings: how often "
            "breakers opened.",
            "short",
            query(
                f"max by (route, destination, destination_connection) ({BREAKERS})",
                "{{route}}: {{destination}} on {{destination_connection}}",
            ),
            query(total(events(OPENED), "route"), "{{route}}: openings"),
            alerts=["RouterBreakerOpen"],
        ).span(8),
        lines(
            "Messages that waited for a limit",
            "They went later than they could have, because of the limit of their route.",
            "mps",
            query(total(rate(LIMITED), "route"), "{{route}}"),
        ).span(8),
        lines(
            "Waiting for a limit",
            "Messages that a route has in hand; more may wait in its stream.",
            "short",
            query(total(LIMIT_WAITING, "route"), "{{route}}"),
        ).span(8),
    ]


def _publishes() -> list[Panel]:
    ratio = share_of(
        f"{total(rate(PUBLISHED), 'connection')} + {total(rate(STORED), 'connection')}",
        f"{total(rate(PUBLISH_FAILED), 'connection')} + {total(rate(STORE_FAILED), 'connection')}",
    )
    return [
        colored(
            lines(
                "Core publishes",
                "Confirmed by a fence, and failed. One that met no connection counts as failed, even if it was queued "
                "and delivered later.",
                "mps",
                query(total(rate(PUBLISHED)), "succeeded"),
                query(total(rate(PUBLISH_FAILED)), "failed"),
                alerts=["RouterPublishFailureRatioHigh"],
            ),
            {"succeeded": GREEN, "failed": RED},
        ),
        colored(
            lines(
                "JetStream publishes",
                "Acked by a stream, and failed. One that met no connection counts as failed, even if it was queued "
                "and acked later.",
                "mps",
                query(total(rate(STORED)), "succeeded"),
                query(total(rate(STORE_FAILED)), "failed"),
                alerts=["RouterPublishFailureRatioHigh"],
            ),
            {"succeeded": GREEN, "failed": RED},
        ),
        lines(
            "Publishes that failed, by reason",
            "Core publishes and those to JetStream.",
            "mps",
            query(total(rate(PUBLISH_FAILED), "reason"), "core: {{reason}}"),
            query(total(rate(STORE_FAILED), "reason"), "JetStream: {{reason}}"),
            alerts=["RouterPublishFailureRatioHigh"],
        ),
        lines(
            "Share of publishes that succeeded",
            "At the first try, by connection; no value while there are none.",
            "percentunit",
            query(ratio, "{{connection}}"),
            alerts=["RouterPublishFailureRatioHigh"],
        )
        .max(1)
        .span(24),
    ]


def _acks() -> list[Panel]:
    acked, nakked = of_connection("router_nats_ack_total"), of_connection("router_nats_nak_total")
    ack_failed = of_connection("router_nats_ack_failures_total")
    nak_failed = of_connection("router_nats_nak_failures_total")
    return [
        lines(
            "Acks and naks",
            "What routes from streams tell them: routed, or again please.",
            "mps",
            query(total(rate(acked), "connection"), "{{connection}} ack"),
            query(total(rate(nakked), "connection"), "{{connection}} nak"),
        ).span(12),
        lines(
            "Acks and naks that failed",
            "Not said because the link was away: it is said on the next one, or the stream delivers again.",
            "mps",
            query(total(rate(ack_failed), "connection"), "{{connection}} ack"),
            query(total(rate(nak_failed), "connection"), "{{connection}} nak"),
            alerts=["RouterAckFailures"],
        ).span(12),
    ]


def _with_fate(fate: str) -> str:
    return of_connection("router_nats_operations_settled_total", f'fate="{fate}"')


def _of_fate(fate: str) -> str:
    return of_route("router_route_messages_settled_total", f'fate="{fate}"')
