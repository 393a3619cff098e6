"""The codec: the same frames however the bytes are split, frames or a `ProtocolError` for any input, and tails."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from router_trio.errors import ProtocolError
from router_trio.protocol import framing, headers
from router_trio.protocol.framing import MAX_CONTROL_LINE, MAX_INFO, MAX_MESSAGE, FrameParser, RawMessage
from tests.support.buffers import MessageBuffer

KNOWN = (b"1", b"27", b"4")
TOGETHER = (b"27", b"4")

# All bytes that a server allows in a subject, including invalid UTF-8 and unprintable characters.
SUBJECTS = st.sampled_from(
    [b"a", b"a.b.c", b"_INBOX.x.9", b"a\x0bb", b"a\x0c", b"\xff\xfe", "ü".encode(), b"0", b"MSG"]
)
REPLIES = st.sampled_from([b"", b"_INBOX.r", b"r\xff", b"5"])
SIDS = st.sampled_from([*KNOWN, b"3", b"999"])
BLOCKS = st.sampled_from(
    [b"", b"NATS/1.0", b"NATS/1.0\r\n\r\n", b"NATS/1.0 \xff\xff\r\n\r\n", b"NATS/1.0 503\r\n\r\n", b"x", b"\r\n"]
) | st.binary(max_size=20)
BODIES = st.sampled_from([b"", b"x", b"\r\n", b"MSG a 1 2\r\nhi\r\n", b"PING\r\n", b"12\r\n\r\n"]) | st.binary(
    max_size=40
)
CONTROL = st.sampled_from([b"PING", b"PONG", b"+OK", b'INFO {"a":1}', b"-ERR 'Permissions Violation'", b"ping"])


@dataclass(frozen=True)
class Delivered:
    """A message as a server delivers it."""

    subject: bytes
    sid: bytes
    reply: bytes
    block: bytes
    body: bytes

    def frame(self) -> bytes:
        words = [self.subject, self.sid]
        if self.reply:
            words.append(self.reply)
        if self.block:
            words.append(b"%d" % len(self.block))
        words.append(b"%d" % (len(self.block) + len(self.body)))
        return b"%b %b\r\n%b%b\r\n" % (b"HMSG" if self.block else b"MSG", b" ".join(words), self.block, self.body)


MESSAGES = st.builds(Delivered, SUBJECTS, SIDS, REPLIES, BLOCKS, BODIES)


@dataclass
class Parsed:
    """The results of a parser, collected after each `feed`."""

    messages: dict[bytes, list[RawMessage]]
    control: list[bytes]
    failed: bool


def parse(pieces: list[bytes]) -> Parsed:
    parser = FrameParser()
    together: list[MessageBuffer] = []
    buffers = {sid: MessageBuffer(together if sid in TOGETHER else None) for sid in KNOWN}
    parser.buffers.update(buffers)
    parsed = Parsed({sid: [] for sid in KNOWN}, [], False)
    for piece in pieces:
        try:
            parser.feed(piece)
        except ProtocolError:
            parsed.failed = True
        assert len({id(group) for group in parser.touched}) == len(parser.touched)
        touched = [id(buffer) for group in parser.touched for buffer in group]
        assert sorted(touched) == sorted(id(buffer) for buffer in buffers.values() if buffer)
        for sid, buffer in buffers.items():
            assert not buffer or any(group is buffer.group for group in parser.touched)
            parsed.messages[sid] += buffer
            buffer.clear()
            buffer.group.clear()
        parser.touched.clear()
        if parsed.failed:
            break
    parsed.control = parser.control
    return parsed


def cut(data: bytes, at: list[int]) -> list[bytes]:
    places = [0, *sorted(place % (len(data) + 1) for place in at), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(places)]


def read_published(frame: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Return subject, reply, header block and body of a PUB or HPUB frame, parsed as a server does."""
    line, rest = frame.split(b"\r\n", 1)
    kind, *words = line.split(b" ")
    assert kind in (b"PUB", b"HPUB")
    size = int(words.pop())
    header_size = int(words.pop()) if kind == b"HPUB" else 0
    subject, reply = words if len(words) == 2 else (words[0], b"")
    assert rest[size:] == b"\r\n"
    return subject, reply, rest[:header_size], rest[header_size:size]


# --- parsing ---------------------------------------------------------------------------------------------------------


@given(st.lists(MESSAGES | CONTROL, max_size=12), st.lists(st.integers(0, 10_000), max_size=12))
def test_any_split_of_the_bytes_gives_the_same_frames(sent: list[Delivered | bytes], at: list[int]) -> None:
    data = b"".join(one + b"\r\n" if isinstance(one, bytes) else one.frame() for one in sent)
    parsed = parse(cut(data, at))
    assert not parsed.failed
    assert parsed.control == [one for one in sent if isinstance(one, bytes)]
    messages = [one for one in sent if isinstance(one, Delivered)]
    for sid in KNOWN:
        expected = [one for one in messages if one.sid == sid]
        assert len(parsed.messages[sid]) == len(expected)
        for raw, one in zip(parsed.messages[sid], expected, strict=True):
            assert raw[:4] == (one.subject, one.reply, len(one.block), len(one.block) + len(one.body))
            assert framing.header_block(raw) == one.block
            assert framing.payload(raw) == one.body


@given(MESSAGES)
def test_bytes_fed_one_by_one_give_the_same_frames(one: Delivered) -> None:
    data = one.frame() + b"PING\r\n"
    assert parse([bytes([byte]) for byte in data]) == parse([data])


FRAGMENTS = (
    st.sampled_from(
        [b"MSG ", b"HMSG ", b"MSG", b"PING", b"PONG\r\n", b"-ERR ", b" ", b"\r\n", b"\r", b"\n", b"a", b"1"]
    )
    | st.sampled_from([b"5", b"0", b"-1", b"99999999999", b"\x00", b"\xff", b"4 2", b"12 5"])
    | MESSAGES.map(Delivered.frame)
    | st.binary(max_size=6)
)


@given(st.lists(FRAGMENTS, max_size=14).map(b"".join), st.lists(st.integers(0, 10_000), max_size=8))
@example(b"HMSG\r\n", [])
@example(b"MSG a 1 0\r\n\r\nMSG a 1 0\r\nxx", [3])
def test_garbage_gives_the_same_frames_or_error_however_it_is_split(data: bytes, at: list[int]) -> None:
    assert parse(cut(data, at)) == parse([data])


@given(st.binary(max_size=60))
def test_an_unknown_line_is_an_error(line: bytes) -> None:
    line = line.replace(b"\r\n", b"")
    assume(line[:4] not in (b"MSG ", b"HMSG"))
    known = line[:4].upper() in (b"PING", b"PONG", b"INFO", b"-ERR") or line[:3] == b"+OK"
    assert parse([line + b"\r\n"]).failed is not known


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n",
        b"HELLO\r\n",
        b"MSG\r\n",
        b"MSG \r\n",
        b"MSG a\r\n",
        b"MSG a 1\r\n",
        b"MSG a 1 x\r\n",
        b"MSG a 1 r 2 3\r\n",
        b"MSG a 1 -1\r\n",
        b"MSG a 1 99999999999999999999\r\n",
        b"MSG a 1 " + b"9" * 5000 + b"\r\n",
        b"MSG a 1 2\r\nabc\r\n",
        b"MSG a 1 2\r\na\r\nPING\r\n",
        b"HMSG a 1 12\r\n",
        b"HMSG a 1 5 4\r\nabcd\r\n",
        b"HMSG a 1 -1 4\r\nabcd\r\n",
        b"HMSG a 1 r x 4\r\nabcd\r\n",
        b"HMSG a 1 1 r 2 3\r\n",
        b"HTTP/1.1 400 Bad Request\r\n",
    ],
)
def test_a_malformed_frame_is_an_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        FrameParser().feed(data)


def test_frames_before_a_malformed_one_are_kept() -> None:
    parser = FrameParser()
    parser.buffers[b"1"] = buffer = MessageBuffer()
    with pytest.raises(ProtocolError, match="unknown frame b'BOOM'"):
        parser.feed(b"PING\r\nMSG a 1 2\r\nhi\r\nMSG a 9 0\r\n\r\nBOOM\r\n")
    assert parser.control == [b"PING"]
    assert buffer == [(b"a", b"", 0, 2, b"2\r\nhi\r\n")]
    assert parser.touched == [[buffer]]


@pytest.mark.parametrize("sid", [b"x", b"-1", b"1.5", b"1_0", b"\xd9\xa1", b"0x5", b""])
def test_a_message_for_what_is_no_id_of_a_subscription_is_an_error(sid: bytes) -> None:
    with pytest.raises(ProtocolError, match="an unknown subscription"):
        FrameParser().feed(b"MSG a %b 0\r\n\r\n" % sid)


def test_a_line_without_an_end_is_buffered_up_to_a_limit() -> None:
    parser = FrameParser()
    piece = b"x" * (MAX_CONTROL_LINE // 4)
    for _ in range(4):
        parser.feed(piece)
    with pytest.raises(ProtocolError, match="a line of more than"):
        parser.feed(b"x")


@pytest.mark.parametrize(
    ("start", "limit"), [(b"INFO ", MAX_INFO), (b"MSG ", MAX_CONTROL_LINE), (b"-ERR", MAX_CONTROL_LINE)]
)
@pytest.mark.parametrize("size", [1, 1000, 100_000])
def test_only_an_info_line_may_be_long_however_it_is_split(start: bytes, limit: int, size: int) -> None:
    line = start + b"x" * (limit - len(start))
    parser = FrameParser()
    for place in range(0, len(line), size):
        parser.feed(line[place : place + size])
    with pytest.raises(ProtocolError, match=f"a line of more than {limit} bytes"):
        parser.feed(b"xx")


def test_a_line_fed_byte_by_byte_is_joined_once() -> None:
    parser = FrameParser()
    parser.feed(b"INFO ")
    began = time.process_time()
    for _ in range(600_000):
        parser.feed(b"x")
    parser.feed(b"\r\n")
    assert parser.control == [b"INFO " + b"x" * 600_000]
    assert time.process_time() - began < 5, "each piece was searched from the beginning"


SIZES = (b"+5", b"-5", b"-0", b"05", b"5_0", b"1_000", b"\t5", b"5\t", b"\x0b5", b"\xd9\xa5", b"0x5", b"5.0", b"")
LINES = (b"MSG a 1 %b", b"MSG a 1 r %b", b"HMSG a 1 1 %b", b"HMSG a 1 %b 5", b"HMSG a 1 r %b 5", b"MSG a 999 %b")


@pytest.mark.parametrize("size", [*SIZES, b"9" * 10, b"9" * 5_000, b"0000000005"])
def test_a_size_must_be_written_as_a_server_writes_it(size: bytes) -> None:
    body = b"\r\n" + b"x" * 5 + b"\r\n"
    for line in LINES:
        parsed = parse([line % size + body])
        assert parsed.failed, line
        assert not any(parsed.messages.values())


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 70_000])
def test_sizes_written_by_a_server_are_accepted(size: int) -> None:
    (message,) = parse([b"MSG a 1 %d\r\n%b\r\n" % (size, b"x" * size)]).messages[b"1"]
    assert message[3] == size


def test_a_message_larger_than_any_server_allows_is_an_error_at_once() -> None:
    FrameParser().feed(b"MSG a 1 %d\r\n" % MAX_MESSAGE)
    with pytest.raises(ProtocolError, match="a message of"):
        FrameParser().feed(b"MSG a 1 %d\r\n" % (MAX_MESSAGE + 1))


def test_a_large_message_may_arrive_in_many_chunks() -> None:
    body = bytes(range(256)) * 1024
    one = Delivered(b"a", b"1", b"r", b"NATS/1.0\r\n\r\n", body)
    data = one.frame() * 3
    pieces = [data[at : at + 4096] for at in range(0, len(data), 4096)]
    parsed = parse(pieces)
    assert [framing.payload(raw) for raw in parsed.messages[b"1"]] == [body] * 3


def test_a_buffer_that_is_not_emptied_is_listed_once() -> None:
    parser = FrameParser()
    parser.buffers[b"1"] = buffer = MessageBuffer()
    frame = b"MSG a 1 0\r\n\r\n"
    parser.feed(frame * 2)
    parser.feed(frame)
    assert parser.touched == [[buffer]]
    assert len(buffer) == 3


@pytest.mark.parametrize(
    "frame",
    [
        b"MSG \xff\xfe.a 1 5\r\nhello\r\n",
        b"MSG a\x0bb 1 5\r\nhello\r\n",
        b"MSG a\x0cb 1 r 5\r\nhello\r\n",
        b"HMSG a 1 8 13\r\nNATS/1.0hello\r\n",
        b"HMSG a 1 r 12 17\r\nNATS/1.0\r\n\r\nhello\r\n",
        b"HMSG a 1 16 21\r\nNATS/1.0 \xff\xfe\xfd\r\n\r\nhello\r\n",
        b"HMSG a 1 18 23\r\nNATS/1.0\r\n\xff: \xfe\r\n\r\nhello\r\n",
    ],
)
def test_frames_that_crash_other_clients_are_parsed(frame: bytes) -> None:
    parsed = parse([frame])
    assert not parsed.failed
    (raw,) = parsed.messages[b"1"]
    assert framing.payload(raw) == b"hello"
    assert framing.wire(framing.text(raw[0])) == raw[0]
    block = framing.header_block(raw)
    assert headers.status(block) == (0, "")
    assert headers.find(block, b"Nats-Msg-Id") is None
    assert len(headers.decode(block).pairs()) == block.count(b":")


# --- tails -----------------------------------------------------------------------------------------------------------


@given(MESSAGES, SUBJECTS)
def test_a_new_subject_before_a_tail_forwards_the_message(one: Delivered, subject: bytes) -> None:
    one = Delivered(one.subject, b"1", one.reply, one.block, one.body)
    (raw,) = parse([one.frame()]).messages[b"1"]
    frame = (b"H" if raw[2] else b"") + framing.publish_prefix(subject) + raw[4]
    assert read_published(frame) == (subject, one.reply, one.block, one.body)
    assert framing.published_size(frame) == len(one.block) + len(one.body)
    assert frame == framing.publish(subject, one.body, reply=one.reply, headers=one.block)


def test_a_header_size_of_zero_is_refused() -> None:
    """The forwarded tail would be parsed as one with a reply subject."""
    with pytest.raises(ProtocolError, match="a message of 5 bytes with headers of 0 bytes"):
        FrameParser().feed(b"HMSG a 1 0 5\r\nhello\r\n")


# --- frames to send --------------------------------------------------------------------------------------------------


@given(SUBJECTS, REPLIES, BLOCKS, BODIES)
def test_a_published_frame_is_parsed_back(subject: bytes, reply: bytes, block: bytes, body: bytes) -> None:
    frame = framing.publish(subject, body, reply=reply, headers=block)
    assert read_published(frame) == (subject, reply, block, body)
    assert framing.published_size(frame) == len(block) + len(body)
    raw = framing.published(frame)
    assert (*raw[:2], framing.header_block(raw), framing.payload(raw)) == (subject, reply, block, body)
    assert frame == (b"H" if raw[2] else b"") + framing.publish_prefix(subject) + raw[4]


@given(st.binary())
def test_a_subject_survives_conversion_to_text(subject: bytes) -> None:
    assert framing.wire(framing.text(subject)) == subject


def test_subscribe_and_unsubscribe_frames() -> None:
    assert framing.subscribe(b"a.>", b"1") == b"SUB a.> 1\r\n"
    assert framing.subscribe(b"a.>", b"1", b"workers") == b"SUB a.> workers 1\r\n"
    assert framing.unsubscribe(b"1") == b"UNSUB 1\r\n"
    assert framing.PING == b"PING\r\n"
    assert framing.PONG == b"PONG\r\n"
