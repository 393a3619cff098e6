"""The members that share the partitions of a route, as the keys of a bucket show them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from router_trio.link import Announced
from router_trio.nats.jetstream.members import (
    MAX_MEMBERS,
    announced,
    announcement,
    bucket_config,
    moved,
    moves,
    seen,
    seen_request,
)
from router_trio.protocol import bounded_json
from router_trio.protocol.bounded_json import AnswerError

A, B = "0123456789abcdef", "f" * 16
START = "$KV.router-trio-members."


def members(subjects: Any) -> frozenset[str]:
    body = json.dumps({"state": {} if subjects is None else {"subjects": subjects}}).encode()
    return seen(bounded_json.read(body, 10_000_000), "ORDERS", "router")[0]


def test_members_are_the_keys_of_the_route() -> None:
    own = f"{START}ORDERS.router."
    assert members({own + A: 1, own + B: 1, own + "moved": 1, f"{START}ORDERS.other.{A[::-1]}": 1}) == {A, B}
    assert members({}) == members(None) == frozenset()
    assert json.loads(seen_request("ORDERS", "router")) == {"subjects_filter": own + "*"}


def test_keys_that_are_no_ids_are_no_members() -> None:
    own = f"{START}ORDERS.router."
    assert members({own + one: 1 for one in ("", "x" * 16, A.upper(), A + "0", f"{A}.x")}) == frozenset()


def test_more_keys_than_there_may_be_are_cut_in_an_order_that_all_agree_on() -> None:
    subjects = {f"{START}ORDERS.router.{number:016x}": 1 for number in range(MAX_MEMBERS + 10)}
    found = members(subjects)
    assert found == members(dict(reversed(subjects.items())))
    assert len(found) == MAX_MEMBERS


@pytest.mark.parametrize("subjects", [[], "x", 7])
def test_a_malformed_answer_is_refused(subjects: Any) -> None:
    with pytest.raises(AnswerError):
        members(subjects)


@pytest.mark.parametrize(
    ("payload", "found"),
    [
        (json.dumps({"3": A, "0": B}).encode(), {3: A, 0: B}),
        (json.dumps({"3": "x", "-1": A, "٣": A, "12345": A, "x": A, "4": 4}).encode(), {}),
        (b" " * 65536 + b"{}", {}),
        (b"[" * 60000, {}),
        (b"[]", {}),
        (b"\xff", {}),
        (b"", {}),
        (b"{", {}),
    ],
)
def test_moves_by_hand_are_read_as_far_as_they_are_valid(payload: bytes, found: dict[int, str]) -> None:
    assert moved(payload) == found


def test_moves_by_hand_are_read_as_they_were_written() -> None:
    assert moved(moves({12: A, 3: B})) == {3: B, 12: A}
    key = f"{START}ORDERS.router.moved"
    for subjects, any_moved in (({key: 1}, True), ({f"{START}ORDERS.other.moved": 1}, False)):
        answer = bounded_json.read(json.dumps({"state": {"subjects": subjects}}).encode(), 10_000)
        assert seen(answer, "ORDERS", "router") == (frozenset(), any_moved)


def test_the_bucket_holds_one_value_of_each_key_and_honours_expiry() -> None:
    config = bucket_config(3, "memory")
    assert (config["name"], config["num_replicas"]) == ("KV_router-trio-members", 3)
    assert config["allow_msg_ttl"] is True
    assert config["max_msgs_per_subject"] == 1


def test_an_announcement_is_read_as_it_was_written() -> None:
    eu = Announced("eu", "host-1", (1, 2))
    assert json.loads(announcement(eu)) == {"name": "eu", "host": "host-1", "led": [1, 2]}
    assert announced(announcement(eu)) == eu
    assert announced(b'{"led": [7, -1, 3]}') == Announced("", "", (3, 7))
    everything = Announced("x" * 255, "y" * 255, tuple(range(1024)))
    assert announced(announcement(everything)) == everything


@pytest.mark.parametrize("payload", [b"", b"[]", b"x", b'{"led": ["1"]}', b'{"name": 7}', b" " * 20_000 + b"{}"])
def test_a_malformed_announcement_is_skipped(payload: bytes) -> None:
    assert announced(payload) is None
