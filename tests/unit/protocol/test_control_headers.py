"""Control headers: finding and removing them in raw blocks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_trio.protocol.control_headers import CONTROL_HEADERS, ControlHeaders, is_control_header
from router_trio.protocol.headers import END, VERSION, Headers, decode, encode

OF_EACH_KIND = [
    *("Nats-Rollup", "Nats-TTL", "Nats-Incr", "Nats-Marker-Reason", "Nats-Stream-Source"),
    *("Nats-Schedule", "Nats-Schedule-Target", "Nats-Schedule-TTL", "Nats-Scheduler"),
    *("Nats-Batch-Id", "Nats-Batch-Sequence", "Nats-Batch-Commit"),
    *("Nats-Expected-Stream", "Nats-Expected-Last-Sequence", "Nats-Expected-Last-Subject-Sequence-Subject"),
    *("Nats-Trace-Dest", "Nats-Trace-Only", "Nats-Trace-Hop"),
]
HARMLESS = ["Nats-Msg-Id", "Nats-TTLs", "Nats-Rollups", "X-Nats-Rollup", "Nats", "Nats-Subject", "traceparent"]


def block(*lines: bytes) -> bytes:
    return b"\r\n".join([VERSION, *lines]) + END


@pytest.mark.parametrize("name", OF_EACH_KIND)
@pytest.mark.parametrize("write", [str, str.upper, str.lower])
def test_control_headers_are_removed_in_any_case_and_others_stay(name: str, write: type[str]) -> None:
    line = f"{write(name)}: x".encode()
    assert is_control_header(write(name))
    assert ControlHeaders().search(block(line)) is not None
    assert ControlHeaders().removed(block(b"A: 1", line, b"B: 2", line)) == block(b"A: 1", b"B: 2")
    assert ControlHeaders().removed(block(line)) == b""


@pytest.mark.parametrize("name", HARMLESS)
def test_a_name_similar_to_a_control_header_stays(name: str) -> None:
    harmless = block(f"{name}: Nats-Rollup: x".encode())
    assert not is_control_header(name)
    assert ControlHeaders().search(harmless) is None
    assert ControlHeaders().removed(harmless) == harmless


@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_only_control_headers_in_keep_are_forwarded(name: str) -> None:
    others = [one for one in OF_EACH_KIND if one != name]
    lines = {one: f"{one}: x".encode() for one in OF_EACH_KIND}
    kept = ControlHeaders([name.lower()])
    assert kept.removed(block(lines[name])) == block(lines[name])
    assert all(kept.removed(block(lines[one])) == b"" for one in others)


def test_keep_may_name_a_family_of_headers() -> None:
    kept = ControlHeaders(["Nats-Expected-*", "Nats-TTL"])
    lines = [b"Nats-Expected-Stream: S", b"Nats-TTL: 1h", b"Nats-Rollup: all"]
    assert kept.removed(block(*lines)) == block(*lines[:2])


@pytest.mark.parametrize(
    ("odd", "clean"),
    [
        (b"NATS/1.0\r\nA: 1\nNats-Rollup: all\nB: 2\r\n\r\n", b"NATS/1.0\r\nA: 1\nB: 2\r\n\r\n"),
        (block(b"Nats-Rollup: all", b" folded", b"\tmore", b"B: 2"), block(b"B: 2")),
        (block(b"Nats-Rollup : all"), b""),
        (b"NATS/1.0\r\nA: 1\r\nNats-Rollup: all", block(b"A: 1")),
        (block(b"A: 1\nNats-Rollup: all", b"B: 2"), block(b"A: 1", b"B: 2")),
        (block(b"A: 1\nNats-Schedule-z", b"B: 2"), block(b"A: 1", b"B: 2")),
        (block(b"Nats-Schedule", b"B: 2"), block(b"B: 2")),
        (block(b"A: 1\nNats-TTL", b"Nats-TTL", b"B: 2"), block(b"A: 1", b"B: 2")),
        (b"NATS/1.0 503 told\r\nNats-Rollup: all\r\n\r\n", b"NATS/1.0 503 told\r\n\r\n"),
    ],
)
def test_malformed_blocks_are_cleaned_too(odd: bytes, clean: bytes) -> None:
    assert ControlHeaders().removed(odd) == clean


@given(st.binary(max_size=200), st.lists(st.sampled_from([*OF_EACH_KIND, *HARMLESS, "A"]), max_size=8), st.binary())
def test_no_control_header_that_a_server_would_read_is_left(first: bytes, names: list[str], value: bytes) -> None:
    lines = [f"{name}: ".encode() + value for name in names]
    dirty = b"\r\n".join([VERSION + first, *lines]) + END
    clean = ControlHeaders().removed(dirty)
    # nats-server finds a header in this way: `getHeaderKeyIndex` in server/client.go.
    assert not any(f"\r\n{name}:".encode() in clean for name in OF_EACH_KIND)
    assert ControlHeaders().removed(clean or block()) == clean
    assert {name for name in names if name not in OF_EACH_KIND} <= {name for name, _ in decode(clean).pairs()}


def test_control_headers_set_by_a_handler_are_forwarded_but_not_unchanged_ones() -> None:
    received = Headers([("Nats-TTL", "1h"), ("Nats-Rollup", "all"), ("A", "1")])
    returned = Headers([("Nats-TTL", "2h"), ("Nats-Rollup", "all"), ("A", "1"), ("Nats-Msg-Id", "7")])
    clean = ControlHeaders().removed_from(returned, received)
    assert clean.pairs() == (("Nats-TTL", "2h"), ("A", "1"), ("Nats-Msg-Id", "7"))
    assert decode(encode(clean)) == clean


def test_each_control_header_has_a_description() -> None:
    assert all(does for does in CONTROL_HEADERS.values())
    assert all(is_control_header(name) for name in CONTROL_HEADERS)
