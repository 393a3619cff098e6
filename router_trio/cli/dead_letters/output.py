"""Print dead letters as a table, as JSON, or one of them in full."""

from __future__ import annotations

import json as encoder
from collections.abc import Iterator
from typing import Any

from router_trio.audit.letter import Letter, format_time
from router_trio.errors.quotes import excerpt
from router_trio.nats.jetstream.api import StoredMessage
from router_trio.protocol import headers
from router_trio.terminals import printable

_ROW = "{:>10}  {:24}  {:20}  {:>8}  {:>9}  {}"
_HEX_LINE = 16

HEADING = _ROW.format("SEQUENCE", "TIME", "REASON", "ATTEMPTS", "SIZE", "SUBJECT")


def row(letter: Letter) -> str:
    """Return the line of a dead letter in the table. The size is the number of bytes of the payload."""
    attempts = "?" if letter.attempts is None else letter.attempts
    fields = (letter.time, excerpt(letter.reason), attempts)
    return _ROW.format(letter.sequence, *fields, len(letter.message.payload), excerpt(letter.origin))


def line(letter: Letter) -> str:
    """Return a dead letter as one line of JSON."""
    return encoder.dumps(letter.fields())


def lines(message: StoredMessage, *, as_hex: bool) -> Iterator[str]:
    """Yield the lines of an entire message, with its payload as JSON if possible, else as text, else in hexadecimal."""
    yield f"sequence: {message.sequence}"
    yield f"subject: {excerpt(message.subject)}"
    yield f"stored: {format_time(message.time_ns)}"
    for name, value in headers.decode(message.headers).pairs():
        yield printable(f"{name}: {value}")
    yield ""
    if as_hex:
        yield from _hexadecimal(message.payload)
        return
    kind, value = payload_of(message.payload)
    if kind == "json":
        yield from encoder.dumps(value, indent=2).split("\n")
    elif kind == "text":
        yield from map(printable, value.split("\n"))
    else:
        yield from _hexadecimal(message.payload)


def as_json(message: StoredMessage) -> str:
    """Return an entire message as JSON, with its payload under `json`, `text` or `hex`."""
    kind, value = payload_of(message.payload)
    shown: dict[str, Any] = {
        "sequence": message.sequence,
        "subject": message.subject,
        "stored": format_time(message.time_ns),
        "headers": [list(pair) for pair in headers.decode(message.headers).pairs()],
        kind: message.payload.hex() if kind == "hex" else value,
    }
    return encoder.dumps(shown, indent=2)


def payload_of(payload: bytes) -> tuple[str, Any]:
    """Return the format of a payload and its value: `json`, `text`, or `hex` with None."""
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        return "hex", None
    try:
        return "json", encoder.loads(text)
    except (ValueError, RecursionError):
        is_printable = all(character.isprintable() or character in "\n\r\t" for character in text)
        return ("text", text) if is_printable else ("hex", None)


def _hexadecimal(payload: bytes) -> Iterator[str]:
    for start in range(0, len(payload), _HEX_LINE):
        part = payload[start : start + _HEX_LINE]
        pairs = " ".join(f"{byte:02x}" for byte in part)
        shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        yield f"{start:08x}  {pairs:{3 * _HEX_LINE - 1}}  {shown}"
