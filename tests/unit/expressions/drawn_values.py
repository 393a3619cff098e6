"""Values and texts that random expressions are made of."""

from __future__ import annotations

from router_trio.expressions.language.types import (
    BOOL,
    BYTES,
    DOUBLE,
    DURATION,
    DYN,
    INT,
    STRING,
    TIMESTAMP,
    UINT,
    list_of,
    map_of,
)

AVOIDED = {
    "numbers of different kinds are ordered": "both sides of < <= > >= are generated with one type, or dyn",
    "1 and 1u are one key of a map": "the keys of a map are generated with one type",
    "text of doubles that are not finite": "string() never gets a calculated double",
    "numbers with spaces or in hexadecimal": "strings that are converted to numbers are chosen from NUMBER_TEXTS",
    "the type of what is taken out of dyn": "body['key'] is generated within dyn()",
    "the order of the keys of a map": "macros that return a list iterate over a list, or over a map with one key",
    "the type of a list and dyn, added": "lists are added within dyn()",
    "the type of dyn among other values": "a list or map literal with a dyn in it is generated within dyn()",
    "the type of null among other values": "null is generated within dyn(), except in comparisons with null",
    "the type of an empty list or map": "an empty literal is generated only beside another list",
    "!! and --": "operands of a sign are generated in parentheses",
    "int() of a bool": "int() never gets a dyn",
    "substring() up to the end": "the generated string is longer than the second position",
    "times of more than 292 years": "times are not generated so far apart, nor durations so long",
}

VARIABLES = {
    "subject": STRING,
    "tokens": list_of(STRING),
    "headers": map_of(STRING, STRING),
    "body": DYN,
    "payload": BYTES,
    "size": INT,
    "unsigned": UINT,
    "ratio": DOUBLE,
    "flag": BOOL,
    "time": TIMESTAMP,
    "wait": DURATION,
}

INTS = (0, 1, -1, 2, 3, 7, 10, 100, -5, 2**31, 2**53, -(2**53), 2**63 - 1, -(2**63))
UINTS = (0, 1, 2, 3, 7, 10, 100, 2**32, 2**64 - 1)
DOUBLES = (0.0, 1.0, -1.0, 0.5, 1.5, 2.0, 100.0, 1e6, 123456.75, 1e-5, 1e21, 1e300, -2.5, 3.0, 1234567.8, 0.1)
STRINGS = (
    "",
    "a",
    "b",
    "eu",
    "us",
    "abc",
    "a,b,c",
    "Hello",
    "é",
    "日本",
    "😀x",
    "a.b",
    "10",
    "A-b",
    "  x ",
    "abcabc",
    "x" * 30,
)
NUMBER_TEXTS = (
    "0",
    "1",
    "-1",
    "10",
    "007",
    "+5",
    "1.5",
    "1e3",
    "-2.5e-3",
    "",
    "x",
    "9223372036854775808",
    "1.",
    ".5",
    "true",
)
BOOL_TEXTS = ("true", "false", "True", "FALSE", "t", "f", "1", "0", "yes", "")
TIME_TEXTS = (
    "1970-01-01T00:00:00Z", "2026-01-31T08:09:10.5Z", "2024-02-29T23:59:59.999999999Z", "2026-07-01T00:00:00+02:00",
    "1968-02-29T12:00:00Z", "2036-12-31T23:59:59Z", "2026-02-30T00:00:00Z", "now", "2026-01-01T25:00:00Z",
    "2026-01-31T08:09:10.123456-11:30", "",
)  # fmt: skip
DURATION_TEXTS = (
    "1s",
    "0",
    "1h30m",
    "-1.5s",
    "100ms",
    "1us",
    "5ns",
    "1d",
    "x",
    "",
    "31557600s",
    "-2h",
    "1.25h",
    "3m0.5s",
)
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "+01:00", "-09:30", "02:00", "Nowhere/At_all", "Asia/Kolkata")
PATTERNS = ("a.c", "^a", "b$", "[a-c]+", "x{3,}", "(eu|us)", "", "\\\\d+", "é", "^$")
KEYS = ("total", "name", "items", "a", "b", "customer", "id", "missing", "region")
GETTERS = (
    "getFullYear", "getMonth", "getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear", "getHours", "getMinutes",
    "getSeconds", "getMilliseconds",
)  # fmt: skip
LIST_INT, LIST_STRING, MAP_INT = list_of(INT), list_of(STRING), map_of(STRING, INT)
PLAIN = (INT, UINT, DOUBLE, BOOL, STRING, BYTES, TIMESTAMP, DURATION)
EVERY = (*PLAIN, LIST_INT, LIST_STRING, MAP_INT, DYN, list_of(DYN))
