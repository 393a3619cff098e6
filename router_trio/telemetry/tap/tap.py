"""A tap on a route: the messages that it shows, and the number of all others.

Its messages wait in a bounded buffer until the client reads them. Only then are they compared with the expression and
written as JSON, a few at a time, so that messages routed meanwhile are hardly delayed. While the buffer is full, no
message is followed: a client that reads slowly, or not at all, loses lines and delays nothing.

Every message that is not shown is counted: the number of settled messages that were not taken is the difference between
the route's ledger and the messages taken.
"""

from __future__ import annotations

import base64
import json
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from router_trio.errors import EvaluationError, ExpressionError
from router_trio.errors.quotes import excerpt
from router_trio.protocol import ack_reply, framing, headers
from router_trio.settings.problems import no_route
from router_trio.states import ROUTE_FATES, RouteState
from router_trio.telemetry.logs.redact import shown_header, shown_text
from router_trio.telemetry.pieces import Pieces
from router_trio.telemetry.tap.followed import FollowedMessage

if TYPE_CHECKING:
    from router_trio.expressions.expression import Expression
    from router_trio.expressions.message import Facts
    from router_trio.settings import TelemetrySettings

MAX_WAITING = 1000
"""Maximum number of messages that wait in one tap."""

MAX_WAITING_BYTES = 4 * 1024 * 1024
"""Bytes of waiting messages from which on one tap takes no more."""

MAX_LINES = 200
"""Maximum number of messages in one reading."""

MAX_PAYLOAD = 4096
"""Maximum number of bytes shown of a payload."""

MAX_HEADERS = 50
"""Maximum number of headers shown of a message."""

MAX_WHERE = 1000
"""Maximum length of the expression that chooses messages, in characters."""

MAX_WHERE_COST = 20_000
"""Maximum cost of evaluating that expression on one message, in tenths of a microsecond."""

MAX_NAME = 256
"""Maximum length of the name of a route in a request, in characters."""

OFF = "taps are switched off; set tap = true in [telemetry], and reload the configuration"
PAYLOADS_OFF = "may be shown only with tap_payloads = true in [telemetry]; a reload applies it"

_FROM_PAYLOAD = frozenset({"body", "payload"})


class TapRefused(Exception):
    """A request about a tap is refused, with the HTTP status `code`."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code

    def __reduce__(self) -> tuple[type[TapRefused], tuple[int, str]]:
        return TapRefused, (self.code, str(self))


@dataclass(frozen=True, slots=True)
class TapRequest:
    """The messages that a tap shows: those of a route with this fate, or any, for which the expression `where` is true.

    With `payloads` their payloads are shown. `user` is the name of the user, as the command reports it.
    """

    route: str
    fate: str | None = None
    where: str | None = None
    payloads: bool = False
    user: str = ""


@dataclass(slots=True)
class Reading:
    """A reading of a tap: its messages as lines of JSON, and the numbers of other messages since the last reading.

    `left_out` counts settled messages that were neither shown nor compared with the expression, by fate. `not_matching`
    counts those for which the expression was not true, `failed` those among them for which it failed; `error` is the
    latest failure. `waiting` is the number of messages that still wait to be read.
    """

    lines: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    not_matching: int = 0
    failed: int = 0
    error: str | None = None
    waiting: int = 0

    def add(self, other: Reading) -> None:
        """Add a later reading of the same process."""
        self.waiting = 0
        self.include(other)

    def include(self, other: Reading) -> None:
        """Add the reading of another process."""
        self.waiting += other.waiting
        self.lines += other.lines
        self.left_out.update(other.left_out)
        self.not_matching += other.not_matching
        self.failed += other.failed
        self.error = other.error or self.error


def check_allowed(request: TapRequest, settings: TelemetrySettings) -> None:
    """Raise `TapRefused` if the settings allow no tap, or none with payloads and `request` asks for these."""
    if not settings.tap:
        raise TapRefused(403, OFF)
    if request.payloads and not settings.tap_payloads:
        raise TapRefused(403, f"payloads {PAYLOADS_OFF}")


def find_route(request: TapRequest, routes: Mapping[str, RouteState]) -> RouteState:
    """Return the route of a tap. Raises `TapRefused` if there is no such route or fate."""
    if request.fate is not None and request.fate not in ROUTE_FATES:
        raise TapRefused(400, f"there is no fate {excerpt(request.fate)!r}; the fates are {', '.join(ROUTE_FATES)}")
    found = routes.get(request.route)
    if found is None:
        raise TapRefused(404, no_route(request.route, routes))
    return found


def compile_where(request: TapRequest, settings: TelemetrySettings, *, from_stream: bool) -> Expression | None:
    """Return the compiled expression of a tap, None if it has none. Takes some milliseconds, so call it in a thread.

    Raises `TapRefused` if it is invalid, or if it reads the payload and the settings do not allow that.
    """
    text = request.where
    if text is None:
        return None
    if len(text) > MAX_WHERE:
        raise TapRefused(400, f"--where is longer than {MAX_WHERE} characters")
    from router_trio.expressions.expression import compile_expression
    from router_trio.expressions.language.types import BOOL
    from router_trio.expressions.message import MESSAGE_VARIABLES, STREAM_VARIABLES

    variables = STREAM_VARIABLES if from_stream else MESSAGE_VARIABLES
    try:
        found = compile_expression(text, variables, result=BOOL, name="--where")
    except ExpressionError as error:
        raise TapRefused(400, f"{error}") from None
    if found.reads & _FROM_PAYLOAD and not settings.tap_payloads:
        raise TapRefused(
            403, f"--where reads {' and '.join(sorted(found.reads & _FROM_PAYLOAD))}: payloads {PAYLOADS_OFF}"
        )
    return found


class Tap:
    """A tap on a route, which implements `TakesFollowed`. `where` is its compiled expression.

    `settled` counts the messages of the route by fate at the time when the tap was opened.
    """

    def __init__(
        self, request: TapRequest, where: Expression | None, settled: Mapping[str, int], *, from_stream: bool
    ) -> None:
        self.request: TapRequest = request
        self._where = where
        self._from_stream = from_stream
        self._before: Mapping[str, int] = settled
        self._taken: Counter[str] = Counter()
        self._left_out: Counter[str] = Counter()
        self._waiting: deque[FollowedMessage] = deque()
        self._bytes = 0

    @property
    def needs_payloads(self) -> bool:
        """True if it shows payloads, or if its expression reads them."""
        return self.request.payloads or (self._where is not None and bool(self._where.reads & _FROM_PAYLOAD))

    @property
    def has_room(self) -> bool:
        return len(self._waiting) < MAX_WAITING and self._bytes < MAX_WAITING_BYTES

    def take(self, message: FollowedMessage) -> None:
        if (self.request.fate is None or message.fate == self.request.fate) and self.has_room:
            self._taken[message.fate] += 1
            self._waiting.append(message)
            self._bytes += len(message.raw[4])

    def read(self, settled: Mapping[str, int]) -> Pieces[Reading]:
        """Return up to `MAX_LINES` waiting messages, in pieces. `settled` counts those of the route by fate now."""
        reading = Reading()
        for _ in range(min(MAX_LINES, len(self._waiting))):
            message = self._waiting.popleft()
            self._bytes -= len(message.raw[4])
            shown = _shown(message, from_stream=self._from_stream)
            if self._matches(message, shown, reading):
                reading.lines.append(self._line(message, shown))
            yield
        for fate in ROUTE_FATES if self.request.fate is None else (self.request.fate,):
            left_out = settled[fate] - self._before[fate] - self._taken[fate]
            if left_out != self._left_out[fate]:
                reading.left_out[fate] = left_out - self._left_out[fate]
                self._left_out[fate] = left_out
        reading.waiting = len(self._waiting)
        return reading

    # --- inside ---

    def _matches(self, message: FollowedMessage, shown: Mapping[str, Any], reading: Reading) -> bool:
        if self._where is None:
            return True
        try:
            matches = bool(self._where.evaluate(_facts(message, shown, from_stream=self._from_stream)))
        except EvaluationError as error:
            reading.failed += 1
            reading.error = shown_text(str(error))
            matches = False
        reading.not_matching += not matches
        return matches

    def _line(self, message: FollowedMessage, shown: dict[str, Any]) -> str:
        if self.request.payloads:
            shown = shown | _payload(framing.payload(message.raw))
        return json.dumps(shown, ensure_ascii=False, separators=(",", ":"))


def _facts(message: FollowedMessage, shown: Mapping[str, Any], *, from_stream: bool) -> Facts:
    """Return the variables of an expression for a message.

    Subject and headers are those that are `shown`: an expression that reads a masked value could ask for it bit by bit.
    """
    from router_trio.expressions.message import Facts
    from router_trio.expressions.values import Budget

    raw = message.raw
    stream, sequence, deliveries, time_ns = _place(raw) if from_stream else ("", 0, 0, 0)
    lines = [headers.line(name, value) for name, value in shown["headers"]]
    block = b"%b\r\n%b\r\n" % (headers.VERSION, b"".join(lines)) if lines else b""
    facts = Facts(
        shown["subject"],
        block,
        framing.payload(raw),
        stream=shown["stream"] if from_stream else stream,
        sequence=sequence,
        deliveries=deliveries,
        time_ns=time_ns,
    )
    facts.budget = Budget(MAX_WHERE_COST)
    return facts


def _shown(message: FollowedMessage, *, from_stream: bool) -> dict[str, Any]:
    """Return the shown fields of a message but its payload. Credentials in headers are masked."""
    raw, failure = message.raw, message.failure
    pairs = headers.decode(framing.header_block(raw)).pairs()
    shown: dict[str, Any] = {
        "at": datetime.fromtimestamp(message.settled_at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "fate": message.fate,
        "subject": shown_text(framing.text(raw[0])),
    }
    if from_stream:
        stream, sequence, deliveries, _ = _place(raw)
        shown |= {"stream": shown_text(stream), "sequence": sequence, "deliveries": deliveries}
    shown |= {"size": raw[3] - raw[2], "ms": round(message.seconds * 1000, 3)}
    if failure is not None:
        shown |= {"reason": failure.reason, "detail": None if failure.shown is None else shown_text(failure.shown)}
    shown["to"] = [_sent(template, fate) for template, fate in message.sends]
    shown["headers"] = [[shown_text(name), shown_header(name, value)] for name, value in pairs[:MAX_HEADERS]]
    if len(pairs) > MAX_HEADERS:
        shown["more_headers"] = len(pairs) - MAX_HEADERS
    return shown


def _sent(template: str, fate: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"destination": shown_text(template), "fate": fate.name}
    if fate.reason is not None:
        found["reason"] = fate.reason
    if fate.stream is not None:
        found |= {"stream": shown_text(fate.stream), "sequence": fate.sequence}
    if fate.duplicate:
        found["duplicate"] = True
    return found


def _payload(payload: bytes) -> dict[str, Any]:
    """Return the beginning of a payload as text, or in base64 if it is not UTF-8."""
    start = payload[:MAX_PAYLOAD]
    cut = {"cut": True} if len(payload) > MAX_PAYLOAD else {}
    try:
        return {"payload": start.decode(), **cut}
    except UnicodeDecodeError as error:
        if cut and error.start > MAX_PAYLOAD - 4:  # the cut is inside of a character
            return {"payload": start[: error.start].decode(), **cut}
        return {"payload_base64": base64.b64encode(start).decode(), **cut}


def _place(raw: framing.RawMessage) -> tuple[str, int, int, int]:
    """Return stream, sequence, deliveries and time of a message from a stream, by its reply subject."""
    tokens = ack_reply.tokens(raw[1])
    numbers = [
        int(token[:20]) if token.isdigit() else 0
        for token in (tokens[ack_reply.SEQUENCE], tokens[ack_reply.DELIVERIES], tokens[ack_reply.TIME])
    ]
    return framing.text(tokens[ack_reply.STREAM]), numbers[0], numbers[1], numbers[2]
