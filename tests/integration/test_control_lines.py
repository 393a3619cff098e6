"""Subjects made long by their senders: which of them fail, and that none ends more than its message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from router_trio.errors import PublishError
from tests.integration.senders import router, streams, sunk
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer, nats_server
from tests.support.settings import settings
from tests.support.watch import Watch, assert_alive, until_stored, watched

KINDS = ("core", "stream", "handler", "handler of a stream")


# --- control lines ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("headers", [None, [("A", "1")]])
async def test_a_subject_too_long_for_the_server_fails_alone(server: NatsServer, kind: str, headers: Any) -> None:
    watch = Watch()
    async with streams(server, kind) as (client, stream):
        long = {"subject": "sink." + "y" * 120 + ".{{wildcard(1)}}"}
        source: dict[str, Any] = {"retry": {"attempts": 1}} if "stream" in kind else {}
        made = router(server.url, kind, watch, to=long, **source)
        async with watched(made, watch):
            await client.publish("in." + "x" * 3700, b"1", headers)
            await client.publish("in." + "x" * 4000, b"2", headers)
            await client.publish("in.3", b"3", headers)
            stored = await sunk(stream, 5)
            assert [message.payload.rstrip(b"!") for message in stored[3:]] == [b"1", b"3"]
            await eventually(lambda: dict(watch.router.routes[0].failed) == {"too_large": 1})
            assert watch.router.connections["main"].state.lost == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_a_message_that_ends_every_link_is_quarantined(tmp_path: Path, kind: str) -> None:
    """The server's limit is lower than usual: it announces that to no client, and closes the connection."""
    watch = Watch()
    async with (
        nats_server(tmp_path, config="max_control_line: 512") as server,
        streams(server, kind) as (client, stream),
    ):
        long = {"subject": "sink." + "y" * 300 + ".{{wildcard(1)}}"}
        source = {"retry": {"initial": "100ms"}, "ack_wait": "1s"} if "stream" in kind else {}
        async with watched(router(server.url, kind, watch, to=long, **source), watch):
            for number in range(11):
                await client.publish("in." + "x" * (300 if number == 10 else 1), b"%d" % number)
            await eventually(lambda: watch.router.routes[0].failed["poison"] > 0)
            await assert_alive(watch.router)
            for number in range(11, 20):
                await client.publish("in.x", b"%d" % number)
            stored = await sunk(stream, 22)
            numbers = [number for number in range(20) if number != 10]
            assert [int(message.payload.rstrip(b"!")) for message in stored[3:]] == numbers
            failed = watch.router.routes[0].failed
            if "stream" in kind:
                await eventually(lambda: failed["poison"] > 3)
            assert set(failed) == {"poison"}
            assert watch.router.connections["main"].state.lost <= 6, "and it ends no link when it is delivered again"


@pytest.mark.parametrize("with_ack", [False, True])
async def test_a_subject_that_is_too_long_raises_an_error_in_the_program(server: NatsServer, with_ack: bool) -> None:
    async with connect(server.url) as client, watched(settings(server.url)) as watch:
        await JetStream(client).create_stream("SINK", ["sink.>"])
        publish = watch.router.publish_with_ack if with_ack else watch.router.publish
        with pytest.raises(PublishError, match="max_control_line") as refused:
            await publish("sink." + "x" * 4092, b"")
        assert refused.value.reason == "too_large"
        await publish("sink." + "x" * 4000, b"1")
        await until_stored(JetStream(client), "SINK", 1)
        assert watch.router.connections["main"].state.lost == 0


@pytest.mark.parametrize("size", [4095, 4096])
async def test_the_longest_control_line_that_a_server_takes_passes(core_server: NatsServer, size: int) -> None:
    async with connect(core_server.url) as client, watched(settings(core_server.url)) as watch:
        heard = await client.subscribe(">")
        subject = "x" * (size - len(" 5"))
        await (await watch.router.publish(subject, b"12345")).settled()
        assert (await heard.next()).subject == subject
        assert watch.router.connections["main"].state.lost == 0
