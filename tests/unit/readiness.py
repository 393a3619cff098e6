"""Causes of unready destinations, and routes that detect them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import count

import trio

from router_trio.telemetry.http.status import readiness
from tests.support.eventually import eventually
from tests.support.world import World, core, stream, to

WITHIN = 10.0

TO_STREAM = core("in.>", to("out.>", jetstream=True), name="stored")
STREAM = stream("IN", "out.{{wildcard(1)}}", filter="in.*")


def add_out(w: World) -> None:
    w.broker.add_stream("OUT", ["out.>"])


def delete_out(w: World) -> None:
    w.broker.delete_stream("OUT")


def fill_out(w: World) -> None:
    for _ in range(2):
        w.broker.publish("out.filler")
    w.broker.trouble.limit("OUT", len(w.broker.messages("OUT")))


def limit(messages: int | None) -> Callable[[World], None]:
    return lambda w: w.broker.trouble.limit("OUT", messages)


_numbers = count(1)


async def probe(w: World) -> bool:
    """Send a message to the routes' source and return whether it arrives within the time allowed."""
    payload = b"probe %d" % next(_numbers)
    with suppress(AssertionError):
        w.broker.publish("in.x", payload)
        await eventually(lambda: payload in arrived(w), 5.0)
        return True
    return False


def arrived(w: World) -> list[bytes]:
    """Return the payloads that arrived on the other side."""
    stored = []
    with suppress(KeyError):  # the stream itself may be missing
        stored = w.payloads("OUT")
    return stored + [message.payload for message in w.broker.published if message.subject.startswith("heard.")]


async def probe_arrives(w: World) -> None:
    assert await probe(w)


async def until_unready(w: World, reason: str) -> None:
    await eventually(lambda: reason in why(w) != "", WITHIN, lambda: readiness(w.live, trio.current_time()))
    assert readiness(w.live, trio.current_time())[0] == 503


async def until_ready(w: World) -> None:
    await eventually(lambda: not why(w), WITHIN, lambda: readiness(w.live, trio.current_time()))
    assert readiness(w.live, trio.current_time())[0] == 200


def why(w: World) -> str:
    return "; ".join(str(reason) for reason in readiness(w.live, trio.current_time())[1]["reasons"])
