"""Dead letters as values: how one is parsed, rebuilt for redelivery, and printed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router_trio.audit.letter import (
    Letter,
    as_received,
    for_source,
    foreign,
    format_time,
    is_newer,
    read_letter,
    why_not,
)
from router_trio.cli.dead_letters.output import as_json, lines, payload_of, row
from router_trio.nats.jetstream.api import StoredMessage
from router_trio.protocol.headers import Headers, decode, encode

HEADERS = {
    "X-Shop": "north",
    "Nats-Msg-Id": "ORDERS:5:1764151100000000000:dead:abcdefghijklmnop",
    "Nats-Rollup": "all",
    "Router-Dead-Letter-Route": "orders",
    "Router-Dead-Letter-Reason": "timeout",
    "Router-Dead-Letter-Attempts": "5",
    "Router-Dead-Letter-Subject": "orders.7",
    "Router-Dead-Letter-Stream": "ORDERS",
    "Router-Dead-Letter-Sequence": "5",
    "Router-Dead-Letter-Time": "2025-11-26T10:00:00.000Z",
    "router-dead-letter-odd": "x",
}


def message(payload: bytes = b'{"a": 1}', /, **changes: str | None) -> StoredMessage:
    """Return a stored dead letter; `changes` are headers, with `_` for `-`, and None for one to leave out."""
    changed = {name.replace("_", "-"): value for name, value in changes.items()}
    pairs = [(name, value) for name, value in (HEADERS | changed).items() if value is not None]
    return StoredMessage(17, 1_764_151_200_123_456_789, "dead.7", encode(Headers(pairs)), payload)


def letter(**changes: str | None) -> Letter:
    found = read_letter(message(**changes), "orders")
    assert found is not None
    return found


def test_a_dead_letter_belongs_to_its_own_route_only() -> None:
    assert read_letter(message(), "payments") is None
    assert read_letter(replace(message(), headers=b""), "orders") is None


def test_missing_headers_are_empty_and_the_time_defaults_to_that_of_the_stream() -> None:
    found = letter(
        Router_Dead_Letter_Reason=None,
        Router_Dead_Letter_Stream=None,
        Router_Dead_Letter_Attempts="many",
        Router_Dead_Letter_Time=None,
    )
    assert (found.reason, found.from_stream, found.time) == ("", False, "2025-11-26T10:00:00.123Z")
    assert found.fields()["attempts"] is None
    assert format_time(0) == "1970-01-01T00:00:00.000Z"


def test_a_redriven_letter_has_its_own_headers_its_history_and_a_stable_id() -> None:
    def sent(found: Letter, stream: str = "DEAD") -> Headers:
        return decode(for_source(found, stream, "main", jetstream=True).headers)

    block = sent(letter())
    history = {name: value for name, value in HEADERS.items() if "dead-letter" in name.lower()}
    own = {"X-Shop": "north", "Nats-Msg-Id": block["Nats-Msg-Id"], "Router-Redriven": "1"}
    assert dict(block) == own | history
    assert block["Nats-Msg-Id"].startswith("redriven:DEAD:17:1764151200123456789:")
    assert sent(letter()) == block
    assert sent(letter(Router_Redriven="3"))["Router-Redriven"] == "4"


def test_no_two_dead_letters_have_the_same_id_on_their_original_subjects() -> None:
    def its_id(found: StoredMessage, stream: str = "DEAD") -> bytes:
        read = read_letter(found, "orders")
        assert read is not None
        return read.own_id(stream)

    first = message()
    others = [
        replace(first, time_ns=first.time_ns + 1),  # the stream assigned the same sequence a second time
        replace(first, sequence=18),
        replace(first, payload=b"x"),
        replace(first, subject="dead.8"),
        message(X_Shop="south"),
    ]
    ids = {its_id(first), its_id(first, "OTHER"), *map(its_id, others)}
    assert len(ids) == 2 + len(others)


def test_the_route_receives_a_redriven_letter_as_the_original_message() -> None:
    found = letter(Router_Dead_Letter_Message_Id="sender-1")
    received = as_received(found, "ORDERS", "DEAD")
    assert (received.subject, received.payload) == ("orders.7", b'{"a": 1}')
    own = {"X-Shop": "north", "Nats-Msg-Id": "sender-1", "Nats-Rollup": "all", "router-dead-letter-odd": "x"}
    assert dict(decode(received.headers)) == own
    assert received.message_id == b"ORDERS:5:1764151100000000000"
    assert received.place is not None
    assert (received.place.sequence, received.place.time_ns) == (5, 1_764_151_100_000_000_000)
    assert "Nats-Msg-Id" not in decode(as_received(letter(), "ORDERS", "DEAD").headers)
    known = {name.replace("-", "_"): value for name, value in HEADERS.items() if name.startswith("Router-")}
    lone = StoredMessage(
        1, 1, "dead.7", encode(Headers({key.replace("_", "-"): one for key, one in known.items()})), b""
    )
    plain = read_letter(lone, "orders")
    assert plain is not None
    assert as_received(plain, "ORDERS", "DEAD").headers == b"", "it had no headers"


def test_a_core_message_keeps_the_id_that_it_had_in_the_router() -> None:
    found = letter(
        Nats_Msg_Id="0123456789abcdef-7:dead:abcdefghijklmnop",
        Router_Dead_Letter_Stream=None,
        Router_Dead_Letter_Sequence=None,
    )
    received = as_received(found, None, "DEAD")
    assert (received.message_id, received.place) == (b"0123456789abcdef-7", None)


@pytest.mark.parametrize("its_id", ["other", "ORDERS:6:1764151100000000000:dead:abcdefghijklmnop", "", "x:dead:short"])
def test_a_dead_letter_that_was_stored_under_another_id_gets_one_of_its_own(its_id: str) -> None:
    received = as_received(letter(Nats_Msg_Id=its_id), "ORDERS", "DEAD")
    assert received.message_id.startswith(b"redriven:DEAD:17:")


@pytest.mark.parametrize(
    ("changes", "stream", "why"),
    [
        ({}, "ORDERS", None),
        ({"Router_Dead_Letter_Stream": None, "Router_Dead_Letter_Sequence": None}, None, None),
        ({}, None, "its source is stream 'ORDERS', but the route reads no stream"),
        ({}, "OTHER", "its source is stream 'ORDERS', but the route reads stream OTHER"),
        ({"Router_Dead_Letter_Sequence": "9" * 5000}, "ORDERS", "Sequence is not a number"),
        ({"Router_Dead_Letter_Sequence": "0"}, "ORDERS", "Sequence is not a number"),
        ({"Router_Dead_Letter_Sequence": "6"}, "ORDERS", "Nats-Msg-Id does not belong to message 6 of stream ORDERS"),
        ({"Router_Dead_Letter_Attempts": "0"}, "ORDERS", "Attempts is not a number"),
        ({"Router_Dead_Letter_Time": "2025-13-26T10:00:00.000Z"}, "ORDERS", "Time is not a time"),
    ],
)
def test_a_dead_letter_that_no_router_can_have_written_is_reported(
    changes: dict[str, str | None], stream: str | None, why: str | None
) -> None:
    found = foreign(letter(**changes), stream)
    assert found is None if why is None else why in str(found)


def test_a_duplicated_header_was_written_by_no_router() -> None:
    twice = message().headers[:-2] + b"Router-Dead-Letter-Subject: orders.8\r\n\r\n"
    found = read_letter(replace(message(), headers=twice), "orders")
    assert found is not None
    assert (found.origin, found.wrong) == ("orders.7", "it has Router-Dead-Letter-Subject twice")


NANO = 1_764_151_100_000_000_000
"""Time at which the message of these dead letters was stored."""


@pytest.mark.parametrize(
    ("its_id", "time_ns", "newer"),
    [
        ("", NANO + 1, True),
        ("", NANO, False),
        ("somebody", NANO + 1, True),
        ("mine", NANO + 1, False),
        # A copy stored later by the route or by a redrive: of an older message, and of a newer one.
        (f"ORDERS:4:{NANO - 1}:abcdefghijklmnop", NANO + 9, False),
        (f"ORDERS:6:{NANO + 1}:abcdefghijklmnop", NANO + 9, True),
        (f"OTHER:4:{NANO - 1}:abcdefghijklmnop", NANO + 9, True),
        (f"redriven:DEAD:16:1764151200123456788:{'a' * 32}", NANO + 9, False),
        (f"redriven:DEAD:18:1764151200123456790:{'a' * 32}:abcdefghijklmnop", NANO + 9, True),
    ],
)
def test_a_newer_message_is_recognised_by_its_original_position(its_id: str, time_ns: int, newer: bool) -> None:
    block = encode(Headers({"Nats-Msg-Id": its_id} if its_id else {}))
    last = StoredMessage(9, time_ns, "out.7", block, b"")
    assert is_newer(last, letter(), b"mine", at_source=False) is newer


def test_without_a_time_the_sequence_decides_what_is_newer() -> None:
    found = letter(Nats_Msg_Id=None)
    last = StoredMessage(6, NANO, "orders.7", b"", b"")
    assert is_newer(last, found, b"mine", at_source=True)
    assert not is_newer(replace(last, sequence=5), found, b"mine", at_source=True)
    assert not is_newer(last, found, b"mine", at_source=False)


@pytest.mark.parametrize(
    ("origin", "source", "why"),
    [
        ("orders.7", "orders.*", None),
        ("orders.7", ">", None),
        ("$KV.a", "$KV.>", None),
        (None, ">", "it has no header Router-Dead-Letter-Subject"),
        ("orders.*", ">", "has the wildcard"),
        ("a..b", ">", "empty token"),
        ("payments.7", "orders.*", "the route does not read its subject 'payments.7' (it reads orders.*)"),
        ("$JS.API.STREAM.DELETE.X", ">", "is below $, reserved"),
        ("_INBOX.a", ">", "is below _INBOX, reserved"),
        ("_ROUTER.a", ">", "is below _ROUTER, reserved"),
    ],
)
def test_a_letter_is_redriven_only_to_a_subject_that_the_route_reads(
    origin: str | None, source: str, why: str | None
) -> None:
    found = why_not(letter(Router_Dead_Letter_Subject=origin), [source], None, "_ROUTER")
    assert found is None if why is None else why in str(found)


@pytest.mark.parametrize(("taken", "fits"), [(["orders.*", "x"], True), (["x", "orders.*.>"], False), ([], False)])
def test_a_letter_is_redriven_only_to_a_subject_that_the_stream_takes(taken: list[str], fits: bool) -> None:
    found = why_not(letter(), [">"], taken)
    assert (found is None) is fits
    assert fits or "the source stream does not take its subject 'orders.7'" in str(found)


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        (b'{"a": 1}', "json"),
        (b"null", "json"),
        (b"", "text"),
        (b"plain\ntext\t.", "text"),
        (b"\x1b[2J", "hex"),
        (b"\xff", "hex"),
        (b"[" * 100_000, "text"),
    ],
)
def test_a_payload_is_shown_as_json_text_or_hex(payload: bytes, kind: str) -> None:
    assert payload_of(payload)[0] == kind
    shown = "\n".join(lines(message(payload), as_hex=False))
    assert "\x1b" not in shown
    assert f'"{kind}"' in as_json(message(payload))


def test_control_characters_of_a_sender_never_reach_the_terminal() -> None:
    evil = letter(Router_Dead_Letter_Reason="\x1b[2J", Router_Dead_Letter_Subject="orders.\x1b]0;x\x07")
    shown = row(evil) + "\n".join(lines(evil.message, as_hex=True))
    assert "\x1b" not in shown
    assert "\x07" not in shown
