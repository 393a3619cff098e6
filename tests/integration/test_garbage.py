"""A server that answers arbitrarily at each step of a route's session: the route reports it, all else continues."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio import Settings
from router_trio.outbox import retries
from router_trio.states import FAILED, RUNNING
from tests.support.eventually import eventually
from tests.support.odd_answers import BODIES, DIGITS
from tests.support.raw_nats import connect
from tests.support.raw_server import NO_CONSUMER, Published, RawServer, Sent, consumer_answer, raw_server, stream_answer
from tests.support.servers import nats_server
from tests.support.watch import Watch, watched
from tests.unit.nats.test_pubacks import NOT_A_PUBACK
from tests.unit.routing.stream.test_deliveries import NONE

QUICK = {"reconnect_delay": "50ms", "max_reconnect_delay": "300ms", "liveness_interval": "1s"}


def changed(answer: dict[str, Any], *path: str, value: Any) -> bytes:
    """Return an answer with another value at one place."""
    answer = deepcopy(answer)
    place = answer
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return json.dumps(answer).encode()


STREAM = stream_answer("S")
CONSUMER = consumer_answer("S", "d")
STREAM_ANSWERS = BODIES | {
    "no config": changed(STREAM, "config", value=None),
    "config is a list": changed(STREAM, "config", value=[]),
    "no state": changed(STREAM, "state", value=None),
    "state is a text": changed(STREAM, "state", value="x"),
    "created is a number": changed(STREAM, "created", value=7),
    "created is a text": changed(STREAM, "created", value="yesterday"),
    "created is long": changed(STREAM, "created", value="2026-" + "1" * 10_000),
    "no created": changed(STREAM, "created", value=None),
    "name is another": changed(STREAM, "config", "name", value="OTHER"),
    "name is an object": changed(STREAM, "config", "name", value={}),
    "subjects is a number": changed(STREAM, "config", "subjects", value=7),
    "a subject is a list": changed(STREAM, "config", "subjects", value=[[]]),
    "window is infinite": changed(STREAM, "config", "duplicate_window", value=float("inf")),
    "last sequence is a text": changed(STREAM, "state", "last_seq", value="9"),
    "last sequence is below 0": changed(STREAM, "state", "last_seq", value=-1),
}
CONSUMER_ANSWERS = BODIES | {
    "no config": changed(CONSUMER, "config", value=None),
    "config is a number": changed(CONSUMER, "config", value=7),
    "ack wait is a text": changed(CONSUMER, "config", "ack_wait", value="30s"),
    "ack wait is below 0": changed(CONSUMER, "config", "ack_wait", value=-1),
    "ack wait is true": changed(CONSUMER, "config", "ack_wait", value=True),
    "ack wait is infinite": changed(CONSUMER, "config", "ack_wait", value=float("inf")),
    "ack policy is a list": changed(CONSUMER, "config", "ack_policy", value=[]),
    "ack policy is unknown": changed(CONSUMER, "config", "ack_policy", value="x"),
    "filter is a number": changed(CONSUMER, "config", "filter_subject", value=7),
    "filters is a text": changed(CONSUMER, "config", "filter_subjects", value="x"),
    "a filter is null": changed(CONSUMER, "config", "filter_subjects", value=[None]),
    "delivered is a number": changed(CONSUMER, "delivered", value=7),
    "delivered is a list": changed(CONSUMER, "delivered", value=[]),
    "delivered is a text": changed(CONSUMER, "delivered", "stream_seq", value="x"),
    "delivered has 4,000 digits": changed(CONSUMER, "delivered", "consumer_seq", value=10**3999),
    "floor is below 0": changed(CONSUMER, "ack_floor", "stream_seq", value=-1),
    "waiting is a text": changed(CONSUMER, "num_waiting", value="1"),
    "waiting is a fraction": changed(CONSUMER, "num_waiting", value=1.5),
    "unacked is a list": changed(CONSUMER, "num_ack_pending", value=[1]),
    "created is null": changed(CONSUMER, "created", value=None),
    "name is a list": changed(CONSUMER, "name", value=[]),
}
STEPS = {"STREAM.INFO": STREAM_ANSWERS, "CONSUMER.INFO": CONSUMER_ANSWERS, "CONSUMER.DURABLE.CREATE": CONSUMER_ANSWERS}


TAKEN = ["out", "out.*"]
"""The subjects of the stream OUT."""


def api(request: Published, *, consumer_exists: bool = True, **consumer: Any) -> bytes:
    """Return the right answer. `consumer` is configuration of the consumer."""
    words = request.subject.split(".")
    if words[2:] == ["STREAM", "NAMES"]:
        # Nothing is sent to a subject that no stream takes.
        taken = json.loads(request.payload)["subject"] in TAKEN
        return json.dumps({"total": int(taken), "offset": 0, "limit": 1024, "streams": ["OUT"] * taken}).encode()
    if words[2] == "STREAM":
        answer = stream_answer(words[-1])
        if words[-1] == "OUT":
            answer["config"]["subjects"] = TAKEN  # a PubAck counts only from a stream that takes the subject
        return json.dumps(answer).encode()
    if words[3] == "INFO" and not consumer_exists:
        return json.dumps(NO_CONSUMER).encode()
    return json.dumps(consumer_answer(words[-2], words[-1], **consumer)).encode()


def stream_route(stream: str, **to: Any) -> dict[str, Any]:
    source = {"connection": "main", "stream": stream, "durable": "d"}
    return {"name": stream, "from": source, "to": [{"connection": "main", "subject": "out", **to}]}


@asynccontextmanager
async def routed(
    tmp_path: Path, url: str, routes: list[dict[str, Any]]
) -> AsyncIterator[tuple[Watch, Callable[[], Awaitable[None]]]]:
    """Yield a router on that server, with a core route on a real one; `await passes()` fails if that one fails."""
    async with nats_server(tmp_path, jetstream=False) as real, connect(real.url) as client:
        heard = await client.subscribe("there.*")
        other: dict[str, Any] = {
            "name": "other",
            "from": {"connection": "other", "subject": "here.*"},
            "to": [{"connection": "other", "subject": "there.{{wildcard(1)}}"}],
        }
        config = Settings(
            telemetry={"listen": ""},
            router={"shutdown_timeout": "1s"},
            connections={"main": {"servers": [url], **QUICK}, "other": {"servers": [real.url]}},
            routes=[*routes, other],
        )
        async with watched(config) as watch:

            async def passes() -> None:
                await client.publish("here.x", b"probe")
                assert (await heard.next()).payload == b"probe"

            await passes()
            yield watch, passes
            await passes()


@pytest.mark.parametrize("step", STEPS)
async def test_no_answer_of_the_api_ends_more_than_its_route(tmp_path: Path, step: str) -> None:
    """Each answer has a route, all at once; when the answers become right, all of them run."""
    bodies = dict(enumerate(STEPS[step].values()))
    mended = False

    def answer(published: Published) -> Iterable[Sent]:
        if not published.subject.startswith("$JS.API.") or "MSG.NEXT" in published.subject:
            return []
        if published.subject.startswith(f"$JS.API.{step}.S") and not mended:
            stream = published.subject.removeprefix(f"$JS.API.{step}.").removesuffix(".d")
            return [Sent(published.reply, bodies[int(stream[1:])])]
        return [Sent(published.reply, api(published, consumer_exists="CREATE" not in step))]

    async with raw_server(answer) as (_, url):
        routes = [stream_route(f"S{number}") for number in bodies]
        async with routed(tmp_path, url, routes) as (watch, passes):
            states = watch.router.routes[:-1]
            assert len(states) == len(bodies) >= 48
            await eventually(
                lambda: all(state.state == FAILED for state in states),
                20,
                lambda: [name for name, state in zip(STEPS[step], states, strict=True) if state.state != FAILED],
            )
            assert watch.router.routes[-1].state == RUNNING
            assert not watch.of("NATS_CONNECTION_LOST")
            failures = watch.of("NATS_SUBSCRIBE_ERROR")
            assert {failure.route for failure in failures} == {state.name for state in states}
            reasons = {failure.reason for failure in failures}
            assert "bad_answer" in reasons
            assert reasons <= {"bad_answer", "consumer_refused", "consumer_mismatch", "stream_not_found"}
            assert all(len(failure.detail) < 400 for failure in failures)
            await passes()
            mended = True
            await eventually(lambda: all(state.state == RUNNING for state in states), 30)


OUT = "out.{{wildcard(1)}}"
STORED = b'{"stream":"OUT", "seq":7}'


class Session:
    """A right answer to everything, and a way to send another one in one place."""

    def __init__(self, **consumer: Any) -> None:
        """`consumer` is configuration of the consumer."""
        self.consumer = consumer
        self.inboxes: dict[str, str] = {}
        self.pubacks: dict[bytes, list[bytes]] = {}
        """The answers to each payload, one after another and the last one forever; other payloads are stored."""
        self.blocks: list[bytes] = []

    def __call__(self, published: Published) -> Iterable[Sent]:
        if "MSG.NEXT" in published.subject:
            self.inboxes[published.subject.split(".")[-2]] = published.reply
        elif published.subject.startswith("$JS.API."):
            return [Sent(published.reply, api(published, **self.consumer))]
        elif published.reply:
            bodies = self.pubacks.get(published.payload, [STORED])
            return [Sent(published.reply, bodies.pop(0) if len(bodies) > 1 else bodies[0])]
        return []

    def deliver(self, sequence: int, payload: bytes = b"x") -> Sent:
        reply = f"$JS.ACK.S.d.1.{sequence}.{sequence}.1700000000000000000.0"
        return Sent(self.inboxes["S"], payload, reply=reply, subject="in.x")


def acked(server: RawServer) -> list[str]:
    return [one.subject for one in server.published if one.subject.startswith("$JS.ACK") and one.payload == b"+ACK"]


async def test_no_delivery_and_no_status_ends_more_than_its_route(tmp_path: Path) -> None:
    session = Session()
    async with (
        raw_server(session) as (server, url),
        routed(tmp_path, url, [stream_route("S")]) as (watch, passes),
    ):
        await eventually(lambda: "S" in session.inboxes)
        state = watch.router.routes[0]
        sequence = 0
        for reply in NONE.values():
            if b"\xff" in reply or not reply.isascii():
                continue
            await server.send(Sent(session.inboxes["S"], b"forged", reply=reply.decode(), subject="in.x"))
            sequence += 1
            await server.send(session.deliver(sequence))
        await eventually(lambda: state.routed["out"] == sequence, 10, lambda: (state.routed, state.reason))
        assert not [one for one in server.published if one.payload == b"forged"]
        await eventually(lambda: len(acked(server)) == sequence)
        assert all(subject.startswith("$JS.ACK.S.d.1.") for subject in acked(server))
        for block in (
            b"NATS/1.0 " + DIGITS + b"\r\n\r\n",
            b"NATS/1.0 408 x\r\nNats-Pending-Messages: " + DIGITS + b"\r\nNats-Pending-Bytes: 1e999\r\n\r\n",
            b"NATS/1.0 409 Message Size Exceeds MaxBytes\r\nNats-Pending-Bytes: " + DIGITS + b"\r\n\r\n",
            b"NATS/1.0 409 Batch Completed\r\nNats-Pending-Messages: -1\r\n\r\n",
            b"NATS/1.0 409 " + b"\xff" * 100_000 + b"\r\n\r\n",
            b"NATS/1.0 \r\n\r\n",
            b"NATS/1.0",
            b"\0" * 50,
        ):
            await server.send(Sent(session.inboxes["S"], block=block))
            await passes()
        await eventually(lambda: state.state == RUNNING, 20, lambda: state.reason)
        sequence += 1
        with trio.fail_after(20):
            while state.routed["out"] < sequence:
                # Deliver again, as a server does: a status may just have made the router reopen the consumer, with
                # another inbox.
                await server.send(session.deliver(sequence))
                await trio.sleep(0.2)
        assert state.routed["out"] == sequence
        assert not watch.of("NATS_CONNECTION_LOST")
        assert all(len(event.detail) < 300 for event in watch.of("NATS_SUBSCRIBE_ERROR"))


async def test_no_puback_ends_more_than_its_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any client may have sent it: the message is sent again, a true PubAck counts, without one it fails in time.

    Each has a subject of its own, because a failed message holds back those of its subject.
    """
    monkeypatch.setattr(retries, "ACK_BUDGET", 3.0)
    session = Session(filter_subject="in.*")
    route = stream_route("S", jetstream=True, subject=OUT)
    route["from"]["filter"] = "in.*"
    bodies = list(NOT_A_PUBACK.values())
    session.pubacks = {b"%d" % number: [body] for number, body in enumerate(bodies, 1)}
    async with (
        raw_server(session) as (server, url),
        routed(tmp_path, url, [route]) as (watch, passes),
    ):
        await eventually(lambda: "S" in session.inboxes)
        state = watch.router.routes[0]
        for number in range(1, len(bodies) + 1):
            reply = f"$JS.ACK.S.d.1.{number}.{number}.1700000000000000000.0"
            await server.send(Sent(session.inboxes["S"], b"%d" % number, reply=reply, subject=f"in.{number}"))
        await eventually(lambda: state.failed["bad_answer"] == len(bodies), 20, lambda: (state.failed, state.routed))
        await passes()
        assert acked(server) == []
        assert state.failed.total() == len(bodies)
        assert state.routed[OUT] == 0
        assert watch.router.ledger()["main"]["settled"]["acked"] == 0
        session.pubacks = {b"late": [*bodies[:3], STORED]}
        await server.send(session.deliver(len(bodies) + 1, b"late"))
        await server.send(session.deliver(len(bodies) + 2))
        await eventually(lambda: state.routed[OUT] == 2, 20, lambda: (state.failed, state.routed))
        assert len([one for one in server.published if one.payload == b"late"]) == 4
        assert not watch.of("NATS_CONNECTION_LOST")
