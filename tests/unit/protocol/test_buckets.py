"""Headers of KV operations, and which of two values of a key is the newest."""

from __future__ import annotations

from itertools import permutations

import pytest

from router_trio.protocol import buckets
from router_trio.protocol.buckets import Newest, Site, Verdict, Version
from router_trio.protocol.headers import Headers, decode, encode

HERE, THERE, ELSEWHERE = Site("KV_here", "2026-01-01"), Site("KV_there", "2026-01-02"), Site("KV_x", "2026-01-03")
SECOND = 10**9


def block(**headers: str) -> bytes:
    return encode(Headers({name.replace("_", "-"): value for name, value in headers.items()}))


def test_only_a_roll_up_of_the_key_is_carried() -> None:
    assert buckets.carried(block(Nats_Rollup="sub", A="1"), 0) == block(Nats_Rollup="sub", A="1")
    assert buckets.carried(block(Nats_Rollup="all", A="1"), 0) == block(A="1")


@pytest.mark.parametrize(
    ("given", "age", "left"),
    [
        ("10", 0, "10"),
        ("10", 1, "10"),
        ("1h", 61 * SECOND, "3539"),
        ("2s", 5 * SECOND, "1"),
        ("never", 9, "never"),
        ("99999999999", 1, "99999999999"),  # more than a duration can have
        ("1" * 1_000, 1, "1" * 1_000),
    ],
)
def test_a_copy_expires_when_its_message_does(given: str, age: int, left: str) -> None:
    assert decode(buckets.carried(block(Nats_TTL=given), age))["Nats-TTL"] == left


def test_a_marker_is_shown_as_a_purge_outside_of_buckets() -> None:
    marker = block(Nats_Marker_Reason="MaxAge", A="1")
    assert buckets.deletes(marker)
    assert decode(buckets.marker_as_purge(block(A="1"), marker))["KV-Operation"] == "PURGE"
    assert not buckets.deletes(block(A="1"))


def test_subjects_of_a_mirror_are_renamed_and_statuses_are_not() -> None:
    mirrored, status = (b"$KV.origin.a.b", b"ack", 0, 1, b" 1\r\nx\r\n"), (b"_INBOX.x", b"", 0, 0, b" 0\r\n\r\n")
    assert buckets.renamed([mirrored, status], b"$KV.mirror.") == [(b"$KV.mirror.a.b", *mirrored[1:]), status]


def version(site: Site, sequence: int, time: int) -> Version:
    return Version(site, sequence, time)


def named(site: Site, sequence: int, time: int) -> Version:
    """Return the version that a copy names."""
    return Version(site, sequence, time, is_original=False)


@pytest.mark.parametrize(
    ("copy", "newest", "verdict"),
    [
        (version(HERE, 1, 5), None, Verdict.REPLACES),
        (version(HERE, 2, 5), version(HERE, 1, 9), Verdict.REPLACES),  # whatever the clock was
        (version(HERE, 1, 5), version(HERE, 2, 4), Verdict.OLDER),
        (version(HERE, 1, 5), version(HERE, 1, 5), Verdict.ECHO),
        (version(HERE, 1, 5), version(THERE, 7, 4), Verdict.REPLACES),
        (version(HERE, 1, 5), version(THERE, 7, 6), Verdict.CONFLICT),
        (version(HERE, 1, 5), version(THERE, 7, 5), Verdict.CONFLICT),  # one of two at the same time
        (version(HERE, 1, 5), version(ELSEWHERE, 7, 6), Verdict.CONFLICT),
        (version(THERE, 1, 9), version(HERE, 1, 5), Verdict.ECHO),
        (version(THERE, 1, 9), None, Verdict.ECHO),
    ],
)
def test_the_last_writer_wins(copy: Version, newest: Version | None, verdict: Verdict) -> None:
    assert buckets.judge(copy, newest, THERE) is verdict


def test_versions_that_copies_name_replace_each_other_in_one_order() -> None:
    """Of no three does each replace the next one, though a client of a bucket can name any version."""
    drawn = [named(site, sequence, time) for site in (HERE, ELSEWHERE) for sequence in (1, 9) for time in (1, 5, 9)]
    for first, second, third in permutations(drawn, 3):
        if first.is_newer_than(second) and second.is_newer_than(third):
            assert first.is_newer_than(third)


def test_a_copy_of_an_earlier_value_does_not_replace_a_later_one_of_a_clock_that_was_set_back() -> None:
    earlier, later = version(HERE, 1, 9), version(HERE, 2, 5)
    copy = later.replacing(earlier)
    assert copy == version(HERE, 2, 10)
    assert copy.is_newer_than(named(HERE, 1, 9))
    assert later.replacing(None) == later.replacing(version(THERE, 1, 9)) == later
    assert len(later.replacing(named(HERE, 1, 10**19 - 1)).header().split()[-1]) == 19


def test_a_version_is_carried_by_its_header_over_any_number_of_copies() -> None:
    original = buckets.version_of(b"", HERE, 3, 7)
    carried = encode(Headers({buckets.ORIGIN.decode(): original.header().decode()}))
    assert buckets.version_of(carried, THERE, 90, 99) == original
    assert buckets.version_of(block(Router_Bucket_Origin="junk"), THERE, 90, 99) == version(THERE, 90, 99)


def test_a_value_is_overtaken_by_a_later_one_of_its_stream() -> None:
    def newest(message_id: str) -> Newest:
        return Newest(9, 9, block(Nats_Msg_Id=message_id), b"")

    end = ":0123456789abcdef"
    assert buckets.is_overtaken("KV_here", 1, 5, newest(f"KV_here:2:6{end}"))
    assert not buckets.is_overtaken("KV_here", 2, 6, newest(f"KV_here:2:6{end}"))
    assert not buckets.is_overtaken("KV_here", 1, 5, newest(f"KV_other:2:6{end}"))
    assert not buckets.is_overtaken("KV_here", 1, 9, newest(f"KV_here:2:6{end}"))  # the stream was created again
    assert not buckets.is_overtaken("KV_here", 1, 5, newest("any"))
