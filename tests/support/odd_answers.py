"""Bodies that a peer may send instead of JSON, for tests of all readers of answers."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

DIGITS = b"9" * 5000

BODIES: dict[str, bytes] = {
    "empty": b"",
    "null": b"null",
    "list": b"[]",
    "number": b"7",
    "text": b'"x"',
    "true": b"true",
    "infinity": b"1e999",
    "not a number": b"NaN",
    "no JSON": b"hello",
    "half": b'{"config": {',
    "no UTF-8": b"\xff\xfe\xff",
    "UTF-16": '{"seq": 1}'.encode("utf-16"),
    "NUL": b"\0" * 100,
    "empty object": b"{}",
    "other object": b'{"x": 1}',
    "5,000 digits": DIGITS,
    "5,000 digits in an object": b'{"seq": %b, "code": %b}' % (DIGITS, DIGITS),
    "brackets": b"[" * 100_000,
    "braces": b'{"a":' * 50_000,
    "brackets that end": b'{"x":' + b"[" * 900 + b"]" * 900 + b"}",
    "a megabyte of text": b'{"error": {"description": "' + b"x" * 900_000 + b'"}}',
    "error is a number": b'{"error": 7}',
    "error is a text": b'{"error": "no"}',
    "error is a list": b'{"error": []}',
    "error is empty": b'{"error": {}}',
    "error is true": b'{"error": true}',
    "code is infinite": b'{"error": {"code": 1e999, "err_code": 1e999}}',
    "code is a text": b'{"error": {"code": "404"}}',
    "code is true": b'{"error": {"code": true}}',
    "code is null": b'{"error": {"code": null, "err_code": null, "description": null}}',
    "code has 5,000 digits": b'{"error": {"code": 404, "err_code": %b}}' % DIGITS,
    "code has 4,000 digits": b'{"error": {"code": %b}}' % DIGITS[:4000],
    "description is a number": b'{"error": {"code": 404, "err_code": 10059, "description": 7}}',
}

VALUES: list[Any] = [
    None,
    True,
    False,
    7,
    -1,
    0,
    7.5,
    2**64,
    10**4000,
    float("inf"),
    float("nan"),
    "x",
    "",
    "\ud800",
    "x" * 100_000,
    [],
    [None],
    [[]],
    {},
    {"x": None},
]
"""Values to put in place of any field."""

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-(10**40), 10**40) | st.floats() | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
"""Any value that Python's JSON can write."""
