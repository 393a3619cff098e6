"""Malformed or unforeseen input, through real servers: no link is blocked, and none of its text is repeated."""

from __future__ import annotations

import pytest
import trio

from router_trio import Router, Settings
from router_trio.errors import UnexpectedError
from router_trio.events import Level
from router_trio.link import ConsumerSpec
from router_trio.nats.info import ServerInfo, parse_info
from router_trio.protocol.framing import RawMessage, payload
from tests.integration.dial import INFO, SECRET, link_to
from tests.support.impostors import impostor, saying
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.recorder import INBOX, Recorder, operation, operation_with_ack
from tests.support.servers import NatsServer
from tests.support.watch import Watch

BAD_SUBJECTS = (b"\xff\xfe", b"a\x0bb", b"a\x0cb", b"\xc3(")
BAD_HEADERS = (
    b"NATS/1.0",
    b"NATS/1.0\r\n",
    b"NATS/1.0 \xff\xfe\xfd\r\n\r\n",
    b"NATS/1.0 503 \xff\r\n\r\n",
    b"NATS/1.0 503 \r\nX: \xff\r\n\r\n",
    b"NATS/1.0\r\n\xff: \xff\r\n\r\n",
    b"\x00",
)
BAD_ANSWERS = (b"", b"{", b"null", b"[" * 100_000, b'{"stream":"S","seq":%b}' % (b"9" * 10_000), b'{"error":7}')


def poison(prefix: bytes) -> bytes:
    """Return frames below a subject that a server relays and that no parser should fail on."""
    frames = [b"PUB %b.%b 1\r\nx\r\n" % (prefix, bad) for bad in BAD_SUBJECTS]
    frames += [b"PUB %b.1 %b 1\r\nx\r\n" % (prefix, bad) for bad in BAD_SUBJECTS]
    frames += [b"HPUB %b.1 %d %d\r\n%b\r\n" % (prefix, len(bad), len(bad), bad) for bad in BAD_HEADERS]
    frames += [b"PUB %b.1 %d\r\n%b\r\n" % (prefix, len(bad), bad) for bad in BAD_ANSWERS]
    return b"".join(frames)


async def test_poison_neither_kills_nor_blocks_a_link(server: NatsServer) -> None:
    spec = ConsumerSpec("ORDERS", "router", (), ack_wait=30.0, max_deliver=-1, max_ack_pending=100)
    heard, received, pulled = Recorder(), Recorder(), Recorder()
    async with connect(server.url) as client:
        await JetStream(client).create_stream("ORDERS", ["orders.>"])
        async with link_to(server.url, heard) as link:
            await link.subscribe("in.>", received)
            await link.open_consumer(spec, pulled)
            seen = await client.subscribe("poisoned.>")
            prefixes = [b"in", b"poisoned", INBOX, link.requests.inbox]
            for prefix in prefixes:
                await client.send(poison(prefix))
                await client.ping()
                await link.fence()
            frames = len(BAD_SUBJECTS) * 2 + len(BAD_HEADERS) + len(BAD_ANSWERS)
            assert len(seen.waiting()) == frames, "the server does not relay all of it"
            assert len(received.messages) == frames
            # Requests are answered, acks are counted, and subscriptions deliver.
            assert (await link.open_consumer(spec, pulled)).ack_wait == 30.0
            await link.send([operation_with_ack(7, b"orders.7", b"fine")])
            await heard.until(lambda told: 7 in told.acks)
            await client.publish("in.last", b"fine")
            await received.until_delivered(frames + 1)
            assert payload(received.messages[-1]) == b"fine"


async def test_an_unforeseen_error_ends_the_link_and_is_named_without_its_text(core_server: NatsServer) -> None:
    def deliver(batch: list[RawMessage]) -> None:
        raise ZeroDivisionError(SECRET)

    async def provoke() -> None:
        async with link_to(core_server.url) as link:
            await link.subscribe("in", deliver)
            await link.send([operation(1, b"in", b"x")])
            await trio.sleep_forever()

    with pytest.raises(UnexpectedError) as caught:
        await provoke()
    assert caught.value.reason == "protocol"
    assert caught.value.error_type == "ZeroDivisionError"
    assert SECRET not in str(caught.value)
    assert "please report it" in str(caught.value)


async def test_an_unforeseen_error_is_an_event_and_the_router_survives(
    core_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(text: bytes, before: ServerInfo) -> ServerInfo:
        if b'"server_id":"x"' in text:
            raise ZeroDivisionError(SECRET)
        return parse_info(text, before)

    async with impostor(saying(INFO, b"PONG\r\n", b"PONG\r\n" + INFO)) as bad:
        connections = {"main": {"servers": [bad.url]}, "other": {"servers": [core_server.url]}}
        watch = Watch()
        router = Router(Settings(telemetry={"listen": ""}, connections=connections), observers=[watch])
        monkeypatch.setattr("router_trio.nats.link.parse_info", read)
        async with router.open() as live:
            named = await watch.until("NATS_UNEXPECTED_ERROR")
            assert named.level == Level.ERROR
            assert named.error_type == "ZeroDivisionError"
            assert "in _on_info" in named.place
            assert "nats/link.py:" in named.place
            assert not any(SECRET in str(event) for event in watch.events)
            receipt = await live.publish("x", b"x", connection="other")
            with trio.fail_after(10):
                assert (await receipt.settled()).name == "fenced"
