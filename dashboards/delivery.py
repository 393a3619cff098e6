"""Delivery: the fate of every publish and every received message, and the ledgers that add them up."""

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
"""The fates of a message that a route received, with the colour of each."""


def delivery() -> Dashboard:
    """Build the dashboard."""
    return frame.build(
        "delivery",
        "Delivery",
        "The fates of received messages, publishes and acks, and the ledgers that add them up.",
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
            "Publishes accepted in the time range. Prometheus extrapolates this number and the next two slightly; the "
            "table below is exact.",
            "locale",
            now(total(in_range(ACCEPTED))),
        ).span(6),
        number(
            "Confirmed",
            "Publishes fenced (received by the server) or acked (stored by a stream) in the time range.",
            "locale",
            now(total(in_range(CONFIRMED))),
            ((0, GREEN),),
        ).span(6),
        number(
            "Not delivered",
            "Publishes dropped, failed, or discarded in fail-open mode in the time range.",
            "locale",
            now(total(in_range(LET_GO))),
            ALERT_IF_ANY,
            alerts=["RouterMessagesDropped"],
        ).span(6),
        number(
            "Ledger off by",
            "Accepted - settled - pending - in flight. Any value other than 0 is a bug in the router.",
            "short",
            query(f"max(abs({UNBALANCED}))"),
            ALERT_IF_ANY,
            alerts=["RouterLedgerUnbalanced"],
        ).span(6),
        colored(
            stacked(
                lines(
                    "Fates",
                    "Accepted publishes by fate. Fenced: received by the server. Acked: stored by a stream.",
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
                "Two independent counts of the unsettled publishes: accepted - settled, and pending + in flight. The "
                "lines always coincide.",
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
            "The ledger of each connection: accepted = pending + in flight + all fates.",
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
                    "Received messages by fate. Routed: delivered to all chosen destinations. Returned: given back to "
                    "its stream for redelivery. Lost: a core message that was not delivered to all of them.",
                    "mps",
                    query(total(rate(ROUTE_SETTLED), "fate"), "{{fate}}"),
                    alerts=["RouterErrorBudgetBurnFast", "RouterMessagesDeadLettered"],
                )
            ),
            ROUTE_FATES,
        ).span(12),
        lines(
            "In hand",
            "Messages that each route has received but not settled, and its max_in_flight if it reads from a stream.",
            "short",
            query(total(IN_HAND, "route"), "{{route}}"),
            query(f"{total(IN_FLIGHT_LIMIT, 'route')} > 0", "{{route}} limit"),
            alerts=["RouterRouteStalled"],
        ).span(12),
        table(
            "Ledger since each router's start, by route",
            "The ledger of each route: received = in hand + all fates. Off by: any value other than 0 is a bug in the "
            "router (alert RouterRouteLedgerUnbalanced).",
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
            "Circuit breaker of each destination. 0: closed. 0.5: half open, one message is sent as a probe. 1: open, "
            "nothing is sent because the destination fails. Openings: how often breakers opened.",
            "short",
            query(
                f"max by (route, destination, destination_connection) ({BREAKERS})",
                "{{route}}: {{destination}} on {{destination_connection}}",
            ),
            query(total(events(OPENED), "route"), "{{route}}: openings"),
            alerts=["RouterBreakerOpen"],
        ).span(8),
        lines(
            "Delayed by a limit",
            "Messages delayed by the rate limit of their route.",
            "mps",
            query(total(rate(LIMITED), "route"), "{{route}}"),
        ).span(8),
        lines(
            "Waiting for a limit",
            "Messages in hand that wait for the rate limit of their route; more may wait in the stream.",
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
                "Core publishes confirmed by a fence, and failed ones. A publish made while not connected counts as "
                "failed, even if it was queued and delivered later.",
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
                "JetStream publishes acked by a stream, and failed ones. A publish made while not connected counts as "
                "failed, even if it was queued and acked later.",
                "mps",
                query(total(rate(STORED)), "succeeded"),
                query(total(rate(STORE_FAILED)), "failed"),
                alerts=["RouterPublishFailureRatioHigh"],
            ),
            {"succeeded": GREEN, "failed": RED},
        ),
        lines(
            "Failed publishes, by reason",
            "Failed core and JetStream publishes, by reason.",
            "mps",
            query(total(rate(PUBLISH_FAILED), "reason"), "core: {{reason}}"),
            query(total(rate(STORE_FAILED), "reason"), "JetStream: {{reason}}"),
            alerts=["RouterPublishFailureRatioHigh"],
        ),
        lines(
            "Share of publishes that succeeded",
            "Share of publishes that succeeded at the first attempt, by connection; no value while there are none.",
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
            "Acks and naks that routes from streams have sent: an ack for a routed message, a nak to have it "
            "redelivered.",
            "mps",
            query(total(rate(acked), "connection"), "{{connection}} ack"),
            query(total(rate(nakked), "connection"), "{{connection}} nak"),
        ).span(12),
        lines(
            "Acks and naks that failed",
            "Acks and naks that could not be sent while disconnected or were refused by the server. Those that could "
            "not be sent are sent after the reconnect, or the stream redelivers the message.",
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
