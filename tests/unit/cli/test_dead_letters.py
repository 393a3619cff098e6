"""Dead letters as values: what is read of one, what it is made into again, and how it looks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router_trio.cli.dead_letters.letter import Letter, header_block, read_letter, why_not, written
from router_trio.cli.dead_letters.output import as_json, lines, payload_of, row
from router_trio.nats.jetstream.api import StoredMessage
from router_trio.protocol.headers import Headers, decode, encode

HEADERS = {
    "X-Shop": "north",
    "Nats-Msg-Id": "IN.1:dead",
    "Nats-Rollup": "all",
    "Router-Dead-Letter-Route": "orders",
    "Router-Dead-Letter-Reason": "timeout",
    "Router-Dead-Letter-Attempts": "5",
    "Router-Dead-Letter-Subject": "orders.7",
    "Router-Dead-Letter-Stream": "ORDERS",
    "router-dead-letter-odd": "x",
}


def message(payload: bytes = b'{"a": 1}', /, **changes: str | None) -> StoredMessage:
    """A stored dead letter; `changes` are headers, with `_` for `-`, and None for one that is left out."""
    changed = {name.replace("_", "-"): value for name, value in changes.items()}
    pairs = [(name, value) for name, value in (HEADERS | changed).items() if value is not None]
    return StoredMessage(17, 1_764_151_200_123_456_789, "dead.7", encode(Headers(pairs)), payload)


def letter(**changes: str | None) -> Letter:
    found = read_letter(message(**changes), "orders")
    assert found is not None
    return found


def test_one_of_another_route_is_none_of_this_one() -> None:
    assert read_letter(message(), "payments") is None
    assert read_letter(replace(message(), headers=b""), "orders") is None


def test_what_is_missing_is_empty_and_the_time_is_that_of_its_stream() -> None:
    found = letter(Router_Dead_Letter_Reason=None, Router_Dead_Letter_Stream=None, Router_Dead_Letter_Attempts="many")
    assert (found.reason, found.from_stream, found.time) == ("", False, "2025-11-26T10:00:00.123Z")
    assert found.fields()["attempts"] is None
    assert written(0) == "1970-01-01T00:00:00.000Z"


def test_it_goes_back_with_its_own_headers_its_history_and_the_same_id_each_time() -> None:
    block = decode(header_block(letter(), "DEAD", 5))
    history = {name: value for name, value in HEADERS.items() if "dead-letter" in name.lower()}
    own = {"X-Shop": "north", "Nats-Msg-Id": "redriven:DEAD:5:17", "Router-Redriven": "1"}
    assert history["Router-Dead-Letter-Reason"]
    assert dict(block) == own | history
    assert header_block(letter(), "DEAD", 5) == header_block(letter(), "DEAD", 5)
    assert decode(header_block(letter(), "DEAD", 6))["Nats-Msg-Id"] != block["Nats-Msg-Id"], "another stream"
    assert decode(header_block(letter(Router_Redriven="3"), "DEAD", 5))["Router-Redriven"] == "4"


@pytest.mark.parametrize(
    ("origin", "source", "why"),
    [
        ("orders.7", "orders.*", None),
        ("orders.7", ">", None),
        ("$KV.a", "$KV.>", None),
        (None, ">", "it has no header Router-Dead-Letter-Subject"),
        ("orders.*", ">", "has the wildcard"),
        ("a..b", ">", "empty token"),
        ("payments.7", "orders.*", "is none that the route reads (orders.*)"),
        ("$JS.API.STREAM.DELETE.X", ">", "is below $, reserved"),
        ("_INBOX.a", ">", "is below _INBOX, reserved"),
        ("_ROUTER.a", ">", "is below _ROUTER, reserved"),
    ],
)
def test_it_goes_only_where_the_route_reads(origin: str | None, source: str, why: str | None) -> None:
    found = why_not(letter(Router_Dead_Letter_Subject=origin), [source], "_ROUTER")
    assert found is None if why is None else why in str(found)


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
def test_a_payload_is_shown_as_what_it_is(payload: bytes, kind: str) -> None:
    assert payload_of(payload)[0] == kind
    shown = "\n".join(lines(message(payload), as_hex=False))
    assert "\x1b" not in shown
    assert f'"{kind}"' in as_json(message(payload))


def test_what_a_sender_wrote_does_nothing_to_a_terminal() -> None:
    evil = letter(Router_Dead_Letter_Reason="\x1b[2J", Router_Dead_Letter_Subject="orders.\x1b]0;x\x07")
    shown = row(evil) + "\n".join(lines(evil.message, as_hex=True))
    assert "\x1b" not in shown
    assert "\x07" not in shown
