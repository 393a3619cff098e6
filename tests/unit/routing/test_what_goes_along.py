"""Parts of a message that a sender can't make a route forward: internal reply subjects, and a status."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio import Message
from router_trio.protocol.framing import RawMessage, header_block, text
from router_trio.testing import FakeBroker
from router_trio.testing.frames import Publish
from tests.support.eventually import eventually
from tests.support.world import World, core, handled, overhearing, stream, to, world


def changed(message: Message) -> Message:
    return message.replace(payload=message.payload + b"!")


def with_headers(message: Message) -> Message:
    return message.replace(headers={**message.headers, "X": "y"})


def elsewhere(message: Message) -> Message:
    return message.replace(subject="out.other")


def brought(w: World, reply: str = "", block: bytes = b"") -> None:
    """Have another client publish a message with exactly these bytes."""
    w.broker._server.publish(Publish(b"in.x", reply.encode(), block, b"a"), trio.current_time())
    w.broker._network.settle()


def untouched(out: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"routes": [core("in.*", out, connection="main", **more)]}


WAYS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "unchanged": untouched,
    "with retry": lambda out: untouched(out, retry={"attempts": 2}),
    "by content": lambda out: untouched(out | {"payload": "string(payload)"}),
    "with a header set": lambda out: untouched(out | {"headers": {"set": {"X": "subject"}}}),
    **{
        f"handler {handler.__name__}": lambda out, handler=handler: {  # type: ignore[misc]
            "handlers": [handled(handler, subject="in.*", to=[out], connection="main")]
        }
        for handler in (changed, with_headers, elsewhere)
    },
}

CARRIED = ["_INBOX.asker.1", "answers.x"]


@pytest.mark.parametrize("other", [False, True])
@pytest.mark.parametrize("headers", [b"", b"NATS/1.0\r\nA: b\r\n\r\n"])
@pytest.mark.parametrize("way", WAYS)
async def test_an_internal_reply_subject_is_not_forwarded(
    way: str, headers: bytes, other: bool, autojump_clock: MockClock
) -> None:
    brokers = {"main": FakeBroker(), "other": FakeBroker()}
    out = to("out.x", "other" if other else "main") | ({"reply": True} if other else {})
    connections = {"other": {"inbox_prefix": "team.answers"}}
    async with (
        world(**WAYS[way](out), brokers=brokers, connections=connections) as w,
        overhearing(brokers["other" if other else "main"], "out.*") as heard,
    ):
        own = [text(connection.inbox) for connection in w.live.connections.values()]
        refused = ["$JS.API.STREAM.DELETE.S", "$JS.ACK.S.C.1.1.1.1.0", "team.answers.a.1", f"{own[0]}-pull-1"]
        refused += [f"{inbox}.7" for inbox in own]
        for reply in [*CARRIED, *refused]:
            brought(w, reply, headers)
        await eventually(lambda: len(heard) == len(CARRIED) + len(refused))
        assert [text(one[1]) for one in heard] == CARRIED + [""] * len(refused)


BLOCKS = {
    b"NATS/1.0 503\r\n\r\n": [],
    b"NATS/1.0 100 Idle\r\nA: b\r\n\r\n": [b"A: b"],
    b"NATS/1.0  404 x\r\nA: b\r\nNats-TTL: 5\r\n\r\n": [b"A: b"],
    b"NATS/1.0\t503\r\nNats-Msg-Id: 1\r\nA: b\r\n\r\n": [b"A: b"],
    b"503\r\nA: b\r\n\r\n": [b"A: b"],
    b"NATS/1.0 503": [],
}


@pytest.mark.parametrize("kind", ["core", "stream", "core to stream"])
@pytest.mark.parametrize("way", WAYS)
async def test_a_status_sent_by_a_client_is_not_forwarded(way: str, kind: str, autojump_clock: MockClock) -> None:
    broker = FakeBroker()
    broker.add_stream("OUT", ["out.>"])
    options = WAYS[way](to("out.x", jetstream=kind != "core"))
    if kind == "stream":
        broker.add_stream("IN", ["in.*"])
        source = {"stream": "IN", "durable": "router"}
        options = {
            "routes": [one | {"from": source} for one in options.get("routes", ())],
            "handlers": [(one, given | {"subject": None, **source}) for one, given in options.get("handlers", ())],
        }
    async with world(**options, brokers={"main": broker}) as w, overhearing(broker, "out.*") as heard:
        for block in BLOCKS:
            brought(w, block=block)
        await eventually(lambda: len(heard) == len(BLOCKS))
        assert_without_status(heard)


async def test_a_status_sent_by_a_client_is_not_in_a_dead_letter(autojump_clock: MockClock) -> None:
    broker = FakeBroker()
    broker.add_stream("IN", ["in.*"])
    broker.add_stream("DEAD", ["dead.*"])
    fails = to("out.x") | {"headers": {"set": {"X": 'headers["absent"]'}}}
    route = stream("IN", fails, retry={"attempts": 1}, dead_letter={"subject": "dead.x"})
    async with world([route], brokers={"main": broker}) as w, overhearing(broker, "dead.*") as heard:
        for block in BLOCKS:
            brought(w, block=block)
        await eventually(lambda: len(heard) == len(BLOCKS))
        assert_without_status(heard)


def assert_without_status(heard: list[RawMessage]) -> None:
    for one, kept in zip(heard, BLOCKS.values(), strict=True):
        lines = header_block(one).split(b"\r\n")
        assert lines[0] in (b"NATS/1.0", b"")
        assert [line for line in lines if line.startswith(b"A:")] == kept
