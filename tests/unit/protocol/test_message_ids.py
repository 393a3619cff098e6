"""Ids of copies: what they are made of can be read from them, also if another client used the usual one first."""

from __future__ import annotations

import pytest

from router_trio.protocol import message_ids

FIRST = message_ids.of_position(b"KV_a:b", 7, 1_764_000_000_000_000_000)
ENDING = b":0123456789abcdef"


@pytest.mark.parametrize("part", [b"", b":dead"])
def test_another_id_of_a_copy_has_its_origin(part: bytes) -> None:
    usual = FIRST + part + ENDING
    other = message_ids.again(FIRST, "0a1b2c3d") + part + ENDING
    assert other != usual
    assert message_ids.usual(other) == message_ids.usual(usual) == usual
    assert message_ids.origin(other) == message_ids.origin(usual)
    assert message_ids.stored_at(message_ids.again(FIRST, "0a1b")) == message_ids.stored_at(FIRST)


def test_a_third_id_does_not_grow() -> None:
    assert message_ids.again(message_ids.again(FIRST, "11"), "22") == message_ids.again(FIRST, "22")


@pytest.mark.parametrize("other", [b"a~zz:0123456789abcdef", b"a~12:short", b"a~12", b""])
def test_ids_of_others_stay_as_they_are(other: bytes) -> None:
    assert message_ids.usual(other) == other
