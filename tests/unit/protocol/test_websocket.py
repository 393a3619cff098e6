"""Frames of WebSocket: read in any pieces, written in any parts, and refused where a server may not send them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_trio.errors import ProtocolError
from router_trio.protocol.websocket import (
    MASK_PIECE,
    MAX_CONTROL,
    MAX_FRAME,
    FrameReader,
    FrameWriter,
    accept_for,
    new_key,
)
from tests.support.websockets import BINARY, CLOSE, CONTINUATION, PING, TEXT, read_client_frames, server_frame


def pieces(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    """Cut bytes at these distances, and the rest into one."""
    for size in sizes:
        if not data:
            return
        yield data[:size]
        data = data[size:]
    if data:
        yield data


def feed(reader: FrameReader, data: bytes, step: int) -> bytes:
    return b"".join(reader.feed(data[at : at + step]) for at in range(0, len(data), step))


def test_the_accept_of_a_key_is_that_of_the_rfc() -> None:
    assert accept_for(b"dGhlIHNhbXBsZSBub25jZQ==") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert len(new_key()) == 24
    assert new_key() != new_key()


# --- reading ---

SIZES = st.sampled_from([0, 1, 5, MAX_CONTROL, MAX_CONTROL + 1, 300, 0xFFFF, 0x10000, 70_000])


@given(
    st.lists(st.tuples(SIZES, st.integers(1, 4), st.booleans()), max_size=6),
    st.lists(st.integers(1, 200_000) | st.integers(1, 12), max_size=60),
)
def test_payload_is_read_in_any_frames_and_any_pieces(frames: list[tuple[int, int, bool]], sizes: list[int]) -> None:
    expected, wire, pings = b"", b"", 0
    for number, (size, fragments, ping) in enumerate(frames):
        body = bytes([number % 251]) * size
        expected += body
        step = size // fragments + 1
        for at in range(fragments):
            final = at == fragments - 1
            wire += server_frame(BINARY if at == 0 else CONTINUATION, body[at * step : (at + 1) * step], final=final)
            if ping:  # a control frame may be between fragments
                pings += 1
                wire += server_frame(PING, b"%d" % pings)
    reader, payload, last = FrameReader(), b"", None
    for piece in pieces(wire, sizes):
        payload += reader.feed(piece)
        if reader.ping is not None:
            last = reader.take_ping()
    assert payload == expected
    assert last == (b"%d" % pings if pings else None)
    assert reader.close is None


def test_only_the_latest_of_several_pings_is_kept() -> None:
    reader = FrameReader()
    assert reader.feed(b"".join(server_frame(PING, b"%d" % number) for number in range(10_000))) == b""
    assert reader.take_ping() == b"9999"
    assert reader.ping is None


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b"", "WebSocket closed without a status"),
        (b"\x03\xe8", "WebSocket closed with 1000 (normal closure)"),
        (b"\x03\xf0Slow Consumer", "WebSocket closed with 1008 (policy violation): Slow Consumer"),
        (b"\x0f\xa0\xff\x00", "WebSocket closed with 4000: �\\x00"),
    ],
)
def test_a_close_frame_is_shown_and_nothing_is_read_behind_it(body: bytes, shown: str) -> None:
    reader = FrameReader()
    data = server_frame(BINARY, b"last") + server_frame(CLOSE, body) + server_frame(BINARY, b"more") + b"\xff" * 9
    assert feed(reader, data, 1) == b"last"
    assert str(reader.close) == shown
    assert str(reader.close).isprintable()


VIOLATIONS = {
    "text": server_frame(TEXT, b"x"),
    "reserved bit": bytes([0xC2, 1]) + b"x",
    "masked": bytes([0x82, 0x81]) + b"keyyx",
    "unknown data frame": bytes([0x83, 0]),
    "unknown control frame": bytes([0x8B, 0]),
    "long ping": bytes([0x89, 126, 0, 200]),
    "fragmented ping": bytes([0x09, 0]),
    "half a status": server_frame(CLOSE, b"\x03"),
    "fragment of nothing": server_frame(CONTINUATION, b"x"),
    "a new frame within fragments": server_frame(BINARY, b"x", final=False) + server_frame(BINARY, b"y"),
    "too large": bytes([0x82, 127]) + (MAX_FRAME + 1).to_bytes(8, "big"),
    "negative size": bytes([0x82, 127]) + b"\xff" * 8,
    "long form of a small size": bytes([0x82, 126, 0, 5]) + b"xxxxx",
    "longest form of a medium size": bytes([0x82, 127]) + (0xFFFF).to_bytes(8, "big"),
}


@pytest.mark.parametrize("kind", VIOLATIONS)
def test_a_frame_that_no_server_sends_is_refused(kind: str) -> None:
    data = server_frame(BINARY, b"before") + VIOLATIONS[kind]
    for step in (1, 3, len(data)):
        with pytest.raises(ProtocolError, match="violation of the WebSocket protocol") as caught:
            feed(FrameReader(), data, step)
        assert len(str(caught.value)) < 200


@given(st.binary(max_size=200), st.lists(st.integers(1, 20), max_size=30))
def test_any_bytes_are_read_or_refused(data: bytes, sizes: list[int]) -> None:
    reader = FrameReader()
    payload = 0
    with suppress(ProtocolError):
        for piece in pieces(data, sizes):
            payload += len(reader.feed(piece))
            assert len(reader._head) <= 2 + 8 + MAX_CONTROL
    assert payload <= len(data)


def test_a_large_frame_is_not_collected() -> None:
    reader = FrameReader()
    assert reader.feed(bytes([0x82, 127]) + MAX_FRAME.to_bytes(8, "big")) == b""
    piece = b"x" * 100_000
    assert reader.feed(piece) is piece
    assert reader._head == b""


# --- writing ---


def taking(limit: int, written: bytearray) -> Callable[[bytes], int]:
    """Return a write to a socket that takes this many bytes."""

    def write(frame: bytes) -> int:
        written.extend(frame[:limit])
        return min(limit, len(frame))

    return write


@given(
    st.booleans(),
    st.lists(
        st.sampled_from([0, 1, 3, 4, 125, 126, 1000, 0xFFFF, 0x10000, MASK_PIECE, 3 * MASK_PIECE + 1]), max_size=5
    ),
    st.lists(st.integers(0, 30) | st.integers(0, 100_000), max_size=5),
    st.lists(st.booleans(), max_size=5),
)
def test_written_frames_carry_the_payload_whatever_a_socket_takes(
    masking: bool, sizes: list[int], takes: list[int], pinged: list[bool]
) -> None:
    """As a wire does it: what a socket does not take at once is sent entirely, before and with what follows."""
    writer = FrameWriter(masking=masking)
    written, expected, pongs = bytearray(), b"", 0
    for number, size in enumerate(sizes):
        data = bytes([number + 1]) * size + b"end"
        expected += data
        if pinged[number : number + 1] == [True]:
            pongs += 1
            writer.answer(b"%d" % pongs)
        sent = writer.write_some(data, taking(takes[number] if number < len(takes) else 1_000_000, written))
        assert 0 <= sent <= len(data)
        if sent < len(data):
            written += writer.frame(data[sent:])
    written += writer.frame(b"")
    frames = read_client_frames(bytes(written))
    assert b"".join(frame.body for frame in frames if frame.opcode == BINARY) == expected
    assert [frame.body for frame in frames if frame.opcode != BINARY] == [
        b"%d" % number for number in range(1, pongs + 1)
    ]
    assert {frame.masked for frame in frames} <= {masking}


def test_each_frame_has_a_new_mask() -> None:
    writer = FrameWriter(masking=True)
    assert writer.frame(b"same") != writer.frame(b"same")


def test_a_pong_waits_for_the_end_of_an_open_frame() -> None:
    writer = FrameWriter(masking=False)
    assert writer.write_some(b"payload", lambda frame: 4) == 2
    writer.answer(b"first")
    writer.answer(b"second")
    assert writer.frame(b"yload" + b"more") == b"yload" + b"\x8a\x06second" + b"\x82\x04more"
    assert writer.frame(b"") == b""
