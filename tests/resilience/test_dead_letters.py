"""Failing messages against real servers: retried, dead-lettered once, and terminated only after that."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio import Message, Reject, Retry, Router, Settings
from tests.support.command import running
from tests.support.eventually import eventually
from tests.support.proxy import tcp_proxy
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import RawClient, connect
from tests.support.servers import NatsServer, nats_server
from tests.support.settings import settings, stream_route_file
from tests.support.watch import Watch, assert_survived, until_nothing_is_unacked, until_stored, watched

DEAD: dict[str, Any] = {"subject": "dead.{{wildcard(1)}}"}
NAME = "Router-Dead-Letter-"


async def streams(client: RawClient, **source: Any) -> JetStream:
    """Create SOURCE, SINK and DEAD."""
    stream = JetStream(client)
    await stream.create_stream("SOURCE", ["in.*"], **source)
    await stream.create_stream("SINK", ["out.*"])
    await stream.create_stream("DEAD", ["dead.*"])
    return stream


def router(
    url: str, handler: Callable[[Message], Any], watch: Watch | None = None, *, subject: str | None = None, **route: Any
) -> Router:
    """Return a router from SOURCE, or a core subject, to SINK, with dead letters in DEAD."""
    made = Router(settings(url), observers=[] if watch is None else [watch])
    source: dict[str, Any] = {} if subject else {"stream": "SOURCE", "durable": "router", "filter": "in.*"}
    keys: dict[str, Any] = {"dead_letter": DEAD} | source | route
    made.route(subject, to={"subject": "out.x", "jetstream": True}, name="route", **keys)(handler)
    return made


class Failing:
    """A handler that fails `times` times on each message, and then passes it."""

    def __init__(self, times: int, error: Callable[[], Exception] = lambda: ValueError("no")) -> None:
        self.times = times
        self.error = error
        self.at: dict[bytes, list[float]] = {}

    def __call__(self, message: Message) -> Message:
        tried = self.at.setdefault(message.payload, [])
        tried.append(trio.current_time())
        if len(tried) <= self.times:
            raise self.error()
        return message.replace(subject="out.x")

    @property
    def calls(self) -> Counter[bytes]:
        return Counter({payload: len(times) for payload, times in self.at.items()})


async def test_a_message_that_passes_at_its_last_attempt_is_not_dead_lettered(server: NatsServer) -> None:
    async with connect(server.url) as client:
        stream = await streams(client)
        failing = Failing(2)
        async with watched(router(server.url, failing, retry={"initial": "20ms", "attempts": 3})) as watch:
            await stream.publish_many([("in.x", b"%d" % number, None) for number in range(20)])
            await until_stored(stream, "SINK", 20)
            await until_nothing_is_unacked(stream)
            assert watch.router.routes[0].settled | {"returned": 0} == watch.router.routes[0].settled | {
                "routed": 20,
                "returned": 0,
            }
        assert set(failing.calls.values()) == {3}
        assert await stream.stream_messages("DEAD") == []


async def test_a_message_that_fails_each_time_is_dead_lettered_once(server: NatsServer) -> None:
    async with connect(server.url) as client:
        stream = await streams(client)
        failing = Failing(100)
        async with watched(router(server.url, failing, retry={"initial": "20ms", "attempts": 3})) as watch:
            await stream.publish("in.x", b"bad", [("Nats-Msg-Id", "7"), ("Nats-Expected-Stream", "SOURCE"), ("A", "b")])
            await until_stored(stream, "DEAD", 1)
            await until_nothing_is_unacked(stream)
            assert watch.metric("router_messages_dead_lettered_total", route="route") == 1
            assert watch.metric("router_messages_given_up_total", reason="handler_error") == 1
            assert watch.metric("router_route_messages_settled_total", fate="dead_lettered") == 1
        (letter,) = await stream.stream_messages("DEAD")
    headers = dict(letter.headers)
    assert (letter.subject, letter.payload, failing.calls[b"bad"]) == ("dead.x", b"bad", 3)
    assert headers.pop("Nats-Msg-Id").startswith("SOURCE:1:")
    assert headers.pop(f"{NAME}Time")
    assert headers == {
        "A": "b",
        f"{NAME}Route": "route",
        f"{NAME}Reason": "handler_error",
        f"{NAME}Detail": "ValueError: no",
        f"{NAME}Attempts": "3",
        f"{NAME}Subject": "in.x",
        f"{NAME}Stream": "SOURCE",
        f"{NAME}Sequence": "1",
        f"{NAME}Message-Id": "7",
    }


async def test_the_source_is_terminated_only_after_the_puback_of_the_dead_letter(
    server: NatsServer, tmp_path: Path
) -> None:
    """The server of the dead letters is killed when it has stored one, and has not confirmed it."""
    async with (
        nats_server(tmp_path, name="edge") as edge,
        tcp_proxy("127.0.0.1", edge.port) as proxy,
        connect(server.url) as client,
    ):
        stream = await streams(client)
        await stream.delete_stream("DEAD")
        async with connect(edge.url) as beyond:
            await JetStream(beyond).create_stream("DEAD", ["dead.*"])
        terminated = await client.subscribe("$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.SOURCE.router")
        both = {"main": settings(server.url).connections["main"], "edge": settings(proxy.url).connections["main"]}
        made = Router(Settings(telemetry={"listen": ""}, connections=both))
        keys: dict[str, Any] = {"stream": "SOURCE", "durable": "router", "retry": {"attempts": 1, "initial": "50ms"}}
        keys |= {"filter": "in.*", "dead_letter": DEAD | {"connection": "edge"}, "connection": "main"}
        failing = Failing(100)
        made.route(to={"subject": "out.x", "jetstream": True}, name="route", **keys)(failing)
        async with watched(made) as watch:
            proxy.blackhole("to_client")
            await stream.publish("in.x", b"bad")
            async with connect(edge.url) as beyond:
                await until_stored(JetStream(beyond), "DEAD", 1)
            await edge.kill()
            proxy.reset()
            proxy.clear()
            await trio.sleep(1)
            assert (await stream.consumer_info("SOURCE", "router"))["num_ack_pending"] == 1
            assert watch.router.routes[0].dead_lettered == 0
            await edge.restart()
            await eventually(lambda: watch.router.routes[0].dead_lettered == 1, 30)
            await until_nothing_is_unacked(stream)
            with trio.fail_after(5):
                await terminated.next()
        async with connect(edge.url) as beyond:
            (letter,) = await JetStream(beyond).stream_messages("DEAD")
        assert letter.payload == b"bad"
        assert failing.calls == {b"bad": 1}


async def test_a_handler_chooses_when_its_message_is_redelivered(server: NatsServer) -> None:
    async with connect(server.url) as client:
        stream = await streams(client)
        failing = Failing(2, lambda: Retry(after=0.7))
        async with watched(router(server.url, failing, retry={"initial": "1m", "attempts": 3})):
            await stream.publish("in.x", b"1")
            await until_stored(stream, "SINK", 1)
        times = failing.at[b"1"]
        assert all(0.65 <= later - earlier < 3 for earlier, later in pairwise(times))


async def test_a_message_that_a_handler_rejects_is_not_retried(server: NatsServer) -> None:
    async with connect(server.url) as client:
        stream = await streams(client)
        failing = Failing(100, lambda: Reject("an order without lines"))
        async with watched(router(server.url, failing)):
            await stream.publish("in.x", b"1")
            await until_stored(stream, "DEAD", 1)
            await until_nothing_is_unacked(stream)
        (letter,) = await stream.stream_messages("DEAD")
    assert letter.header(f"{NAME}Reason") == "rejected"
    assert letter.header(f"{NAME}Detail") == "an order without lines"
    assert failing.calls == {b"1": 1}


async def test_a_final_reason_is_not_retried(server: NatsServer) -> None:
    async with connect(server.url) as client:
        stream = await streams(client)
        failing = Failing(100)
        retry = {"initial": "1m", "not": ["handler_error:ArithmeticError", "handler_error:ValueError"]}
        async with watched(router(server.url, failing, retry=retry)):
            await stream.publish("in.x", b"1")
            await until_stored(stream, "DEAD", 1)
    assert failing.calls == {b"1": 1}


@pytest.mark.parametrize("retention", ["workqueue", "interest"])
async def test_a_stream_that_deletes_acked_messages_needs_dead_letters(server: NatsServer, retention: str) -> None:
    async with connect(server.url) as client:
        stream = await streams(client, retention=retention)
        retry = {"initial": "20ms", "attempts": 2}
        async with watched(router(server.url, Failing(100), retry=retry, dead_letter=None)) as watch:
            await eventually(lambda: watch.router.routes[0].state == "failed")
            assert "add [routes.dead_letter]" in str(watch.router.routes[0].reason)
            assert watch.metric("router_nats_subscribe_failures_total", reason="would_delete") > 0
        async with watched(router(server.url, Failing(100), retry=retry)):
            await stream.publish("in.x", b"1")
            await until_stored(stream, "DEAD", 1)
            await eventually(_is_empty(stream, "SOURCE"))


def _is_empty(stream: JetStream, name: str) -> Callable[[], Any]:
    async def empty() -> bool:
        return bool((await stream.stream_info(name))["state"]["messages"] == 0)

    return empty


async def test_deliveries_that_a_killed_process_used_up_are_not_counted_as_failures(
    server: NatsServer, tmp_path: Path
) -> None:
    (tmp_path / "work.py").write_text("import trio\nasync def hang(message):\n    await trio.sleep_forever()\n")
    stream_route_file(
        tmp_path,
        server.url,
        to="out.x",
        ack_wait="1s",
        handler='"work:hang"',
        retry='{ attempts = 2, initial = "20ms" }',
        dead_letter='{ subject = "dead.{{wildcard(1)}}" }',
    )
    async with connect(server.url) as client:
        stream = await streams(client)
        await stream.publish_many([("in.x", b"%d" % number, None) for number in range(10)])
        for _ in range(3):
            async with running("run", "router.toml", cwd=tmp_path) as process:
                await process.has_logged("ROUTE_READY")
                await trio.sleep(0.3)
                process.send(signal.SIGKILL)
        failing = Failing(1)
        async with watched(router(server.url, failing, retry={"initial": "20ms", "attempts": 2})):
            await until_stored(stream, "SINK", 10)
            await until_nothing_is_unacked(stream)
        assert await stream.stream_messages("DEAD") == []
        assert set(failing.calls.values()) == {2}


async def test_core_messages_are_retried_and_dead_lettered(server: NatsServer) -> None:
    def pick(message: Message) -> Message:
        return passing(message) if message.payload.startswith(b"good") else dying(message)

    passing, dying = Failing(2), Failing(100)
    async with connect(server.url) as client:
        stream = await streams(client)
        await stream.delete_stream("SOURCE")
        watch = Watch()
        made = router(server.url, pick, watch, subject="in.*", retry={"initial": "20ms", "attempts": 3})
        async with watched(made, watch):
            for number in range(10):
                await client.publish("in.x", b"good %d" % number)
                await client.publish("in.y", b"bad %d" % number, [("A", "b")])
            await until_stored(stream, "SINK", 10)
            await until_stored(stream, "DEAD", 10)
            route = watch.router.routes[0]
            await eventually(lambda: route.settled["routed"] == route.settled["dead_lettered"] == 10)
            await assert_survived(watch, losses=0)
        letters = await stream.stream_messages("DEAD")
    assert Counter(letter.payload for letter in letters) == {b"bad %d" % number: 1 for number in range(10)}
    assert {letter.header(f"{NAME}Attempts") for letter in letters} == {"3"}
    assert {letter.header("A") for letter in letters} == {"b"}
    assert set(passing.calls.values()) == set(dying.calls.values()) == {3}


async def test_a_setting_without_effect_is_reported_at_the_start(server: NatsServer) -> None:
    async with connect(server.url) as client:
        await streams(client)
        watch = Watch()
        made = router(server.url, Failing(0), watch, max_deliver=3)
        async with watched(made, watch):
            (ignored,) = watch.of("ROUTER_SETTING_IGNORED")
            assert ignored.key == "routes[0].from.max_deliver"
