"""The faults: each does one thing to a scene, lasts as long as its step says, and undoes it.

A fault waits for its own effect (a process that ends, a configuration that is loaded) and for nothing that a router
does: a router that hangs must not hang its fault.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import trio

from tests.resilience.chaos import load
from tests.resilience.chaos.scene import Surroundings
from tests.resilience.chaos.schedule import Step
from tests.resilience.chaos.variants import DURABLE, SINK, SOURCE
from tests.support.proxy import TcpProxy
from tests.support.raw_jetstream import JetStream, JetStreamError
from tests.support.raw_nats import encode_publish

Fault = Callable[[Surroundings, Step], Awaitable[None]]

SLOW = 20_000
"""Bytes per second."""

LESS_PAYLOAD = 1_024

POISONED = 5
"""Messages of each kind."""


async def run_track(scene: Surroundings, steps: tuple[Step, ...], instead: Mapping[str, Fault] | None = None) -> None:
    """Run one fault after the other; those that `instead` has in place of the ordinary ones."""
    faults = FAULTS | dict(instead or {})
    for step in steps:
        await trio.sleep(step.after)
        scene.spy.journal.note(f"begins: {step.fault}")
        await faults[step.fault](scene, step)
        scene.spy.journal.note(f"ends: {step.fault}")


# --- the network ---


def _proxy(scene: Surroundings, step: Step) -> TcpProxy:
    # With four proxies, all are reached: `place` has two values.
    return scene.proxies[(step.place + 2 * (step.amount % 2)) % len(scene.proxies)]


async def cut(scene: Surroundings, step: Step) -> None:
    """Close every connection."""
    _proxy(scene, step).cut()


async def reset(scene: Surroundings, step: Step) -> None:
    """Reset every connection (RST)."""
    _proxy(scene, step).reset()


def _on_proxy(do: Callable[[TcpProxy, Step], None]) -> Fault:
    async def fault(scene: Surroundings, step: Step) -> None:
        proxy = _proxy(scene, step)
        async with scene.sink_is_read:
            do(proxy, step)
        await trio.sleep(step.seconds)
        async with scene.sink_is_read:
            proxy.clear()
            proxy.accept()

    return fault


def _refuse(proxy: TcpProxy, step: Step) -> None:
    proxy.refuse()
    proxy.cut()


# --- the server ---


async def kill(scene: Surroundings, step: Step) -> None:
    """Send SIGKILL, and start a new process on the same store."""
    await scene.die()
    await trio.sleep(step.seconds)
    await scene.revive()


async def terminate(scene: Surroundings, step: Step) -> None:
    """Send SIGTERM, and start a new process on the same store."""
    await scene.die(gently=True)
    await trio.sleep(step.seconds)
    await scene.revive()


async def freeze(scene: Surroundings, step: Step) -> None:
    """Send SIGSTOP, then SIGCONT."""
    scene.server.stop()
    await trio.sleep(step.seconds)
    scene.server.cont()


async def lame_duck(scene: Surroundings, step: Step) -> None:
    """Let the server announce its end, and then end it."""
    began = trio.current_time()
    scene.server.lame_duck()
    await trio.sleep(step.seconds)
    await scene.die(since=began)
    await scene.revive()


def _with_config(**changes: object) -> Fault:
    async def fault(scene: Surroundings, step: Step) -> None:
        await scene.change(**changes)
        await trio.sleep(step.seconds)
        await scene.change()

    return fault


async def less_payload(scene: Surroundings, step: Step) -> None:
    """Reduce the maximum payload below the size of some messages; when it is raised again every client has to
    reconnect.

    A server sends its limit in its greeting, and notifies no client of a change.
    """
    await scene.change(max_payload=LESS_PAYLOAD)
    await trio.sleep(step.seconds)
    await scene.change()
    for proxy in scene.proxies:
        proxy.cut()


async def poison(scene: Surroundings, step: Step) -> None:
    """Publish, as another client, data that the server relays and that breaks clients: to the source, and to all
    subscribers.
    """
    root = b"source" if scene.schedule.kind == "stream" else b"in"
    frames = [b"PUB %b.\xff\xfe 6\r\npoison\r\n" % root]
    frames += [encode_publish(f"{root.decode()}.0", b"poison", header) for header in (b"NATS/1.0", b"NATS/1.0\r\n\r\n")]
    frames += [b"HPUB %b.1 14 20\r\nNATS/1.0 \xff\xfe\r\n\r\npoison\r\n" % root]
    try:
        async with load.client(scene.server.url) as client:
            await client.send(b"".join(frames) * POISONED)
            await client.ping()
    except load.TROUBLE:
        pass  # a server that was configured to refuse us; the schedule goes on


# --- streams and consumers ---


async def consumer_deleted(scene: Surroundings, step: Step) -> None:
    """Delete the durable of the route under it."""
    async with load.client(scene.server.url) as client:
        try:
            await JetStream(client).delete_consumer(SOURCE, DURABLE)
        except JetStreamError as error:
            if error.code != 404:  # the route had not recreated it since the last deletion
                raise


async def sink_deleted(scene: Surroundings, step: Step) -> None:
    """Delete the stream that the route fills, and recreate it later.

    Its contents are read before. Nothing may be stored between the two, so nothing reaches the server in the meantime.
    """
    async with scene.sink_is_read:
        for proxy in scene.proxies:
            proxy.blackhole("to_server")
        try:
            async with load.client(scene.server.url) as client:
                stream = JetStream(client)
                await _until_still(stream)
                scene.sink_before += await stream.stream_messages(SINK)
                await stream.delete_stream(SINK)
        finally:
            for proxy in scene.proxies:
                proxy.clear()
    await trio.sleep(step.seconds)
    await scene.create_sink()


async def _until_still(stream: JetStream) -> None:
    """Wait until a stream has stored everything that its server already has."""
    last = -1
    while (now := (await stream.stream_info(SINK))["state"]["last_seq"]) != last:
        last = now
        await trio.sleep(0.1)


async def delivered_twice(scene: Surroundings, step: Step) -> None:
    """Deliver every batch from the stream twice."""
    scene.spy.deliver_twice = True
    await trio.sleep(step.seconds)
    scene.spy.deliver_twice = False


# --- the router ---


async def restart_router(scene: Surroundings, step: Step) -> None:
    """End a router while its server is away, and start a new one."""
    router = scene.routers[step.place % len(scene.routers)]
    for proxy in router.proxies:
        proxy.refuse()
        proxy.cut()
    await trio.sleep(step.seconds / 2)
    await router.restart()
    await trio.sleep(step.seconds / 2)
    for proxy in router.proxies:
        proxy.accept()


FAULTS: dict[str, Fault] = {
    "cut": cut,
    "reset": reset,
    "blackhole": _on_proxy(lambda proxy, step: proxy.blackhole()),
    "deaf": _on_proxy(lambda proxy, step: proxy.blackhole("to_client")),
    "mute": _on_proxy(lambda proxy, step: proxy.blackhole("to_server")),
    "delay": _on_proxy(lambda proxy, step: proxy.delay(0.15)),
    "throttle": _on_proxy(lambda proxy, step: proxy.throttle(SLOW, "to_server")),
    "slow_reads": _on_proxy(lambda proxy, step: proxy.throttle(SLOW, "to_client")),
    "cut_mid_publish": _on_proxy(lambda proxy, step: proxy.cut_after(step.amount, "to_server")),
    "cut_mid_delivery": _on_proxy(lambda proxy, step: proxy.cut_after(step.amount, "to_client")),
    "refuse": _on_proxy(_refuse),
    "kill": kill,
    "terminate": terminate,
    "freeze": freeze,
    "lame_duck": lame_duck,
    "less_payload": less_payload,
    "no_publish": _with_config(no_publish=["sink.>", "out.>"]),
    "no_inbox": _with_config(no_subscribe=["_INBOX.>"]),
    "no_acks": _with_config(no_publish=["$JS.ACK.>"]),
    "no_api": _with_config(no_publish=["$JS.API.>"]),
    "few_connections": _with_config(max_connections=1),
    "poison": poison,
    "restart_router": restart_router,
    "consumer_deleted": consumer_deleted,
    "sink_deleted": sink_deleted,
    "delivered_twice": delivered_twice,
}
