"""Decisions by content in a program without a router: one `if`, or a line more.

`DECIDE[JOB]()` returns a function from headers and payload to the payload to send, or None for nothing. All
destinations are one subject, as in the benchmark, but they are chosen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import cycle
from zlib import crc32

Headers = Mapping[str, str]
Decide = Callable[[Headers, bytes], bytes | None]


def by_header() -> Decide:
    """Decide whether a header has this value."""
    return lambda headers, payload: payload if headers.get("class") == "c4" else None


def by_body() -> Decide:
    """Decide whether a field of a JSON body is greater than this."""
    return lambda headers, payload: payload if json.loads(payload)["total"] > 100.0 else None


def first_match() -> Decide:
    """Choose the first of ten values that a header has."""
    values = [f"c{number}" for number in range(10)]

    def decide(headers: Headers, payload: bytes) -> bytes | None:
        return payload if any(headers.get("class") == value for value in values) else None

    return decide


def weighted() -> Decide:
    """Distribute ten in a row as one, two and seven to three destinations."""
    turns = cycle([0, 1, 1, *[2] * 7])
    return lambda headers, payload: payload if next(turns) >= 0 else None


def sticky() -> Decide:
    """Choose one of three by the hash of a header."""
    return lambda headers, payload: payload if crc32(headers["class"].encode()) % 3 >= 0 else None


def transform() -> Decide:
    """Make another JSON object of two fields."""

    def decide(headers: Headers, payload: bytes) -> bytes:
        body = json.loads(payload)
        return json.dumps({"id": body["id"], "total": float(body["total"]) * 100.0}, separators=(",", ":")).encode()

    return decide


DECIDE: Mapping[str, Callable[[], Decide]] = {
    "header": by_header,
    "body": by_body,
    "first-match": first_match,
    "weighted": weighted,
    "sticky": sticky,
    "payload": transform,
}
