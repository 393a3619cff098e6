"""A stranger who may publish only below `in.`, and publishes arbitrary data to every kind of route."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio.embedded import reserve_port
from tests.support.command import running
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import RawClient, RawNatsError, connect
from tests.support.server_version import server_version
from tests.support.servers import NatsServer, nats_server

SEED = 14

SERVER = """
accounts {
  A {
    jetstream: enabled
    users: [
      { user: admin, password: admin }
      { user: stranger, password: stranger, permissions: { publish: ["in.>"], subscribe: ["nothing"] } }
    ]
  }
}
no_auth_user: admin
"""

CONFIG = """
[telemetry]
listen = "127.0.0.1:{port}"
log_level = "warning"
[connections.main]
servers = ["{url}"]
user = "admin"
password = "admin"
[connections.other]
servers = ["{url}"]
user = "admin"
password = "admin"

{routes}
"""

ROUTES = [
    ("core", 'subject = "in.core.>"', 'subject = "out.core.>"', ""),
    ("core to a stream", 'subject = "in.sink.>"', 'subject = "sink.core.>"\njetstream = true', ""),
    ("handler", 'subject = "in.handler.>"', 'subject = "sink.handler.>"\njetstream = true', 'handler = "strange:same"'),
    ("first token", 'subject = "in.first.>"', 'subject = ">"', ""),
    ("any token", 'subject = "in.any.*.*.*.*.*"', 'subject = "$1.$2.$3.$4.$5"', ""),
    ("split", 'subject = "in.split.*"', 'subject = "{{split(1,-)}}"\njetstream = true', ""),
    ("stream", 'stream = "IN"\ndurable = "stream"\nfilter = "in.stream.>"', 'subject = "sink.>"\njetstream = true', ""),
    (
        "stream to core",
        'stream = "IN"\ndurable = "core"\nfilter = "in.stream.>"',
        'subject = "out.>"\njetstream = false',  # no stream has it: waiting for PubAcks, it would never be calm
        "",
    ),
    (
        "stream to anywhere",
        'stream = "IN"\ndurable = "away"\nfilter = "in.away.>"',
        'subject = ">"\njetstream = true',
        "",
    ),
]

HANDLER = """
def same(message):
    return message.replace(headers=message.headers.set("Seen", "1"))
"""

REPLIES = [
    *(b"", b"_INBOX.a.1", b"in.core.x", b"\xff.\xfe"),
    *(b"$JS.API.STREAM.DELETE.VICTIM", b"$JS.ACK.IN.stream.1.1.1.1.1"),
]
NAMES = [
    *("Nats-Rollup", "Nats-TTL", "Nats-Schedule", "Nats-Schedule-Target", "Nats-Msg-Id", "Nats-Incr", "traceparent"),
    *("Nats-Batch-Id", "Nats-Batch-Sequence", "Nats-Batch-Commit", "Nats-Expected-Last-Sequence", "Status", "A"),
    *("Nats-Expected-Stream", "Nats-Marker-Reason", "Nats-Trace-Dest", "Nats-Trace-Only", "Nats-Stream-Source"),
]
VALUES = [b"all", b"sub", b"1s", b"never", b"1", b"VICTIM", b"@every 1s", b"victim.1", b"+1", b"\xff\x00", b"x" * 3000]
PLACES = ["core", "sink", "handler", "first", "any", "split", "stream", "away", "nowhere"]
TARGETS = [
    *(b"$JS.API.STREAM.DELETE.VICTIM", b"$JS-API-STREAM-PURGE-VICTIM"),
    *(b"_INBOX.x", b"$KV.x.y", b"$SYS.REQ.x", b"a"),
]
NOT_IN_SUBJECTS = bytes({*range(0x21), 0x7F})


class Stranger:
    """Generates messages of every kind from one seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def frame(self) -> bytes:
        """Return one PUB or HPUB frame that a server accepts."""
        draw = self._random
        subject = b"in." + draw.choice(PLACES).encode() + b"." + self._rest()
        reply = draw.choice(REPLIES)
        payload = draw.randbytes(draw.choice([0, 1, 100, 5000]))
        where = subject[:3800].rstrip(b".") + (b" " + reply if reply else b"")
        block = self._block()
        if not block:
            return b"PUB %b %d\r\n%b\r\n" % (where, len(payload), payload)
        return b"HPUB %b %d %d\r\n%b%b\r\n" % (where, len(block), len(block) + len(payload), block, payload)

    def _rest(self) -> bytes:
        draw = self._random
        kind = draw.randrange(5)
        if kind == 0:
            return draw.choice(TARGETS)
        if kind == 1:
            return b".".join(self._token(draw.randrange(1, 30)) for _ in range(draw.randrange(1, 8)))
        if kind == 2:
            return self._token(draw.choice([300, 1000, 3700]))
        if kind == 3:
            return b".".join([b"a"] * draw.randrange(1, 1500))
        return draw.choice([b"a:b@", b"://", b"=", b'"', b"%s", b"{{", b"password="]) * draw.randrange(1, 400)

    def _token(self, size: int) -> bytes:
        octets = self._random.randbytes(size).translate(None, NOT_IN_SUBJECTS)
        return octets.replace(b".", b"").replace(b"*", b"").replace(b">", b"") or b"x"

    def _block(self) -> bytes:
        draw = self._random
        kind = draw.randrange(4)
        if kind == 0:
            return b""
        if kind == 1:
            return b"NATS/1.0" + draw.choice([b"", b"\r\n", b" 503\r\n\r\n", b"\r\n\r\n", draw.randbytes(40)])
        lines = [draw.choice(NAMES).encode() + b": " + draw.choice(VALUES) for _ in range(draw.randrange(1, 6))]
        return b"NATS/1.0\r\n" + draw.choice([b"\r\n", b"\n"]).join(lines) + b"\r\n\r\n"


@contextmanager
def probing(port: int) -> Iterator[list[float]]:
    """Request `/healthz` again and again from a thread; the list holds the duration of each answer, inf for none."""
    took: list[float] = []
    over = threading.Event()

    def probe() -> None:
        while not over.wait(0.01):
            began = time.monotonic()
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            try:
                connection.request("GET", "/healthz")
                took.append(time.monotonic() - began if connection.getresponse().status == 200 else float("inf"))
            except OSError:
                took.append(float("inf"))
            finally:
                connection.close()

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield took
    finally:
        over.set()
        thread.join()


async def status(port: int) -> dict[str, Any]:
    """Return the `/status` of the router."""

    def ask() -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/status")
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
        return answer

    return await trio.to_thread.run_sync(ask)


async def publish_as_a_stranger(server: NatsServer, stranger: Stranger, messages: int) -> None:
    """Send all of it, on a new connection whenever the server ends one."""
    left = messages
    while left:
        async with connect(server.url, user="stranger", password="stranger") as client:
            try:
                while left:
                    await client.send(b"".join(stranger.frame() for _ in range(50)))
                    left -= 50
                    await client.ping(within=30)
            except RawNatsError:
                continue


async def state(stream: JetStream, name: str) -> tuple[int, int, int]:
    found = (await stream.stream_info(name))["state"]
    return found["messages"], found["first_seq"], found["last_seq"]


@pytest.mark.skipif(
    (2, 11) <= server_version() < (2, 12, 6),
    reason="nats-server from 2.11 to 2.12.5 publishes traces to any subject that a sender names, permitted or not",
)
@pytest.mark.parametrize(
    ("messages", "within"),
    # Beside other tests on two processors, an answer may wait until its process is scheduled.
    [pytest.param(10_000, 0.1, marks=pytest.mark.nightly), (1_000, 0.5)],
)
@pytest.mark.timeout(300)
async def test_a_stranger_breaks_nothing(tmp_path: Path, messages: int, within: float) -> None:
    """`within` is the time in seconds in which `/healthz` answers, each time."""
    (tmp_path / "strange.py").write_text(HANDLER)
    async with nats_server(tmp_path, config=SERVER) as server, connect(server.url) as client:
        stream = JetStream(client)
        open_to_all = {"allow_rollup_hdrs": True, "allow_msg_ttl": True, "allow_atomic": True}
        await stream.create_stream("VICTIM", ["victim.*"])
        await stream.create_stream("SINK", ["sink.>"], **open_to_all)
        await stream.create_stream("IN", ["in.stream.>", "in.away.>"], **open_to_all)
        for subject in ("victim.precious", "sink.precious"):
            await stream.publish(subject, b"precious")
        victim = await state(stream, "VICTIM")
        with reserve_port() as port:
            routes = "\n".join(_route(*one) for one in ROUTES)
            (tmp_path / "router.toml").write_text(CONFIG.format(url=server.url, port=port, routes=routes))
            async with running("run", "router.toml", cwd=tmp_path) as router:
                await _until_ready(port)
                with probing(port) as took:
                    await publish_as_a_stranger(server, Stranger(SEED), messages)
                    await _until_calm(stream, port)
                assert len(took) > 20
                assert max(took) < within, sorted(took)[-10:]
                now = await status(port)
                for name, entry in now["ledger"].items():
                    total = entry["pending"] + entry["in_flight"] + sum(entry["settled"].values())
                    assert entry["accepted"] == total, name
                received = sum(route["received"] for route in now["routes"].values())
                assert received > messages / 2
                assert await _still_routes(client)
                assert len(router.errors) < 2_000_000
        assert await state(stream, "VICTIM") == victim
        assert (await stream.stream_info("SINK"))["state"]["first_seq"] == 1, "nothing that others stored is gone"
        streams = (await stream.api("STREAM.LIST"))["streams"]
        assert {one["config"]["name"] for one in streams} == {"VICTIM", "SINK", "IN"}


def _route(name: str, source: str, to: str, rest: str) -> str:
    return f"""
[[routes]]
name = "{name}"
{rest}
[routes.from]
connection = "main"
{source}
[[routes.to]]
connection = "other"
{to}
"""


async def _until_ready(port: int) -> None:
    with trio.fail_after(20):
        while True:
            try:
                if all(route["state"] == "running" for route in (await status(port))["routes"].values()):
                    return
            except OSError:
                pass
            await trio.sleep(0.05)


async def _until_calm(stream: JetStream, port: int) -> None:
    """Wait until every received message is settled, or waits for a stream that takes its subject.

    A publish of a core message that no stream takes is retried for 30 s, and the messages behind it for as long again.
    """
    with trio.fail_after(150):
        while True:
            consumers = [await stream.consumer_info("IN", name) for name in ("stream", "core", "away")]
            routes = (await status(port))["routes"]
            in_hand = [one["ledger"]["in_hand"] for name, one in routes.items() if name != "stream to anywhere"]
            if not any([*in_hand, *(one["num_pending"] for one in consumers)]):
                return
            await trio.sleep(0.1)


async def _still_routes(client: RawClient) -> bool:
    heard = await client.subscribe("out.core.probe")
    await client.publish("in.core.probe", b"1")
    return (await heard.next(within=2)).payload == b"1"
