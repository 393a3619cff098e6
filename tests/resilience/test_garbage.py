"""A server that sends garbage, at any step: its link ends, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from random import Random

import pytest
import trio

from router_trio import Message, Router, Settings
from router_trio.errors import LinkError, SourceError, UnexpectedError
from router_trio.nats.link import Dialer
from router_trio.settings import ConnectionSettings
from tests.support.eventually import eventually
from tests.support.garbage import session
from tests.support.impostors import Caller, Impostor, Play, impostor, info
from tests.support.raw_nats import connect
from tests.support.recorder import INBOX, Recorder
from tests.support.servers import NatsServer
from tests.support.settings import settings
from tests.support.watch import Watch, router_tasks, watched
from tests.support.websockets import websocket_impostor

SECONDS = 5.0

Reached = Callable[[Play], AbstractAsyncContextManager[Impostor]]
"""Runs an impostor that is reached by TCP, or by WebSocket."""


NIGHTLY = [pytest.mark.nightly, pytest.mark.timeout(1_800)]


@pytest.mark.parametrize(
    ("reached", "seeds"),
    [
        (impostor, range(30)),
        (websocket_impostor, range(12)),
        pytest.param(impostor, range(30, 2_000), marks=NIGHTLY),
        pytest.param(websocket_impostor, range(30, 2_000), marks=NIGHTLY),
    ],
)
async def test_a_link_to_garbage_ends_only_with_a_link_error(reached: Reached, seeds: Sequence[int]) -> None:
    for seed in seeds:
        async with reached(session(Random(seed))) as server:
            config = ConnectionSettings(servers=[server.url], user="u", password="p")
            error = await end_of_a_link(config)
            assert not isinstance(error, UnexpectedError), f"seed {seed}: {error}"
            assert len(str(error)) < 600, f"seed {seed}"
            assert str(error).isprintable(), f"seed {seed}: {error!r}"
            assert router_tasks() == [], f"seed {seed}"


async def end_of_a_link(config: ConnectionSettings) -> LinkError | None:
    """Dial, subscribe, and wait for the end; return None if the link does not end in time."""
    try:
        with trio.move_on_after(SECONDS):
            async with Dialer(config, "main")(str(config.servers[0]), INBOX, Recorder()) as link:
                with suppress(SourceError):  # a refusal may be among the garbage
                    await link.subscribe("in.*", Recorder())
                await trio.sleep_forever()
    except LinkError as error:
        return error
    return None


def same(message: Message) -> Message:
    """Return the message."""
    return message.replace(payload=message.payload + bytes(message.subject, "utf-8", "replace"))


@pytest.mark.parametrize(
    ("reached", "seeds"),
    [
        (impostor, range(30)),
        (websocket_impostor, range(12)),
        pytest.param(impostor, range(30, 1_000), marks=NIGHTLY),
        pytest.param(websocket_impostor, range(30, 1_000), marks=NIGHTLY),
    ],
)
async def test_a_router_survives_garbage_and_routes_elsewhere(
    core_server: NatsServer, reached: Reached, seeds: Sequence[int]
) -> None:
    """Each link to the bad server uses another seed; routes lead from it, to it, and past it."""
    talked = 0

    async def play(caller: Caller) -> None:
        nonlocal talked
        talked += 1
        if talked == 1:  # refused credentials would end the router before it was ever connected
            await caller.say(info())
            await caller.hear(b"PING\r\n")
            await caller.say(b"PONG\r\n" * 2)
            await caller.hear()
            await caller.close()
        elif talked - 2 < len(seeds):
            await session(Random(seeds[talked - 2]))(caller)

    async with reached(play) as bad:
        quick = {"reconnect_delay": "10ms", "max_reconnect_delay": "50ms", "liveness_interval": "1s"}
        connections = {
            "bad": {"servers": [bad.url], **quick, "connect_timeout": "1s"},
            "good": {"servers": [core_server.url]},
        }
        routes = [
            ("from-bad", "bad", "in.*", "good", "from-bad.$1"),
            ("to-bad", "good", "good.*", "bad", "out.$1"),
            ("beside", "good", "good.*", "good", "beside.$1"),
            ("within", "bad", "in.>", "bad", "out.>"),
        ]
        config = Settings(
            telemetry={"listen": ""},
            connections=connections,
            routes=[
                {"name": name, "from": {"connection": a, "subject": subject}, "to": [{"connection": b, "subject": to}]}
                for name, a, subject, b, to in routes
            ],
        )
        watch = Watch()
        router = Router(config, observers=[watch])
        router.route("in.*", to="handled.$1", connection="bad")(same)
        async with connect(core_server.url) as client, watched(router, watch):
            beside = await client.subscribe("beside.*")
            sent = 0
            with trio.fail_after(50 if len(seeds) < 100 else 1_500):
                while talked < len(seeds) + 2:
                    await client.publish(f"good.{sent}", b"x")
                    message = await beside.next()
                    assert message.subject == f"beside.{sent}"
                    sent += 1
                    await trio.sleep(0.005)
            assert sent > 20
            assert watch.count("NATS_CONNECTION_LOST") + watch.count("NATS_CONNECTION_FAILED") >= len(seeds)


BAD_FIELDS = (
    *(b'"max_payload": null', b'"max_payload": "1048576"', b'"max_payload": 1e999', b'"max_payload": true'),
    *(b'"max_payload": -1', b'"max_payload": [1]', b'"max_payload": ' + b"9" * 5_000, b'"x": ' + b"[" * 99_999),
    *(b'"connect_urls": "127.0.0.1:1"', b'"connect_urls": {"a": 1}', b'"nonce": 7', b'"nonce": "\\ud800"'),
    *(b'"ldm": "x"', b'"headers": "yes"'),
)
ADDRESSES = (b"127.0.0.1:99999", b"h:-1", b"[::1", b"[::1]:x", b":", b"a b:1", b"u:p@h:1", b"\\u0000:1", b"//:1")


@pytest.mark.parametrize("step", ["greeting", "before the first PONG", "on a live link"])
@pytest.mark.parametrize("kind", ["fields", "addresses"])
async def test_a_garbled_info_ends_at_most_its_own_link(step: str, kind: str) -> None:
    if kind == "fields":
        bad = [b"INFO {%b}\r\n" % field for field in BAD_FIELDS]
    else:
        bad = [b'INFO {"connect_urls": ["%b"]}\r\n' % address for address in ADDRESSES]
    # The first link is sound. A client that was announced an address is turned away then, so that it tries that next.
    away = [None] * (2 * (kind == "addresses"))
    waiting = [b"", *(one for line in bad for one in (line, *away))]
    calls = len(waiting)

    async def play(caller: Caller) -> None:
        line = waiting.pop(0) if waiting else b""
        if line is None:
            await caller.close()
            return
        at = step if line else "nowhere"
        await caller.say(line if at == "greeting" else info())
        await caller.hear(b"PING\r\n")
        await caller.say((line if at == "before the first PONG" else b"") + b"PONG\r\n" * 2)
        await caller.hear(b"SUB")
        if at == "on a live link":
            await caller.say(line)
        if waiting and (kind == "addresses" or not line):
            await caller.say(b"PING\r\n")
            await caller.hear(b"PONG\r\n")  # and so the data before it was processed
            await caller.close()

    async with impostor(play) as server:
        config = settings(server.url, reconnect_delay="10ms", max_reconnect_delay="50ms", liveness_interval="60s")
        async with watched(config) as watch:
            if kind == "fields":
                await eventually(lambda: ends(watch).count("protocol") == len(bad), 30, lambda: ends(watch))
            else:
                await eventually(lambda: len(server.callers) >= calls, 30)
            # None of the announced addresses was ever tried.
            assert {event.server for event in watch.of("NATS_RECONNECT_ATTEMPT")} == {server.url}


def ends(watch: Watch) -> list[str]:
    """Return the reason of each failed attempt and each lost link."""
    return [one.reason for one in (*watch.of("NATS_CONNECTION_LOST"), *watch.of("NATS_CONNECTION_FAILED"))]
