"""The members that share the partitions of a route, as the keys of a bucket show them."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable
from typing import Any, cast

import pytest

from router_trio.errors import SourceError, reasons
from router_trio.link import MEMBER_GONE_AFTER, Announced, Group, SeenMembers
from router_trio.nats.jetstream.api import Api
from router_trio.nats.jetstream.members import (
    EXPIRES_WITHIN,
    LONGEST,
    STREAM,
    BucketMembers,
    announced,
    announcement,
    bucket_config,
    moved,
    moves,
    seen,
    seen_request,
)
from router_trio.nats.jetstream.streams import Lookups
from router_trio.protocol import bounded_json
from router_trio.protocol.bounded_json import AnswerError
from router_trio.routing.stream.partitions.membership import MAX_MEMBERS, MEMBERS_A_SECOND

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


@pytest.mark.parametrize(
    "payload",
    [b"", b"[]", b"x", b'{"led": ["1"]}', b'{"led": [1%s]}' % (b"0" * 30), b'{"name": 7}', b" " * 20_000 + b"{}"],
)
def test_a_malformed_announcement_is_skipped(payload: bytes) -> None:
    assert announced(payload) is None


# --- keys that a server keeps ---

OWN = f"{START}ORDERS.router."
GONE = MEMBER_GONE_AFTER + EXPIRES_WITHIN


def time(seconds: float) -> str:
    return f"2026-11-29T10:{int(seconds) // 60:02}:{seconds % 60:09.6f}Z"


class Bucket:
    """The `Lookups` of a server whose bucket has these keys: name, seconds since it was stored, time to live."""

    def __init__(self, *keys: tuple[str, float, str], now: float = 50.0, denied: str = "no request") -> None:
        self.now = now
        self.stored = [
            (number, name, now - age, ttl) for number, (name, age, ttl) in enumerate(keys, 1)
        ]  # the oldest is the first one
        self.denied = denied
        self.asked: list[str] = []

    @property
    def left(self) -> list[str]:
        return [name.rpartition(".")[2] for _, name, _, _ in self.stored]

    async def ask(self, request: str, body: bytes, read: Callable[[bytes], Any]) -> Any:
        self.asked.append(request.removesuffix(f".{STREAM}").removeprefix("STREAM."))
        if self.denied in request:
            raise SourceError("may not publish", reason=reasons.PERMISSION_DENIED)
        return read(json.dumps(getattr(self, self.asked[-1].lower().replace(".", "_"))(**json.loads(body))).encode())

    def info(self, subjects_filter: str) -> Any:
        first = {"first_ts": time(self.stored[0][2])} if self.stored else {}
        subjects = {name: 1 for _, name, _, _ in self.stored if name.startswith(subjects_filter.removesuffix("*"))}
        return {"ts": time(self.now), "state": {"subjects": subjects, **first}}

    def msg_get(self, seq: int = 0, next_by_subj: str = "", last_by_subj: str = "") -> Any:
        for number, name, at, ttl in self.stored:
            if number >= seq and (name == last_by_subj or name.startswith(next_by_subj.removesuffix("*") or "-")):
                block = b64encode(f"NATS/1.0\r\nNats-TTL: {ttl}\r\n\r\n".encode()) if ttl else b""
                found = {"seq": number, "subject": name, "time": time(at), "hdrs": block.decode()}
                return {"message": found | {"data": b64encode(moves({1: A})).decode()}}
        return {"error": {"code": 404, "err_code": 10037, "description": "no message found"}}

    def purge(self, filter: str, seq: int) -> Any:
        self.stored = [one for one in self.stored if one[1] != filter or one[0] >= seq]
        return {"success": True}


async def look(bucket: Bucket) -> SeenMembers:
    return await BucketMembers(cast(Api, None), cast(Lookups, bucket), Group("ORDERS", "router", B)).seen()


async def test_a_process_whose_announcement_is_kept_after_it_has_expired_is_no_member() -> None:
    bucket = Bucket((OWN + A, GONE + 0.1, "5s"), (OWN + "c" * 16, 30.0, "60s"), (OWN + B, 1.0, "5s"))
    assert (await look(bucket)).ids == {B, "c" * 16}
    assert bucket.left == ["c" * 16, B], "so that no other process finds it"


async def test_the_members_are_looked_up_with_one_request_while_each_is_renewed() -> None:
    bucket = Bucket((OWN + A, GONE - 0.1, "5s"), (OWN + B, 1.0, "5s"))
    assert (await look(bucket)).ids == {A, B}
    assert bucket.asked == ["INFO"]


@pytest.mark.parametrize("ttl", ["", "never", "-1s", "5 s"])
async def test_an_announcement_of_another_program_expires_as_those_of_this_process(ttl: str) -> None:
    bucket = Bucket((OWN + A, GONE + 0.1, ttl), (OWN + B, 1.0, "5s"))
    assert (await look(bucket)).ids == {B}


async def test_an_announcement_for_years_counts_no_longer_than_one_of_a_process_among_as_many_as_there_can_be() -> None:
    assert LONGEST >= MEMBER_GONE_AFTER * MAX_MEMBERS / MEMBERS_A_SECOND
    for age, found in ((LONGEST + EXPIRES_WITHIN - 0.1, {A, B}), (LONGEST + EXPIRES_WITHIN + 0.1, {B})):
        bucket = Bucket((OWN + A, age, "999999999s"), (OWN + B, 1.0, "5s"), now=LONGEST + 20.0)
        assert (await look(bucket)).ids == found


async def test_moves_and_the_keys_of_other_routes_stay_however_old_they_are() -> None:
    other = f"{START}ORDERS.other.{A}"
    bucket = Bucket((OWN + "moved", 40.0, ""), (other, 39.0, "5s"), (OWN + A, 1.0, "5s"))
    assert await look(bucket) == SeenMembers(frozenset({A}), {1: A})
    assert bucket.left == ["moved", A, A]
    assert bucket.asked == ["INFO", "MSG.GET", "MSG.GET", "MSG.GET"], "two up to the first that has not expired"


async def test_a_process_that_may_not_remove_expired_announcements_does_not_count_them() -> None:
    bucket = Bucket((OWN + A, 30.0, "5s"), (OWN + B, 1.0, "5s"), denied="PURGE")
    assert (await look(bucket)).ids == {B}
    bucket.denied = "MSG.GET"
    with pytest.raises(SourceError, match="may not publish"):
        await look(bucket)


@pytest.mark.parametrize("missing", ["ts", "first_ts"])
async def test_without_the_time_of_the_server_or_of_the_keys_each_key_counts(missing: str) -> None:
    class Silent(Bucket):
        def info(self, subjects_filter: str) -> Any:
            answer = super().info(subjects_filter)
            return (
                {**answer, "ts": ""}
                if missing == "ts"
                else {**answer, "state": {"subjects": answer["state"]["subjects"]}}
            )

    bucket = Silent((OWN + A, 30.0, "5s"))
    assert (await look(bucket)).ids == {A}
    assert bucket.asked == ["INFO"]
