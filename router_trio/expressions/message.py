"""The variables of a message for expressions, each decoded on first use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from router_trio.errors import EvaluationError
from router_trio.expressions.body import FREE, WITHOUT_RECORDS, BodyReader, decode
from router_trio.expressions.functions.times import timestamp
from router_trio.expressions.headers import FREE_HEADERS, first_value
from router_trio.expressions.language.types import BYTES, DYN, INT, STRING, TIMESTAMP, Type, list_of, map_of
from router_trio.expressions.values import Budget, Value
from router_trio.protocol.framing import RawMessage, payload, text
from router_trio.protocol.headers import decode as decode_headers

MESSAGE_VARIABLES: Mapping[str, Type] = {
    "subject": STRING,
    "tokens": list_of(STRING),
    "headers": map_of(STRING, STRING),
    "body": DYN,
    "payload": BYTES,
    "size": INT,
}
"""The variables of every message."""
STREAM_VARIABLES: Mapping[str, Type] = {
    **MESSAGE_VARIABLES,
    "stream": STRING,
    "sequence": INT,
    "deliveries": INT,
    "time": TIMESTAMP,
}
"""The variables of a message from a stream."""


class Facts:
    """A message as expressions see it. Each variable is decoded on first use, and only once.

    `header_block` is the raw block, or `b""`. `reader` is made by `body.reader_for` for the expressions that are
    evaluated on the message. `time_ns` is the time when the stream stored it, in nanoseconds since 1970.
    """

    __slots__ = (
        "_reader",
        "_record",
        "body",
        "budget",
        "deliveries",
        "found",
        "found_start",
        "header_block",
        "headers",
        "locals",
        "payload",
        "sequence",
        "size",
        "stream",
        "subject",
        "time",
        "time_ns",
        "tokens",
    )

    body: Value
    budget: Budget
    """The budget that all expressions of the route share for this message."""
    found: bytes
    """The first value of the header whose line begins with `found_start`. Unset if `found_start` is None."""
    headers: dict[str, str]
    locals: list[Value]
    size: int
    time: Value
    tokens: list[str]

    def __init__(
        self,
        subject: str,
        header_block: bytes,
        payload: bytes,
        reader: BodyReader = WITHOUT_RECORDS,
        *,
        stream: str = "",
        sequence: int = 0,
        deliveries: int = 0,
        time_ns: int = 0,
    ) -> None:
        self.subject: str = subject
        self.header_block: bytes = header_block
        self.payload: bytes = payload
        self.found_start: bytes | None = None
        self._reader = reader
        self._record: Any = reader  # not yet decoded
        if stream:
            self.stream: str = stream
            self.sequence: int = sequence
            self.deliveries: int = deliveries
            self.time_ns: int = time_ns

    def find_header(self, start: bytes) -> bytes | None:
        """Return the first value of the header whose line begins with `start` (see `headers.line_start`), or None."""
        block = self.header_block
        size = len(block)
        if size > FREE_HEADERS:
            self.budget.spend(size >> 4)
        return first_value(start, block, 0, size)

    @property
    def record(self) -> Any:
        """The fields of the body that expressions use, or None if the body must be decoded completely."""
        record = self._record
        if record is self._reader:
            record = self._record = record.record(self.payload, self)
        return record

    def __getattr__(self, name: str) -> Value:
        """Decode a variable on its first use. Raises EvaluationError if it can't be decoded."""
        if name == "body":
            # An error is kept in place of the record, so that decoding is not tried again.
            if self._record.__class__ is EvaluationError:
                raise EvaluationError(str(self._record))
            try:
                payload = self.payload
                self.body = value = decode(payload) if len(payload) <= FREE else decode(payload, self.budget)
            except EvaluationError as error:
                self._record = EvaluationError(str(error))
                raise
        elif name == "budget":
            self.budget = value = Budget()
        elif name == "tokens":
            self.tokens = value = self.subject.split(".")
        elif name == "headers":
            if len(self.header_block) > FREE_HEADERS:
                self.budget.spend(self.header_block.count(b"\r\n") * 8 + (len(self.header_block) >> 5))
            first: dict[str, str] = {}
            for key, one in decode_headers(self.header_block).pairs():
                first.setdefault(key, one)
            self.headers = value = first
        elif name == "size":
            self.size = value = len(self.payload)
        elif name == "time":
            self.time = value = timestamp(self.time_ns)
        elif name in Facts.__slots__:
            raise _no_value("time" if name == "time_ns" else name)
        else:
            raise AttributeError(name)
        return value


class Arrived(Facts):
    """A raw message of a core subscription. All variables but the header block are sliced and decoded on first use.

    The header block, which most expressions read, is sliced at once. `reader` is as for `Facts`.
    """

    __slots__ = ("_raw",)

    def __init__(self, raw: RawMessage, reader: BodyReader) -> None:
        self._raw = raw
        _, _, header_size, size, tail = raw
        if header_size:
            start = len(tail) - 2 - size
            self.header_block: bytes = tail[start : start + header_size]
        else:
            self.header_block = b""
        self.found_start: bytes | None = None
        self._record = self._reader = reader

    @property
    def record(self) -> Any:
        record = self._record
        if record is self._reader:
            _, _, header_size, size, tail = self._raw
            record = self._record = record.record(tail[len(tail) - 2 - size + header_size : -2], self)
        return record

    def __getattr__(self, name: str) -> Value:
        if name == "subject":
            self.subject: str = text(self._raw[0])
            return self.subject
        if name == "payload":
            self.payload: bytes = payload(self._raw)
            return self.payload
        return super().__getattr__(name)


def _no_value(name: str) -> EvaluationError:
    return EvaluationError(f"the variable {name!r} has no value")
