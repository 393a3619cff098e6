"""The configuration of the durable consumers of routes, and whether an existing one is suitable. Pure.

Also translates the state of a consumer into the terms of `link`.
"""

from __future__ import annotations

from router_trio.errors import FilterDiffersError, SourceError, reasons
from router_trio.errors.quotes import excerpt
from router_trio.link import LEAD_ENDS_AFTER, ConsumerSpec, ConsumerState
from router_trio.nats.jetstream.api import ConsumerConfig, ConsumerInfo, nanoseconds
from router_trio.protocol.metadata import CONTINUES, monitored_consumer

ACK_POLICY = "explicit"
"""Each message is acked by itself. With any other policy one ack would include messages that are not settled."""

LEAD_POLICY = "pinned_client"
"""The priority policy (ADR-42) of a standby consumer: all its messages are delivered to one client until it goes
silent."""

LEAD_GROUP = "router"
"""The priority group of a standby consumer."""

WRONG_PIN = 423
"""The status of a request whose pin is not the one with the lead."""


def config_of(spec: ConsumerSpec, *, resumes: bool, max_ack_pending: int) -> dict[str, object]:
    """Return the configuration of the durable to create. `resumes`: it starts where the previous one was."""
    start = _start(spec, resumes=resumes)
    continues = {CONTINUES: "true"} if resumes and "opt_start_seq" in start else {}
    config: dict[str, object] = {
        "durable_name": spec.durable,
        "ack_policy": ACK_POLICY,
        "ack_wait": int(spec.ack_wait * 1e9),
        "max_deliver": spec.max_deliver,
        "max_ack_pending": max_ack_pending,
        "replay_policy": "instant",
        "metadata": {
            **monitored_consumer(max_ack_pending, spec.least_ack_pending),
            **spec.metadata(),
            **continues,
        },
        **start,
    }
    if len(spec.filters) == 1:
        config["filter_subject"] = spec.filters[0]  # older servers support only one
    elif spec.filters:
        config["filter_subjects"] = list(spec.filters)
    if spec.standby:
        config["priority_policy"] = LEAD_POLICY
        config["priority_groups"] = [LEAD_GROUP]
        config["priority_timeout"] = int(LEAD_ENDS_AFTER * 1e9)
    return config


def _start(spec: ConsumerSpec, *, resumes: bool) -> dict[str, object]:
    timed = isinstance(spec.deliver, str) and spec.deliver not in ("all", "new")
    # A server before 2.14 doesn't report where a new consumer begins: then the time is known, and no sequence.
    if resumes and not (timed and spec.start_sequence == 1):
        return {"deliver_policy": "by_start_sequence", "opt_start_seq": spec.start_sequence}
    if (spec.deliver == "new" or isinstance(spec.deliver, int)) and spec.stream_created is not None:
        # The stream is not the one that the route has read before, so everything in it is new.
        return {"deliver_policy": "by_start_sequence", "opt_start_seq": 1}
    if isinstance(spec.deliver, int):
        return {"deliver_policy": "by_start_sequence", "opt_start_seq": spec.deliver}
    return (
        {"deliver_policy": "by_start_time", "opt_start_time": spec.deliver}
        if timed
        else {"deliver_policy": spec.deliver}
    )


def began(config: ConsumerConfig) -> str:
    """Return where a durable began, as in `link.Limits`."""
    if config.deliver_policy == "by_start_time":
        return config.start_time
    return "" if config.deliver_policy == "by_start_sequence" else config.deliver_policy


def compare(spec: ConsumerSpec, info: ConsumerInfo) -> None:
    """Raise `SourceError` for a durable that does not do what the route needs. Tuning (waits, limits) may differ.

    The text for a push consumer that has the route's filter contains where a durable of the route continues.
    """
    config = info.config
    differences = []
    if config.deliver_subject:
        differences.append("it is a push consumer, a pull consumer is needed")
    if config.ack_policy != ACK_POLICY:
        differences.append(f"its ack policy is {config.ack_policy}, {ACK_POLICY} is needed")
    has, wanted = sorted(config.filter_subjects), sorted(spec.filters)
    same_filter = [f for f in has if f != ">"] == [f for f in wanted if f != ">"]
    if not same_filter:
        detail = excerpt(", ".join(has)) or "none"
        differences.append(f"its filter is {detail}, the route's is {', '.join(wanted) or 'none'}")
    if config.headers_only:
        differences.append("it delivers only headers (headers_only), the payloads are needed")
    if spec.standby and (config.priority_policy != LEAD_POLICY or LEAD_GROUP not in config.priority_groups):
        differences.append(f"it has no priority group {LEAD_GROUP!r} with the policy {LEAD_POLICY}, as standby needs")
    if not spec.standby and config.priority_groups:
        differences.append("it has priority groups, as with standby: only pulls that name one get messages from it")
    if not differences:
        return
    text = (
        f"the durable {spec.durable!r} of stream {spec.stream!r} exists with another configuration: "
        f"{'; '.join(differences)}. Use another `durable`, or delete that consumer"
    )
    floor = info.ack_floor.sequence
    # Before 2.14, the floor of a consumer that started elsewhere is 0 until something is acked.
    if config.deliver_subject and same_filter and (floor or config.deliver_policy == "all"):
        text += (
            f". With another `durable` and deliver = {floor + 1} the route continues where this consumer is now: stop "
            "the program that uses it first"
        )
    error = SourceError if same_filter or len(differences) > 1 else FilterDiffersError
    raise error(text, reason=reasons.CONSUMER_MISMATCH)


def cut_off(what: str, name: str, trouble: str) -> str:
    """Return the text for a stream or consumer whose group is in trouble."""
    return f"the {what} {name!r} is not available: {trouble}; the server may be cut off from its cluster"


def paused(info: ConsumerInfo) -> str:
    """Describe until when a paused consumer is paused, by whom, and how to resume it."""
    config = info.config
    text = "is paused on the server"
    if config.pause_until:
        text += f" until {config.pause_until}"
    if config.paused_by:
        return f"{text} by {config.paused_by}; `router-trio resume` resumes it"
    return f"{text}, not by `router-trio pause`; resume it"


def pause_of(stream: str, durable: str, info: ConsumerInfo) -> str | None:
    """Describe until when a durable is paused; None if it is not."""
    return f"the durable {durable!r} of stream {stream!r} {paused(info)}" if info.paused else None


def state_of(spec: ConsumerSpec, info: ConsumerInfo) -> ConsumerState:
    """Return the state of a durable, from the server's answer."""
    return ConsumerState(
        paused=pause_of(spec.stream, spec.durable, info),
        cut_off=None if info.group.trouble is None else cut_off("durable", spec.durable, info.group.trouble),
        unacked=info.num_ack_pending,
        max_ack_pending=info.config.max_ack_pending,
        delivered=info.delivered.sequence,
        undelivered=info.num_pending,
        deliveries=info.delivered.delivery,
        passed=info.ack_floor.sequence,
        time=nanoseconds(info.now),
        ack_wait=info.config.ack_wait,
        redelivered=info.num_redelivered,
    )
