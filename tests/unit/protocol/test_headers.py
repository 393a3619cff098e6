"""Headers: encoded headers decode to the same, invalid ones are refused, and decoding never fails."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_trio.errors import PublishError
from router_trio.message import Message
from router_trio.protocol import headers
from router_trio.protocol.headers import EMPTY, Headers

NAMES = st.text(st.sampled_from("aAbB-_!~#9"), min_size=1, max_size=5)
# Without white space at the ends, which decoding strips, as every client does.
VALUES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), max_size=12).filter(
    lambda value: value == value.strip(" \t\x0b\x0c")
)
PAIRS = st.lists(st.tuples(NAMES, VALUES), max_size=6)
LINES = st.sampled_from(
    [b"NATS/1.0", b"A: b", b"A:c", b"B:", b": x", b"no colon", b"", b"\xff: \xfe", b"AA: d", b"a: e"]
)
BLOCKS = st.lists(LINES, min_size=1, max_size=7).map(b"\r\n".join) | st.binary(max_size=40)


# --- the mapping -----------------------------------------------------------------------------------------------------


def test_a_repeated_name_gives_its_first_value_and_all_of_them() -> None:
    found = Headers([("A", "1"), ("B", "2"), ("A", "3")])
    assert found["A"] == "1"
    assert found.get_all("A") == ["1", "3"]
    assert found.get_all("a") == [], "names are case-sensitive"
    assert found.get("a") is None
    assert list(found) == ["A", "B"]
    assert len(found) == 2
    assert dict(found) == {"A": "1", "B": "2"}
    assert found.pairs() == (("A", "1"), ("B", "2"), ("A", "3"))
    with pytest.raises(KeyError, match="a"):
        found["a"]


def test_headers_are_created_from_mappings_and_pairs() -> None:
    pairs = (("A", "1"), ("A", "2"), ("B", "3"))
    mapping: dict[str, str | list[str]] = {"A": ["1", "2"], "B": "3"}
    assert Headers(mapping).pairs() == pairs
    for source in (Headers(pairs), list(pairs), iter(pairs)):
        assert Headers(source).pairs() == pairs
    assert Headers(None) == Headers({}) == EMPTY


def test_set_keeps_the_place_and_leaves_the_original_alone() -> None:
    original = Headers([("A", "1"), ("B", "2"), ("A", "3")])
    assert original.set("A", "9").pairs() == (("A", "9"), ("B", "2"))
    assert original.set("C", "9").pairs() == (*original.pairs(), ("C", "9"))
    assert original.pairs() == (("A", "1"), ("B", "2"), ("A", "3"))


def test_headers_are_equal_if_their_pairs_are() -> None:
    assert Headers([("A", "1"), ("B", "2")]) != Headers([("B", "2"), ("A", "1")])
    assert Headers({"A": "1"}) == {"A": "1"}
    assert Headers({"A": "1"}) != {"A": "2"}
    assert hash(Headers({"A": "1"})) == hash(Headers([("A", "1")]))
    assert Headers({"A": "1"}) != 1
    assert repr(Headers({"A": "1"})) == "Headers([('A', '1')])"


def test_a_message_accepts_any_mapping_as_new_headers() -> None:
    message = Message("a").replace(headers={"A": ["1", "2"]})
    assert message.headers.get_all("A") == ["1", "2"]
    with pytest.raises(TypeError):
        message.replace(subjekt="b")  # type: ignore[call-arg]


# --- encoding --------------------------------------------------------------------------------------------------------


@given(PAIRS)
def test_encoded_headers_are_decoded_with_order_and_repetition(pairs: list[tuple[str, str]]) -> None:
    block = headers.encode(Headers(pairs))
    assert headers.decode(block).pairs() == tuple(pairs)
    if pairs:
        assert block.startswith(b"NATS/1.0\r\n")
        assert block.endswith(b"\r\n\r\n")
        assert block.count(b"\r\n") == len(pairs) + 2
    else:
        assert block == b""


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a\r\nb", "a\n", "a\0", "ä", "\x7f", " a", "a\t"])
def test_a_name_that_would_break_the_frame_is_refused(name: str) -> None:
    with pytest.raises(PublishError, match=r"header name .* is not valid; use printable ASCII") as e:
        headers.encode(Headers([(name, "x")]))
    assert e.value.reason == "invalid_header"


@pytest.mark.parametrize("value", ["a\r\nB: c", "a\n", "\r", "a\0b"])
def test_a_value_that_would_break_the_frame_is_refused(value: str) -> None:
    with pytest.raises(PublishError, match="header 'A' has CR, LF or NUL in its value") as e:
        headers.encode(Headers({"A": value}))
    assert e.value.reason == "invalid_header"


@pytest.mark.parametrize("value", ["\ud800", "a\udc0d", "a\udc0ab"])
def test_a_value_that_can_not_be_encoded_is_refused(value: str) -> None:
    with pytest.raises(PublishError, match="header 'A' has an unpaired surrogate in its value"):
        headers.encode(Headers({"A": value}))


def test_a_value_that_is_not_a_string_is_refused() -> None:
    with pytest.raises(PublishError, match="header 'A': names and values must be strings"):
        headers.encode(Headers([("A", 1)]))  # type: ignore[list-item]


# --- decoding --------------------------------------------------------------------------------------------------------


@given(BLOCKS)
def test_decoding_never_fails(block: bytes) -> None:
    decoded = headers.decode(block)
    code, description = headers.status(block)
    assert code >= 0
    assert code or not description
    for name in decoded:
        found = headers.find(block, name.encode("utf-8", "surrogateescape"))
        assert found is not None
        assert found.decode("utf-8", "surrogateescape") == decoded[name]


def test_bytes_that_are_not_utf_8_survive() -> None:
    decoded = headers.decode(b"NATS/1.0\r\nA: \xff\xfe\r\n\r\n")
    assert headers.encode(decoded) == b"NATS/1.0\r\nA: \xff\xfe\r\n\r\n"


def test_lines_without_a_colon_are_skipped_and_values_are_stripped() -> None:
    assert headers.decode(b"NATS/1.0 100 Idle\r\nx\r\nA:1\r\nB:  2 \r\nC:\r\n\r\n").pairs() == (
        ("A", "1"),
        ("B", "2"),
        ("C", ""),
    )
    assert headers.decode(b"") is EMPTY
    assert headers.decode(b"NATS/1.0") == EMPTY


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (b"", (0, "")),
        (b"NATS/1.0", (0, "")),
        (b"NATS/1.0\r\n\r\n", (0, "")),
        (b"NATS/1.0 503\r\n\r\n", (503, "")),
        (b"NATS/1.0 409 Exceeded MaxWaiting\r\n\r\n", (409, "Exceeded MaxWaiting")),
        (b"NATS/1.0   404   No Messages\r\nA: b\r\n\r\n", (404, "No Messages")),
        (b"NATS/1.0 \xff\xfe\r\n\r\n", (0, "")),
        (b"NATS/1.0 408 \xff\r\n\r\n", (408, "�")),
        (b"NATS/1.0 -1\r\n\r\n", (0, "")),
        (b"NATS/1.0 " + b"9" * 5000, (0, "")),
        (b"NATS/1.0 1000 x\r\n\r\n", (0, "")),
        (b"NATS/1.0 +99 x\r\n\r\n", (0, "")),
        ("NATS/1.0 ٣٣٣ x\r\n\r\n".encode(), (0, "")),
        (b"NATS/1.0 999 " + b"x" * 5000, (999, "x" * 95)),
        (b"NATS/1.0 409 a\nb\x1b[31m\x00\r\n\r\n", (409, "a?b?[31m?")),
        (b"NATS/1.0\r\nA: 503\r\n\r\n", (0, "")),
    ],
)
def test_the_status_of_a_block_is_read(block: bytes, expected: tuple[int, str]) -> None:
    assert headers.status(block) == expected


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (b"", None),
        (b"NATS/1.0\r\nNats-Msg-Id: 1\r\n\r\n", b"1"),
        (b"NATS/1.0\r\nNats-Msg-Id:1\r\nNats-Msg-Id: 2\r\n\r\n", b"1"),
        (b"NATS/1.0\r\nX-Nats-Msg-Id: 1\r\n\r\n", None),
        (b"NATS/1.0\r\nNats-Msg-Id2: 1\r\n\r\n", None),
        (b"NATS/1.0\r\nA: Nats-Msg-Id: 1\r\n\r\n", None),
        (b"NATS/1.0\r\nNats-Msg-Id:\r\n\r\n", b""),
        # A server relays a block with an unterminated last line, whose value is complete.
        (b"NATS/1.0\r\nNats-Msg-Id: 123", b"123"),
        (b"NATS/1.0\r\nNats-Msg-Id: 123\r\n", b"123"),
    ],
)
def test_a_header_is_found_in_a_raw_block(block: bytes, expected: bytes | None) -> None:
    assert headers.find(block, b"Nats-Msg-Id") == expected


# --- replacing in a raw block ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (b"", b"NATS/1.0\r\nA: new\r\n\r\n"),
        (b"NATS/1.0", b"NATS/1.0\r\nA: new\r\n\r\n"),
        (b"NATS/1.0\r\n\r\n", b"NATS/1.0\r\nA: new\r\n\r\n"),
        (b"NATS/1.0 503\r\n\r\n", b"NATS/1.0 503\r\nA: new\r\n\r\n"),
        (b"NATS/1.0\r\nB: b\r\n\r\n", b"NATS/1.0\r\nB: b\r\nA: new\r\n\r\n"),
        (b"NATS/1.0\r\nA: old\r\nB: b\r\n\r\n", b"NATS/1.0\r\nA: new\r\nB: b\r\n\r\n"),
        (b"NATS/1.0\r\nA: old\r\n\r\n", b"NATS/1.0\r\nA: new\r\n\r\n"),
        (b"NATS/1.0\r\nA: old", b"NATS/1.0\r\nA: new\r\n\r\n"),
        (b"NATS/1.0\r\nB: b", b"NATS/1.0\r\nB: b\r\nA: new\r\n\r\n"),
        (b"NATS/1.0\r\nAA: b\r\na: c\r\n\r\n", b"NATS/1.0\r\nAA: b\r\na: c\r\nA: new\r\n\r\n"),
    ],
)
def test_a_header_is_replaced_in_its_place_or_added_at_the_end(block: bytes, expected: bytes) -> None:
    assert headers.replace(block, b"A", b"new") == expected


@given(PAIRS, NAMES, VALUES)
def test_replacing_changes_one_value_only(pairs: list[tuple[str, str]], name: str, value: str) -> None:
    block = headers.replace(headers.encode(Headers(pairs)), name.encode(), value.encode())
    expected = list(pairs)
    at = next((place for place, (key, _) in enumerate(pairs) if key == name), None)
    if at is None:
        expected.append((name, value))
    else:
        expected[at] = (name, value)
    assert headers.decode(block).pairs() == tuple(expected)
    assert headers.find(block, name.encode()) == value.encode()


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (b"NATS/1.0\r\n\r\n", b"NATS/1.0\r\n\r\n"),
        (b"NATS/1.0\r\nA: 1\r\n\r\n", b"NATS/1.0\r\nA: 1\r\n\r\n"),
        (b"NATS/1.0\r\nNats-A: 1\r\nA: Nats-\r\nNats-B: 2\r\n\r\n", b"NATS/1.0\r\nA: Nats-\r\n\r\n"),
        (b"NATS/1.0\r\nA: 1\r\nNats-A: 1", b"NATS/1.0\r\nA: 1\r\n\r\n"),
    ],
)
def test_headers_of_one_family_are_removed(block: bytes, expected: bytes) -> None:
    assert headers.without(block, b"Nats-") == expected


FORGED = b"\nNats-Rollup: all\r\n"


@pytest.mark.parametrize("mark", [b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r\n"])
def test_a_value_ends_at_its_first_carriage_return_or_line_feed(mark: bytes) -> None:
    forged = b"7" + mark + b"Nats-Rollup: all"
    block = b"NATS/1.0\r\nNats-Msg-Id: " + forged + b"\r\nA: b\r\n\r\n"
    assert headers.find(block, b"Nats-Msg-Id") == b"7"
    assert headers.line("A", forged.decode()) == b"A: 7\r\n"
    for before in (b"", b"NATS/1.0\r\nA: b\r\n\r\n", b"NATS/1.0\r\nA: b\nC: d\r\nNats-Msg-Id: 1\r\n\r\n"):
        written = headers.replace(before, b"Nats-Msg-Id", forged)
        assert b"Nats-Rollup" not in written
        assert headers.find(written, b"Nats-Msg-Id") == b"7"


@given(st.text(alphabet="ab: \r\n\0\x0b\x85\u2028", max_size=20))
def test_no_written_value_makes_a_second_line(value: str) -> None:
    line = headers.line("A", value)
    assert line.endswith(b"\r\n")
    assert not {b"\r"[0], b"\n"[0]} & set(line[:-2])


def test_nothing_of_a_replaced_value_stays() -> None:
    block = b"NATS/1.0\r\nNats-Msg-Id: 7" + FORGED + b"A: b\r\n\r\n"
    assert headers.replace(block, b"Nats-Msg-Id", b"8") == b"NATS/1.0\r\nNats-Msg-Id: 8\r\nA: b\r\n\r\n"


@given(BLOCKS)
def test_a_header_set_in_any_block_is_found_in_it(block: bytes) -> None:
    assert headers.find(headers.replace(block, b"Nats-Msg-Id", b"7"), b"Nats-Msg-Id") == b"7"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"0", 0),
        (b"17", 17),
        (b"9" * 18, 10**18 - 1),
        (b"9" * 19, None),
        (b"9" * 5000, None),
        (b"-1", None),
        (b"+1", None),
        (b"1_0", None),
        (b"1.0", None),
        (b"1e999", None),
        ("٣".encode(), None),
        (b"", None),
    ],
)
def test_a_number_is_found_in_a_block(value: bytes, expected: int | None) -> None:
    assert headers.find_number(b"NATS/1.0 408\r\nA: b\r\nNumber: %b\r\n\r\n" % value, b"Number") == expected
    assert headers.find_number(b"NATS/1.0 408\r\nA: b\r\n\r\n", b"Number") is None


@given(block=st.binary(max_size=300) | st.binary(max_size=300).map(lambda tail: b"NATS/1.0 " + tail))
def test_the_status_of_any_block_is_bounded(block: bytes) -> None:
    code, description = headers.status(block)
    assert 0 <= code <= 999
    assert len(description) <= headers.MAX_DESCRIPTION
    assert description.isprintable()
