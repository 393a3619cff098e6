"""Messages that wait for their next attempt, as a route stores them."""

from __future__ import annotations

from router_trio.protocol import framing, message_ids, schedules
from router_trio.routing.policy.failed_messages import Failed, Numbering
from router_trio.routing.route_plans import copy_id
from router_trio.routing.stream.retries.origin import Origin, retry_id_of, with_origin
from router_trio.settings.retry import RetryScheduleSettings


def waiting(
    route: str, subject: str, stream: str, sequence: int, *, due_ns: int, time_ns: int = 1, prefix: str = "retry"
) -> tuple[str, bytes]:
    """Return the subject and the header block of the schedule of a message that has failed once."""
    origin = Origin(framing.wire(subject), stream, sequence, time_ns, 1, Failed(1, tried=True))
    names = RetryScheduleSettings(stream="RETRY", prefix=prefix).names(route)
    target = framing.wire(names.target)
    its_id = retry_id_of(origin.message_id, b"1") + copy_id(route, names.target, target)
    block = message_ids.replace(with_origin(b"", origin, Numbering("all", ())), its_id)
    return f"{names.schedules}.{schedules.token(its_id)}", schedules.scheduled(block, due_ns, target)
