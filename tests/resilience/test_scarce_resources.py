"""The system has no resources left for another connection: that is a failed attempt, and never ends the router."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support.command import environment
from tests.support.servers import NatsServer

PROGRAM = """
import json, os, resource, sys, threading
import trio
from router_trio import Router, Settings
from tests.support.links import close_link

url, what, count, more = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
events = []
routes = [{"name": "r", "from": {"subject": "in"}, "to": [{"subject": "out.x", "jetstream": True}]}]
config = Settings(
    telemetry={"listen": ""},
    connections={"main": {"servers": [url], "reconnect_delay": "50ms", "max_reconnect_delay": "100ms"}},
    routes=routes if more == "stored" else [],
)

def observe(event):
    global give_back
    events.append(event)
    if event.code == "NATS_CONNECTION_LOST":
        give_back = take_descriptors() if what == "descriptors" else take_threads()

router = Router(config, observers=[observe])

def codes(code):
    return [event for event in events if event.code == code]

async def until(code, times):
    with trio.fail_after(15):
        while len(codes(code)) < times:
            await trio.sleep(0.01)

def take_descriptors():
    # All that may be open are, but for `count`.
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 30, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    taken = []
    while True:
        try:
            taken.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            break
    for _ in range(count):
        os.close(taken.pop())
    return lambda: [os.close(one) for one in taken]

def take_threads():
    def refuse(*arguments, **options):
        raise RuntimeError("can't start new thread")
    import trio._core._thread_cache as cache
    cache.THREAD_CACHE._idle_workers.clear()
    # The one name is of Python 3.12 and before, the other of 3.13; some have both.
    names = [name for name in ("_start_new_thread", "_start_joinable_thread") if hasattr(threading, name)]
    kept = {name: getattr(threading, name) for name in names}
    vars(threading).update({name: refuse for name in names})
    return lambda: vars(threading).update(kept)

async def main():
    found = None
    async with router.open() as live:
        await until("NATS_CONNECTION_ESTABLISHED", 1)
        close_link(live.connections["main"])
        await until("NATS_CONNECTION_LOST", 1)
        if what == "descriptors" and count:
            await until("NATS_CONNECTION_RESTORED", 1)
            found = await live.connections["main"].listener.session.link.find_streams("out.x")
        else:
            await until("NATS_CONNECTION_FAILED", 3)
        give_back()
        await until("NATS_CONNECTION_RESTORED", 1)
        receipt = await live.publish("out", b"x")
        fate = await receipt.settled()
    told = {"reasons": sorted({one.reason for one in codes("NATS_CONNECTION_FAILED")}), "fate": fate.name}
    print(json.dumps(told | ({} if found is None else {"found": found, "unknown": codes("NATS_DESTINATIONS_UNKNOWN")})))

trio.run(main)
"""


def run(server: NatsServer, what: str, count: int, url: str | None = None, more: str = "plain") -> dict[str, object]:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, url or server.url, what, str(count), more],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment(),
    )
    assert ended.returncode == 0, ended.stderr
    told: dict[str, object] = json.loads(ended.stdout)
    return told


@pytest.mark.skipif(sys.platform != "linux", reason="counts what is in /proc")
@pytest.mark.parametrize("more", ["plain", "stored"])
async def test_no_descriptor_left_at_a_reconnect(server: NatsServer, more: str) -> None:
    told = run(server, "descriptors", 0, more=more)
    assert told["reasons"] == ["resources"]
    assert told["fate"] == "fenced"


@pytest.mark.skipif(sys.platform != "linux", reason="counts what is in /proc")
async def test_jetstream_is_asked_with_one_descriptor_left(server: NatsServer) -> None:
    """The link needs it. Requests are sent on it, and need no further one."""
    told = run(server, "descriptors", 1, more="stored")
    assert told == {"reasons": [], "found": [], "unknown": [], "fate": "fenced"}


@pytest.mark.skipif(sys.platform != "linux", reason="counts what is in /proc")
async def test_no_thread_left_to_resolve_a_name_at_a_reconnect(server: NatsServer) -> None:
    told = run(server, "threads", 0, url=f"nats://localhost:{server.port}")
    assert told == {"reasons": ["resources"], "fate": "fenced"}
