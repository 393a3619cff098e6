"""Advisories are read within bounds, and only about the names in their subject."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_trio.protocol.advisories import MAX_ADVISORY, OF_DURABLES, OF_STREAMS, Advisory, read_advisory, subjects_of
from router_trio.testing.frames import raw

OF_IN = {"stream": "IN"}
OF_ROUTER = OF_IN | {"consumer": "router"}
STREAM, CONSUMER = "$JS.EVENT.ADVISORY.STREAM", "$JS.EVENT.ADVISORY.CONSUMER"


def advisory(subject: str, body: bytes | dict[str, Any]) -> Advisory | None:
    return read_advisory(
        raw(subject.encode(), b"", b"", body if isinstance(body, bytes) else json.dumps(body).encode())
    )


@pytest.mark.parametrize(
    ("subject", "body", "text"),
    [
        (
            f"{STREAM}.QUORUM_LOST.IN",
            OF_IN | {"replicas": [{"name": "n2", "offline": True}, {"name": "n3"}, {"name": "n1", "current": True}]},
            "stream 'IN' has lost its quorum: 2 replicas are offline or behind (n2, n3)",
        ),
        (f"{STREAM}.QUORUM_LOST.IN", OF_IN | {"replicas": None}, "stream 'IN' has lost its quorum"),
        (
            f"{CONSUMER}.LEADER_ELECTED.IN.router",
            OF_ROUTER | {"leader": "n2", "replicas": []},
            "the leader of durable 'router' of stream 'IN' is now n2",
        ),
        (f"{STREAM}.UPDATED.IN", OF_IN | {"action": "modify"}, "stream 'IN' was updated"),
        (f"{CONSUMER}.DELETED.IN.router", OF_ROUTER, "durable 'router' of stream 'IN' was deleted"),
        (
            f"{CONSUMER}.PAUSE.IN.router",
            OF_ROUTER | {"paused": True, "pause_until": "2026-12-01T10:00:00Z"},
            "durable 'router' of stream 'IN' was paused until 2026-12-01T10:00:00Z",
        ),
        (f"{CONSUMER}.PAUSE.IN.router", OF_ROUTER | {"paused": False}, "durable 'router' of stream 'IN' was resumed"),
    ],
)
def test_an_advisory_has_a_text(subject: str, body: dict[str, Any], text: str) -> None:
    found = advisory(subject, body)
    assert found is not None
    assert (found.stream, found.text) == ("IN", text)


def test_a_message_at_the_limit_of_deliveries_is_named() -> None:
    found = advisory(f"{CONSUMER}.MAX_DELIVERIES.IN.router", OF_ROUTER | {"stream_seq": 7, "deliveries": 3})
    assert found is not None
    assert (found.sequence, found.deliveries) == (7, 3)


@pytest.mark.parametrize(
    ("subject", "body"),
    [
        (f"{STREAM}.QUORUM_LOST.IN", {"stream": "OTHER"}),
        (f"{CONSUMER}.DELETED.IN.router", OF_IN | {"consumer": "another"}),
        (f"{CONSUMER}.DELETED.IN", OF_ROUTER),
        (f"{STREAM}.DELETED.IN.router", OF_IN),
        (f"{CONSUMER}.MSG_NAKED.IN.router", OF_ROUTER),
        ("$JS.EVENT.ADVISORY.API", OF_IN),
        ("elsewhere", OF_IN),
        (f"{CONSUMER}.MAX_DELIVERIES.IN.router", OF_ROUTER | {"stream_seq": 0, "deliveries": 3}),
        (f"{CONSUMER}.MAX_DELIVERIES.IN.router", OF_ROUTER | {"stream_seq": "7", "deliveries": 3}),
        (f"{CONSUMER}.PAUSE.IN.router", OF_ROUTER | {"paused": "yes"}),
        (f"{STREAM}.QUORUM_LOST.IN", b"[" * 10_000),
        (f"{STREAM}.QUORUM_LOST.IN", b'{"stream": "IN", "replicas": [' + b"{}," * MAX_ADVISORY + b"{}]}"),
        (f"{STREAM}.QUORUM_LOST.IN", b""),
    ],
)
def test_anything_else_is_none(subject: str, body: bytes | dict[str, Any]) -> None:
    assert advisory(subject, body) is None


def test_a_long_list_of_replicas_is_cut() -> None:
    found = advisory(
        f"{STREAM}.QUORUM_LOST.IN",
        OF_IN | {"replicas": [{"name": f"n\n{number}" * 9, "offline": True} for number in range(50)]},
    )
    assert found is None, "a name that can't be printed is no name of a server"
    found = advisory(
        f"{STREAM}.QUORUM_LOST.IN",
        OF_IN | {"replicas": [{"name": f"n{number}" * 9, "offline": True} for number in range(50)]},
    )
    assert found is not None
    assert len(found.text) < 300
    assert found.text.endswith(", ...)")


@given(st.binary(max_size=200), st.sampled_from([*subjects_of("IN"), *subjects_of("IN", "router")]))
def test_no_body_raises(body: bytes, subject: str) -> None:
    advisory(subject, body)


def test_each_kind_has_its_subject() -> None:
    assert len([*subjects_of("IN")]) == len(OF_STREAMS)
    assert len([*subjects_of("IN", "router")]) == len(OF_DURABLES)
    assert not any("NAK" in subject for subject in subjects_of("IN", "router"))
