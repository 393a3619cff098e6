"""The kinds of faults. Pure values: their effects on operations are described here and implemented in `faults.link`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from router_trio.errors import reasons

ERROR = "error"
TIMEOUT = "timeout"
CLOSE_CONNECTION = "close_connection"
DELAY = "delay"

LONGEST = 3600.0
"""Maximum duration in seconds. A longer one is a typing error."""

_REASON = re.compile(r"[a-z][a-z0-9_]{0,39}")


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of an operation. Created by `error`, `timeout`, `close_connection` and `delay`."""

    kind: str
    reason: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        if self.kind == ERROR:
            return f"error({self.reason})"
        return f"{self.kind}({self.seconds:g} s)" if self.kind in (TIMEOUT, DELAY) else self.kind


def error(reason: str = reasons.INJECTED) -> Fault:
    """Fail the operation at once, for this reason. A publish is not written.

    The reason becomes a label of metrics. Raises `ValueError` unless it is a short word: lower case, digits, `_`.
    """
    if not _REASON.fullmatch(reason):
        raise ValueError(f"the reason {reason!r} is not a valid label: use up to 40 of a-z, 0-9 and _, a letter first")
    return Fault(ERROR, reason=reason)


def timeout(after: float) -> Fault:
    """Fail the operation with the reason `timeout`, `after` seconds later. A publish is not written.

    A JetStream publish that times out delays nothing else. A core publish has no answer of its own, so operations after
    its batch wait until its time is over. An ack or nak has no answer at all, and fails at once.
    """
    return Fault(TIMEOUT, reason=reasons.TIMEOUT, seconds=_checked(after))


def close_connection() -> Fault:
    """Close the link before the operation. Earlier operations have reached the server."""
    return Fault(CLOSE_CONNECTION, reason=reasons.CLOSED)


def delay(duration: float) -> Fault:
    """Delay the operation by `duration` seconds, in order: later operations wait as well."""
    return Fault(DELAY, seconds=_checked(duration))


def _checked(seconds: float) -> float:
    if not math.isfinite(seconds) or not 0 <= seconds <= LONGEST:
        raise ValueError(f"{seconds!r} is not a valid duration of a fault: use 0 to {LONGEST:g} seconds")
    return float(seconds)
