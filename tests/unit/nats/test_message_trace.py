"""Reports of servers on the path of a message: what is read of them, and that anything else is one kind of error."""

from __future__ import annotations

import json
from typing import Any

import pytest

from router_trio.errors import SourceError, reasons
from router_trio.nats.message_trace import MAX_EVENTS, MessageTrace, TraceReport, _read, _silent
from router_trio.protocol.framing import RawMessage

INBOX = b"_INBOX.x-trace.1"


def message(body: bytes) -> RawMessage:
    return INBOX, b"", 0, len(body), body + b"\r\n"


def report(hop: str | None = None, events: list[dict[str, Any]] | None = None, **more: Any) -> bytes:
    header = {} if hop is None else {"Nats-Trace-Hop": [hop]}
    document = {"server": {"name": "a", "ver": "2.15.1"}, "request": {"header": header}, "events": events or []}
    return json.dumps(document | more).encode()


def test_a_report_has_its_server_its_hop_and_its_events() -> None:
    found = _read(
        message(
            report(
                "1.2",
                [
                    {"type": "in", "kind": 1, "name": "b", "acc": "$G", "subj": "orders.7"},
                    {"type": "sm", "to": "orders.8"},
                    {"type": "js", "stream": "S", "subject": "orders.8", "nointerest": True},
                    {"type": "js", "stream": "T", "subject": "orders.8"},
                    {"type": "js", "stream": "U", "error": "maximum messages exceeded"},
                    {"type": "eg", "kind": 0, "cid": 7, "name": "router", "sub": "orders.*", "queue": "q"},
                    {"type": "eg", "kind": 1, "name": "c", "hop": "1.2.1"},
                ],
            )
        ),
        "orders.7",
    )
    assert (found.server, found.version, found.hop) == ("a", "2.15.1", "1.2")
    assert [one.type for one in found.events] == ["in", "sm", "js", "js", "js", "eg", "eg"]
    assert [one.subject for one in found.events[:4]] == ["orders.7", "orders.8", "orders.8", "orders.8"]
    router, server = found.events[5:]
    assert (router.name, router.subscription, router.queue, router.hop) == ("router", "orders.*", "q", "")
    assert server.hop == "1.2.1"
    trace = MessageTrace((found,), ())
    assert trace.streams == ["T"]
    assert trace.errors == ["server a reports: maximum messages exceeded"]


def test_servers_that_got_the_message_and_did_not_report_are_silent() -> None:
    def one(hop: str, *hops: str) -> TraceReport:
        events = [{"type": "eg", "kind": 1, "name": f"server {next_hop}", "hop": next_hop} for next_hop in hops]
        return _read(message(report(hop or None, events)), "orders.7")

    assert _silent([one("", "1", "2")]) == ("server 1", "server 2")
    assert _silent([one("", "1", "2"), one("2", "2.1")]) == ("server 1", "server 2.1")
    assert _silent([one("", "1"), one("1")]) == ()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        b"[]",
        b"{}",
        b'{"server": "a"}',
        report("1.x"),
        report("1" * 20),
        report(request={"header": {"Nats-Trace-Hop": "1"}}),
        report(request={"header": {"Nats-Trace-Hop": ["1", "2"]}}),
        report(events=[{"type": 7}]),
        report(events=[{"type": "eg", "kind": "client"}]),
        report(events=[{"type": "eg", "hop": "..."}]),
        report(events=[{"type": "js", "stream": ["S"]}]),
        report(events=[{"type": "in"}] * (MAX_EVENTS + 1)),
        b"[" * 100_000,
    ],
    ids=range(15),
)
def test_a_malformed_report_is_a_bad_answer(body: bytes) -> None:
    with pytest.raises(SourceError) as raised:
        _read(message(body), "orders.7")
    assert raised.value.reason == reasons.BAD_ANSWER
    assert "orders.7" in str(raised.value)
