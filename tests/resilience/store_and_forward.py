"""Store and forward: sites whose headquarters is cut off, while their routers and servers are killed; then an audit.

    python -m tests.resilience.store_and_forward --hours 2

Two sites run `examples/store_and_forward.toml` over one proxy to headquarters, and publish all the time. The site
`beside` has a nats-server of its own beside the router, and each of both is killed (SIGKILL) in turn. The site
`embedded` runs with `--embedded-nats --data`: its router is killed together with its server, or only the server, which
the router restarts. Everything listens on the loopback. The run ends by itself `ENDS_WITHIN` seconds after the cut at
the latest, and `router-trio audit` must then find each published message once.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from tests.support.command import ROOT, RunningCommand, command, running
from tests.support.eventually import eventually
from tests.support.proxy import TcpProxy, tcp_proxy
from tests.support.raw_jetstream import JetStream, JetStreamError
from tests.support.raw_nats import Headers, RawNatsError, connect
from tests.support.servers import NatsServer, nats_server

EXAMPLE = ROOT / "examples" / "store_and_forward.toml"
STREAM, DURABLE, COPIES = "READINGS", "forward", "COPIES"
TICK = 0.1
DOWN_FOR = 0.5
"""Seconds for which a killed process is away, if the router does not restart it."""

STARTS_WITHIN = 120.0
"""Seconds in which a router starts on a busy machine. Headquarters need not be there."""

LEAST_KILLS = 2
"""Kills of each site however long they take: of its server, then of its router."""

ENDS_WITHIN = 600.0
"""Seconds after the cut in which everything published must be at headquarters."""

TROUBLE = (RawNatsError, JetStreamError, OSError, trio.BrokenResourceError, trio.TooSlowError)


@dataclass(frozen=True)
class Report:
    """The findings of a run: what was published, killed and found, by site. `broken` are the promises not kept."""

    cut_for: float
    caught_up_after: float
    published: dict[str, int]
    kills: dict[str, int]
    audits: dict[str, dict[str, Any]]
    broken: list[str]

    def __str__(self) -> str:
        lines = [f"cut off for {self.cut_for:.0f} s, everything at headquarters {self.caught_up_after:.1f} s later"]
        lines += [f"killed {count} times: {what}" for what, count in self.kills.items()]
        lines += [
            f"site {site}: {count} published, audit: {self.audits.get(site)}" for site, count in self.published.items()
        ]
        return "\n".join([*lines, *(f"BROKEN: {one}" for one in self.broken)])


class Site:
    """A router and its local server, killed and started again, and a program that publishes to that server."""

    def __init__(self, name: str, directory: Path, headquarters: str, server: NatsServer | None) -> None:
        self.name = name
        self.directory = directory
        self.published = 0
        self._sent = 0
        self.kills: dict[str, int] = {}
        self.config = directory / "router.toml"
        self._server = server
        self._env = {
            "ROUTER_TRIO_TELEMETRY__LISTEN": "",
            "ROUTER_TRIO_CONNECTIONS__HEADQUARTERS__SERVERS": json.dumps([headquarters]),
        }
        if server is not None:
            self._env["ROUTER_TRIO_CONNECTIONS__SITE__SERVERS"] = json.dumps([server.url])
        self.config.write_text(EXAMPLE.read_text(encoding="utf-8").replace("sites.berlin", f"sites.{name}"))
        self._end = trio.Event()
        self._started = trio.Event()
        self._killed = trio.Event()
        self._run: RunningCommand

    @property
    def url(self) -> str:
        """The URL of the local server. Raises `OSError` before the first start of an embedded one."""
        return self._server.url if self._server is not None else (self._data / "url").read_text().strip()

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    async def run(self) -> None:
        """Run the router, and restart it when it is killed, until `stop`."""
        options = () if self._server is not None else ("--embedded-nats", "--data", self._data)
        while not self._end.is_set():
            self._started, self._killed = trio.Event(), trio.Event()
            async with running("run", self.config, *options, cwd=self.directory, env=self._env) as self._run:
                await eventually(lambda: self._run.logged("ROUTER_STARTED"), STARTS_WITHIN)
                self._started.set()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_cancel_after, self._killed, nursery.cancel_scope)
                    nursery.start_soon(_cancel_after, self._end, nursery.cancel_scope)
                self._run.send(signal.SIGKILL if self._killed.is_set() else signal.SIGTERM)
                code = await self._run.ended()
            if not self._killed.is_set():
                assert code == 0, self._run.errors[-2000:]
            else:
                self._started = trio.Event()
                await trio.sleep(DOWN_FOR)

    def stop(self) -> None:
        """Stop the router in order."""
        self._end.set()

    async def kill(self, number: int) -> None:
        """Kill the router and the server in turn, once the router has started."""
        await self._started.wait()
        what = "router" if number % 2 else "server"
        key = f"{what} of {self.name}"
        if what == "router":
            self._killed.set()
        elif self._server is not None:
            await self._server.kill()
            await trio.sleep(DOWN_FOR)
            await self._server.restart()
        else:
            os.kill(_server_pid(self._run), signal.SIGKILL)
        self.kills[key] = self.kills.get(key, 0) + 1

    async def publish(self, rate: float, end: trio.Event) -> None:
        """Publish numbered readings at this rate until `end`, each until the local stream has it."""
        began = trio.current_time()
        while not (end.is_set() and self.published == self._sent):
            try:
                async with connect(self.url) as client:
                    jetstream = JetStream(client)
                    while not (end.is_set() and self.published == self._sent):
                        due = self._sent if end.is_set() else int((trio.current_time() - began) * rate)
                        await self._publish(jetstream, min(100, due - self.published))
                        await trio.sleep(TICK)
            except TROUBLE:
                await trio.sleep(TICK)

    async def _publish(self, jetstream: JetStream, count: int) -> None:
        first = self.published
        requests: list[tuple[str, bytes, Headers | None]] = [
            (f"readings.{n % 10}.heat", b"%0128d" % n, {"Nats-Msg-Id": str(n)}) for n in range(first, first + count)
        ]
        self._sent = max(self._sent, first + count)
        with trio.fail_after(5):
            await jetstream.publish_many(requests)
        self.published += count

    async def is_forwarded(self) -> bool:
        """Return True if the durable has nothing left."""
        try:
            async with connect(self.url) as client:
                info = await JetStream(client).consumer_info(STREAM, DURABLE)
        except TROUBLE:
            return False
        return bool(info["num_pending"] == 0 == info["num_ack_pending"])

    async def audit(self) -> dict[str, Any]:
        """Return the report of `router-trio audit` with its exit code. The local server must run."""
        env = self._env | {"ROUTER_TRIO_CONNECTIONS__SITE__SERVERS": json.dumps([self.url])}

        def run() -> dict[str, Any]:
            done = command("audit", self.config, "forward", "--json", cwd=self.directory, env=env, within=ENDS_WITHIN)
            return {"exit": done.returncode, "errors": done.stderr, **json.loads(done.stdout or "{}")}

        return await trio.to_thread.run_sync(run)


async def _cancel_after(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _server_pid(run: RunningCommand) -> int:
    """Return the pid of the embedded server that runs now."""
    if restarted := run.logged("ROUTER_SERVER_RESTARTED"):
        return int(restarted[-1]["pid"])
    return int(run.output.partition("nats-server: pid ")[2].splitlines()[0])


async def store_and_forward(seconds: float, rate: float, kill_every: float, directory: Path) -> Report:
    """Cut headquarters off for this many seconds, publish and kill meanwhile, and audit the copies afterwards."""
    broken: list[str] = []
    async with _sites(directory) as (proxy, sites, headquarters), trio.open_nursery() as nursery:
        for site in sites:
            nursery.start_soon(site.run)
        no_more = trio.Event()
        async with trio.open_nursery() as publishers:
            for site in sites:
                publishers.start_soon(site.publish, rate, no_more)
            await eventually(lambda: _copies(headquarters), 30)
            cut_at = trio.current_time()
            await _cut_and_kill(proxy, sites, kill_every, cut_at + seconds)
            no_more.set()
        reached = await _copies(headquarters)
        proxy.clear()
        proxy.accept()
        cut_for = trio.current_time() - cut_at
        with trio.move_on_after(ENDS_WITHIN) as limit:
            for site in sites:
                await eventually(site.is_forwarded, ENDS_WITHIN + 1)
        if limit.cancelled_caught:
            broken.append(f"not everything was forwarded within {ENDS_WITHIN:.0f} s")
        caught_up_after = trio.current_time() - cut_at - cut_for

        published = {site.name: site.published for site in sites}
        if reached >= sum(published.values()):
            broken.append(f"nothing was held back by the cut: {reached} copies of {published}")
        audits = {site.name: await site.audit() for site in sites}
        for site in sites:
            audit = audits[site.name]
            counts = {kind: count for kind, count in audit.get("counts", {}).items() if count}
            if audit["exit"] or counts != {"there": site.published}:
                broken.append(f"audit of {site.name}: {audit} for {site.published} published")
            site.stop()
        stored = await _copies(headquarters)
        if stored != sum(published.values()):
            broken.append(f"{stored} copies of {published}")
    kills = {what: count for site in sites for what, count in site.kills.items()}
    return Report(cut_for, caught_up_after, published, kills, audits, broken)


@asynccontextmanager
async def _sites(directory: Path) -> AsyncIterator[tuple[TcpProxy, list[Site], NatsServer]]:
    async with AsyncExitStack() as stack:
        headquarters = await stack.enter_async_context(nats_server(directory, name="headquarters"))
        beside = await stack.enter_async_context(nats_server(directory, name="beside"))
        proxy = await stack.enter_async_context(tcp_proxy("127.0.0.1", headquarters.port))
        sites = []
        for name, server in (("beside", beside), ("embedded", None)):
            place = directory / f"site-{name}"
            place.mkdir()
            sites.append(Site(name, place, proxy.url, server))
        yield proxy, sites, headquarters


async def _cut_and_kill(proxy: TcpProxy, sites: list[Site], every: float, until: float) -> None:
    """Cut headquarters off, in changing ways, and kill a router or a local server every so often, until then."""
    proxy.blackhole()
    kills = 0
    while kills < LEAST_KILLS or trio.current_time() + every < until:
        await trio.sleep(every)
        for site in sites:
            await site.kill(kills)
        kills += 1
        if kills % 4 == 1:  # an unplugged cable first, then a dead host
            proxy.refuse()
            proxy.reset()
        elif kills % 4 == 3:
            proxy.accept()
    await trio.sleep_until(max(until, trio.current_time()))


async def _copies(headquarters: NatsServer) -> int:
    try:
        async with connect(headquarters.url) as client:
            return int((await JetStream(client).stream_info(COPIES))["state"]["messages"])
    except TROUBLE:
        return 0


def main() -> int:
    """Run the command and return its exit code: 1 if a promise was not kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.resilience.store_and_forward", description=__doc__)
    parser.add_argument("--hours", type=float, default=2, help="how long headquarters is cut off")
    parser.add_argument("--rate", type=float, default=10, help="messages a second of each site")
    parser.add_argument("--kill-every", type=float, default=300, help="seconds between two kills")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="router-trio-forward-") as directory:

        async def run() -> Report:
            seconds = given.hours * 3600
            with trio.fail_after(seconds + 3 * ENDS_WITHIN):
                return await store_and_forward(seconds, given.rate, given.kill_every, Path(directory))

        report = trio.run(run)
    print(report)
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
