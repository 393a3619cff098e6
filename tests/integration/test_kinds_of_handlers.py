"""The promises of handlers, whatever their kind: on Trio, on asyncio, in threads, or a plain function.

On a fake broker and on a real server.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio
import trio.lowlevel

from router_trio import Live, Message, Reject, Retry, Router, Settings
from router_trio.events import Event
from router_trio.link import Connect
from router_trio.router.options import DestinationOptions
from router_trio.settings import ConnectionSettings
from router_trio.testing import FakeBroker
from tests.support.command import running
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import RawClient, connect
from tests.support.servers import nats_server
from tests.support.watch import assert_accounted

HERE = Path(__file__).name
Handler = Callable[[Message], Any]


# --- kinds of handlers -----------------------------------------------------------------------------------------------


class Steps(NamedTuple):
    """The work of a handler: `begin` is called, then it waits until `over` returns True, then `end` is called."""

    begin: Callable[[Message], object] = lambda message: None
    over: Callable[[], bool] = lambda: True
    end: Callable[[Message], Any] = lambda message: message
    cancelled: Callable[[], object] = lambda: None


def on_trio(steps: Steps) -> Handler:
    async def handler(message: Message) -> Any:
        steps.begin(message)
        try:
            await trio.lowlevel.checkpoint()
            while not steps.over():
                await trio.sleep(0.005)
        except trio.Cancelled:
            steps.cancelled()
            raise
        return steps.end(message)

    return handler


def on_asyncio(steps: Steps) -> Handler:
    async def handler(message: Message) -> Any:
        steps.begin(message)
        try:
            await asyncio.sleep(0)
            while not steps.over():
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            steps.cancelled()
            raise
        return steps.end(message)

    return handler


def blocking(steps: Steps) -> Handler:
    def handler(message: Message) -> Any:
        steps.begin(message)
        while not steps.over():
            time.sleep(0.005)
        return steps.end(message)

    return handler


KINDS: dict[str, tuple[Callable[[Steps], Handler], dict[str, Any]]] = {
    "trio": (on_trio, {}),
    "asyncio": (on_asyncio, {"loop": "asyncio"}),
    "thread": (blocking, {"thread": True}),
    "plain": (blocking, {}),
}
EACH = tuple(KINDS)
WAITING = ("trio", "asyncio", "thread")
"""Kinds whose calls may wait beside each other."""
CANCELLABLE = ("trio", "asyncio")


def kinds(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kind", names)


# --- servers ---------------------------------------------------------------------------------------------------------


class Place:
    """A server with the streams IN of `in.*`, OUT of `out.*` and DEAD of `dead.*`."""

    url = "nats://fake:4222"
    connect: Callable[[str, ConnectionSettings], Connect] | None = None

    async def publish(self, subject: str, payload: bytes, key: str = "") -> None:
        """Publish a message, with the header `key` if it is given."""
        raise NotImplementedError

    async def payloads(self, stream: str) -> list[bytes]:
        """Return what a stream holds, in order."""
        raise NotImplementedError

    async def unacked(self) -> int:
        """Return how many messages of IN are not acked."""
        raise NotImplementedError

    async def until_stored(self, stream: str, count: int) -> list[bytes]:
        """Wait until a stream holds that many messages, and return them."""

        async def stored() -> bool:
            return len(await self.payloads(stream)) >= count

        await eventually(stored, 20)
        return await self.payloads(stream)


class Fake(Place):
    def __init__(self) -> None:
        self.broker = FakeBroker()
        for name, subjects in STREAMS.items():
            self.broker.add_stream(name, [subjects])
        self.connect = lambda name, settings: self.broker.connect

    async def publish(self, subject: str, payload: bytes, key: str = "") -> None:
        await trio.lowlevel.checkpoint()
        self.broker.publish(subject, payload, {"key": key} if key else {})

    async def payloads(self, stream: str) -> list[bytes]:
        await trio.lowlevel.checkpoint()
        return [one.payload for one in self.broker.messages(stream)]

    async def unacked(self) -> int:
        await trio.lowlevel.checkpoint()
        return self.broker.unacked("IN", "router")


class Real(Place):
    def __init__(self, url: str, client: RawClient) -> None:
        self.url = url
        self.client = client
        self.streams = JetStream(client)

    async def publish(self, subject: str, payload: bytes, key: str = "") -> None:
        await self.client.publish(subject, payload, [("key", key)] if key else None)

    async def payloads(self, stream: str) -> list[bytes]:
        return [one.payload for one in await self.streams.stream_messages(stream)]

    async def unacked(self) -> int:
        info = await self.streams.consumer_info("IN", "router")
        return int(info["num_pending"] + info["num_ack_pending"])


STREAMS = {"IN": "in.*", "OUT": "out.*", "DEAD": "dead.*"}


@asynccontextmanager
async def real(folder: Path) -> AsyncIterator[Real]:
    async with nats_server(folder) as server, connect(server.url) as client:
        place = Real(server.url, client)
        for name, subjects in STREAMS.items():
            await place.streams.create_stream(name, [subjects])
        yield place


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.slow)])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    if request.param == "fake":
        yield Fake()
        return
    async with real(tmp_path) as found:
        yield found


# --- a route ---------------------------------------------------------------------------------------------------------


class Running(NamedTuple):
    live: Live
    events: list[Event]
    settings: Callable[..., Settings]

    def of(self, code: str) -> list[Any]:
        return [event for event in self.events if event.code == code]


@asynccontextmanager
async def routed(
    place: Place, kind: str, steps: Steps, *, shutdown_timeout: float = 5.0, **route: Any
) -> AsyncIterator[Running]:
    """Run a router with a route from IN to OUT through a handler of a kind."""
    make, options = KINDS[kind]
    events: list[Event] = []

    def settings(*routes: dict[str, Any]) -> Settings:
        return Settings(
            router={"shutdown_timeout": shutdown_timeout},
            telemetry={"listen": "", "handler_errors": "type"},
            connections={"main": {"servers": [place.url]}},
            routes=routes,
        )

    router = Router(settings(), observers=[events.append], connect=place.connect, log=False)
    source: dict[str, Any] = {"stream": "IN", "durable": "router", "filter": "in.*", "ack_wait": 3}
    to: DestinationOptions = {"subject": "out.{{wildcard(1)}}", "jetstream": True}
    router.route(to=to, name="route", **source, **options, **route)(make(steps))
    async with router.open() as live:
        yield Running(live, events, settings)
    assert_accounted(live)
    assert all(one.in_hand == 0 for one in live.routes)


# --- the promises ----------------------------------------------------------------------------------------------------


@kinds(*EACH)
async def test_messages_of_one_key_are_handled_one_at_a_time_in_order(kind: str, place: Place) -> None:
    lock, busy, most = threading.Lock(), Counter[str](), 0

    def begin(message: Message) -> None:
        nonlocal most
        with lock:
            busy[message.headers["key"]] += 1
            assert busy[message.headers["key"]] == 1
            most = max(most, busy.total())

    def end(message: Message) -> Message:
        with lock:
            busy[message.headers["key"]] -= 1
        return message

    waited = iter([False, False, True, False, True] * 100)
    steps = Steps(begin, lambda: kind == "plain" or next(waited), end)
    async with routed(place, kind, steps, key="headers.key", concurrency=8) as one:
        for number in range(60):
            await place.publish(f"in.{number}", b"%d %d" % (number % 6, number), f"k{number % 6}")
        stored = await place.until_stored("OUT", 60)
        assert not one.of("ROUTE_MESSAGE_FAILED")
    for key in range(6):
        assert [int(p.split()[1]) for p in stored if p.startswith(b"%d " % key)] == [*range(key, 60, 6)]
    assert most <= 6
    assert most > 1 or kind == "plain"


@kinds(*WAITING)
async def test_a_call_that_a_reload_ends_is_cancelled_and_its_message_handled_again(kind: str, place: Place) -> None:
    begun, cancelled, ends = threading.Event(), threading.Event(), threading.Event()
    steps = Steps(lambda message: begun.set(), ends.is_set, cancelled=cancelled.set)
    async with routed(place, kind, steps, shutdown_timeout=0.2) as one:
        await place.publish("in.x", b"hello")
        await eventually(begun.is_set)
        after = {
            "name": "route",
            "from": {"stream": "IN", "durable": "router", "filter": "in.*", "ack_wait": 3},
            "to": [{"subject": "out.{{wildcard(1)}}", "jetstream": True}],
            **KINDS[kind][1],
            "concurrency": 2,
        }
        await one.live.reload(one.settings(after))
        assert cancelled.is_set() == (kind in CANCELLABLE)
        assert [event.count for event in one.of("ROUTE_HANDLER_LEFT_BEHIND")] == ([] if kind in CANCELLABLE else [1])
        ends.set()
        assert await place.until_stored("OUT", 1) == [b"hello"]


@kinds(*EACH)
async def test_a_shutdown_waits_for_the_calls_in_flight_and_settles_their_messages(kind: str, place: Place) -> None:
    begun, until = Counter[str](), [0.0]
    steps = Steps(lambda message: begun.update([message.subject]), lambda: time.monotonic() > until[0])
    async with routed(place, kind, steps, key="subject", concurrency=4) as one:
        until[0] = time.monotonic() + (0.3 if kind != "plain" else 0)
        for number in range(4):
            await place.publish(f"in.{number}", b"%d" % number)
        await eventually(lambda: len(begun) == 4)
    assert sorted(await place.payloads("OUT")) == [b"0", b"1", b"2", b"3"]
    assert one.live.unsettled == 0
    assert await place.unacked() == 0
    assert not one.of("ROUTE_HANDLER_LEFT_BEHIND")


@kinds(*EACH)
async def test_retry_delays_the_next_attempt_of_its_message_alone(kind: str, place: Place) -> None:
    attempts: list[tuple[bytes, int | None, float]] = []

    def end(message: Message) -> Message:
        attempts.append((message.payload, message.deliveries, time.monotonic()))
        if message.payload == b"later" and len([one for one in attempts if one[0] == b"later"]) == 1:
            raise Retry(after=0.3, detail="not yet")
        return message

    async with routed(place, kind, Steps(end=end), key="subject") as one:
        await place.publish("in.x", b"later")
        await place.publish("in.y", b"now")
        assert await place.until_stored("OUT", 2) == [b"now", b"later"]
        (failed,) = one.of("ROUTE_MESSAGE_FAILED")
        assert failed.reason == "retry"
    first, second = (one for one in attempts if one[0] == b"later")
    assert second[1] == 2
    assert second[2] - first[2] >= 0.25


@kinds(*EACH)
async def test_reject_makes_a_dead_letter_at_once(kind: str, place: Place) -> None:
    calls = Counter[bytes]()

    def end(message: Message) -> Message:
        calls[message.payload] += 1
        if message.payload == b"bad":
            raise Reject("there is no such customer")
        return message

    letters = {"subject": "dead.{{wildcard(1)}}"}
    async with routed(place, kind, Steps(end=end), dead_letter=letters) as one:
        await place.publish("in.x", b"bad")
        await place.publish("in.x", b"good")
        assert await place.until_stored("OUT", 1) == [b"good"]
        assert await place.until_stored("DEAD", 1) == [b"bad"]
        (failed,) = one.of("ROUTE_MESSAGE_FAILED")
        assert failed.reason == "rejected"
        await eventually(lambda: one.live.routes[0].in_hand == 0)
    assert calls == {b"bad": 1, b"good": 1}


@kinds(*WAITING)
async def test_64_calls_wait_beside_each_other(kind: str, place: Place) -> None:
    lock, present, most = threading.Lock(), 0, 0

    def begin(message: Message) -> None:
        nonlocal present, most
        with lock:
            present += 1
            most = max(most, present)

    steps = Steps(begin, lambda: most == 64)
    async with routed(place, kind, steps, key="subject", concurrency=64):
        for number in range(64):
            await place.publish(f"in.{number}", b"%d" % number)
        assert len(await place.until_stored("OUT", 64)) == 64


@kinds(*EACH)
async def test_an_error_fails_its_message_with_its_place_and_the_next_attempt_is_routed(
    kind: str, place: Place
) -> None:
    attempts = 0

    def end(message: Message) -> Message:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise ValueError("hush")
        return message

    async with routed(place, kind, Steps(end=end)) as one:
        await place.publish("in.x", b"hello")
        assert await place.until_stored("OUT", 1) == [b"hello"]
        (failed,) = one.of("ROUTE_MESSAGE_FAILED")
    assert failed.error_type == "ValueError"
    assert failed.place.endswith(f"{HERE}:{end.__code__.co_firstlineno + 4} in end")


@kinds("asyncio")
async def test_tasks_that_a_handler_leaves_behind_end_with_the_router_and_are_named(kind: str, place: Place) -> None:
    """Trio has none: tasks belong to nurseries."""
    kept: list[asyncio.Task[None]] = []

    async def beats() -> None:
        await asyncio.sleep(60)

    steps = Steps(lambda message: kept.append(asyncio.create_task(beats())))
    async with routed(place, kind, steps) as one:
        await place.publish("in.x", b"hello")
        await place.until_stored("OUT", 1)
        assert not kept[0].done()
    assert kept[0].cancelled()
    (left,) = one.of("ROUTER_TASKS_LEFT_BEHIND")
    assert left.places[0].endswith(f"{HERE}:{beats.__code__.co_firstlineno + 1} in beats")


VARIABLE: ContextVar[str] = ContextVar("variable", default="not set")


@kinds(*EACH)
async def test_a_handler_sees_the_context_in_which_the_router_was_opened(kind: str, place: Place) -> None:
    token = VARIABLE.set("set by the program")
    steps = Steps(end=lambda message: message.replace(payload=VARIABLE.get().encode()))
    try:
        async with routed(place, kind, steps):
            await place.publish("in.x", b"")
            assert await place.until_stored("OUT", 1) == [b"set by the program"]
    finally:
        VARIABLE.reset(token)


MODULE = """
import asyncio, time, trio

async def on_trio(message):
    await trio.sleep(0.002)
    return message

async def on_asyncio(message):
    await asyncio.sleep(0.002)
    return message

def blocking(message):
    time.sleep(0.002)
    return message
"""
OF_KIND = {
    "trio": ("on_trio", ""),
    "asyncio": ("on_asyncio", 'loop = "asyncio"'),
    "thread": ("blocking", "thread = true"),
    "plain": ("blocking", ""),
}


def configuration(folder: Path, url: str, kind: str, workers: int) -> Path:
    handler, option = OF_KIND[kind]
    (folder / "shop.py").write_text(MODULE)
    path = folder / "router.toml"
    path.write_text(f"""
[router]
workers = {workers}
[telemetry]
listen = ""
[connections.main]
servers = ["{url}"]
[[routes]]
name = "route"
handler = "shop:{handler}"
key = "subject"
concurrency = 16
{option}
from = {{ stream = "IN", durable = "router", filter = "in.*", ack_wait = "1s" }}
to = [ {{ subject = "out.{{{{wildcard(1)}}}}", jetstream = true }} ]
""")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@kinds(*EACH)
async def test_a_killed_process_loses_and_doubles_nothing(kind: str, workers: int, tmp_path: Path) -> None:
    count = 2000
    async with real(tmp_path) as place:
        path = configuration(tmp_path, place.url, kind, workers)
        await place.client.publish_many([(f"in.{number % 50}", b"%d" % number) for number in range(count)])
        for _ in range(2):
            already = len(await place.payloads("OUT"))
            async with running("run", path, cwd=tmp_path, group=True) as run:
                await eventually(partial(_more, place, already), 20)
                run.send(signal.SIGKILL)
        async with running("run", path, cwd=tmp_path):
            stored = await place.until_stored("OUT", count)

            async def settled() -> bool:
                return await place.unacked() == 0

            await eventually(settled, 20)
        assert sorted(map(int, stored)) == [*range(count)]


async def _more(place: Place, than: int) -> bool:
    return len(await place.payloads("OUT")) > than
