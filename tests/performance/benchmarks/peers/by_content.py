"""What a program without a router does by the content of a message: one `if`, or a line more.

`DECIDE[JOB]()` gives what takes headers and payload and gives the payload to send, None for nothing. All destinations
are one subject, as in the benchmark, but they are chosen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import cycle
from zlib import crc32

Headers = Mapping[str, str]
Decide = Callable[[Headers, bytes], bytes | None]


def by_header() -> Decide:
    """One header has this value."""
    return lambda headers, payload: payload if headers.get("class") == "c4" else None


def by_body() -> Decide:
    """One field of a JSON body is more than this."""
    return lambda headers, payload: payload if json.loads(payload)["total"] > 100.0 else None


def first_match() -> Decide:
    """The first of ten values that a header has."""
    values = [f"c{number}" for number in range(10)]

    def decide(headers: Headers, payload: bytes) -> bytes | None:
        return payload if any(headers.get("class") == value for value in values) else None

    return decide


def weighted() -> Decide:
    """Of ten in a row, one, two and seven to each of three."""
    turns = cycle([0, 1, 1, *[2] * 7])
    return lambda headers, payload: payload if next(turns) >= 0 else None


def sticky() -> Decide:
    """By the hash of a header, to one of three."""
    return lambda headers, payload: payload if crc32(headers["class"].encode()) % 3 >= 0 else None


def transform() -> Decide:
    """Another JSON object, made of two fields."""

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
