"""The configurations of the page about two regions, with the printed permissions, and with each line left out."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from router_trio import Router, Settings
from router_trio.cli.permissions import lines
from router_trio.routing.stream.pulling import checks
from router_trio.subjects.patterns import covers, overlaps
from tests.docs.pages import DOCS, page
from tests.integration.readiness import refused
from tests.integration.test_permissions_command import ACKS_WITH_ACCOUNT, is_of_permission, subject_of, users
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.server_version import needs_server
from tests.support.servers import NatsServer, nats_server
from tests.support.watch import Watch, until_stored

pytestmark = needs_server(2, 14, lacks="acks with domain and account")

ONE_WAY, BY_HEADER, BY_SUBJECT, _ = (
    one.text for one in page(DOCS / "how-to" / "two-regions.md").blocks if one.language == "toml"
)
REGIONS = ("eu", "us")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "CHECK_EVERY", 0.3)


def configured(text: str, **urls: str) -> Settings:
    """Return a configuration of the page, with other servers, and times that are short enough for a test."""
    text = text.replace("[router]\n", '[telemetry]\nlisten = ""\n[router]\nshutdown_timeout = "200ms"\n')
    for name, url in urls.items():
        login = 'user = "router"\npassword = "router"\nreconnect_delay = "50ms"\nmax_reconnect_delay = "300ms"\n'
        section = f'[connections.{name}]\n{login}servers = ["{url}"]'
        text, count = re.subn(rf"\[connections\.{name}\]\nservers = .*", section, text)
        assert count == 1
    return Settings.parse(text.encode())


class Line(NamedTuple):
    """A line that is printed for a connection of a configuration. `subscribes`: it is one of the second block."""

    text: str
    region: str
    line: str
    subscribes: bool


def lines_of(text: str) -> list[Line]:
    found = []
    for region in REGIONS:
        publish, _, subscribe = "\n".join(lines(configured(text), region, "server")).partition("subscribe {")
        for block, subscribes in ((publish, False), (subscribe, True)):
            found += [Line(text, region, one, subscribes) for one in block.splitlines() if re.match(r' +"', one)]
    return found


EACH = [
    pytest.param(one, id=f"{way}: {one.region}: {'subscribe' if one.subscribes else 'publish'} {subject_of(one.line)}")
    for way, text in (("one way", ONE_WAY), ("by header", BY_HEADER), ("by subject", BY_SUBJECT))
    for one in lines_of(text)
]


class Regions:
    """Both regions: the server of each, and a client that may do everything there."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.servers: dict[str, NatsServer] = {}
        self.streams: dict[str, JetStream] = {}

    @property
    def settings(self) -> Settings:
        return configured(self.text, **{name: server.url for name, server in self.servers.items()})

    def refused(self) -> dict[str, set[str]]:
        return {name: refused(server, "router") for name, server in self.servers.items()}

    async def send(self) -> None:
        """Send a message to each source."""
        for route in self.settings.routes:
            (pattern,) = route.source.patterns
            await self.streams[route.source.connection].publish(pattern.replace(">", "1"), b"order")

    async def leave_unacked(self, region: str) -> None:
        """Have a message delivered to a process that ended without an ack."""
        (route,) = [one for one in self.settings.routes if one.source.connection == region]
        (pattern,), streams = route.source.patterns, self.streams[region]
        consumer = route.source.kind.consumer(route.source)
        assert consumer is not None
        await streams.create_consumer(*consumer, ack_policy="explicit", ack_wait=2 * 10**9, filter_subject=pattern)
        await streams.publish(pattern.replace(">", "left"), b"order")
        hand = await streams.client.subscribe("hand")
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{'.'.join(consumer)}"
        await streams.client.publish(subject, b'{"batch": 1}', None, "hand")
        await hand.next()


def _left_out(without: Line, block: list[str]) -> list[str]:
    """Return what is printed without a line, and without those that cover it or that it covers: they grant the same."""
    middle = block.index("  subscribe {")
    wanted, found = subject_of(without.line), list[str]()
    for place, line in enumerate(block):
        if (place > middle) is without.subscribes and re.match(r' +"', line):
            other = subject_of(line)
            if covers(wanted, other) or covers(other, wanted):
                line = '"nothing"'  # an empty list would allow everything
        found.append(line)
    return found


@asynccontextmanager
async def regions(tmp_path: Path, text: str, without: Line | None = None, extra: str = "") -> AsyncIterator[Regions]:
    """Yield both regions, where the router has the printed permissions, except for a line."""
    at = Regions(text)
    granted = {name: [*lines(configured(text), name, "server")] for name in REGIONS}
    if without is not None:
        granted[without.region] = _left_out(without, granted[without.region])
    (tmp_path / "eu").mkdir()
    (tmp_path / "us").mkdir()
    async with (
        nats_server(tmp_path / "eu", config=extra + users(granted["eu"])) as eu,
        nats_server(tmp_path / "us", config=extra + users(granted["us"])) as us,
        connect(eu.url, user="admin", password="admin") as there,
        connect(us.url, user="admin", password="admin") as here,
    ):
        at.servers, at.streams = {"eu": eu, "us": us}, {"eu": JetStream(there), "us": JetStream(here)}
        made = {stream.connection for stream in at.settings.streams}
        for name in {*REGIONS} - made:
            await at.streams[name].create_stream("ORDERS", ["orders.>"])
        yield at


@pytest.mark.parametrize("extra", [pytest.param("", id="as it is"), pytest.param(ACKS_WITH_ACCOUNT, id="newer acks")])
@pytest.mark.parametrize(
    "text",
    [
        pytest.param(ONE_WAY, id="one way"),
        pytest.param(BY_HEADER, id="by header"),
        pytest.param(BY_SUBJECT, id="by subject"),
    ],
)
async def test_with_the_printed_permissions_each_message_is_copied_and_nothing_is_refused(
    text: str, extra: str, tmp_path: Path
) -> None:
    watch = Watch()
    async with regions(tmp_path, text, extra=extra) as at:
        async with Router(at.settings, observers=[watch], log=False).open():
            await watch.until("ROUTER_READY")
            await at.send()
            routes = at.settings.routes
            for route in routes:
                # Its own messages and the copies.
                await until_stored(at.streams[route.to[0].connection], "ORDERS", len(routes), 10)
            # Lookups of single messages follow when a durable is gone.
            for route in routes:
                await at.streams[route.source.connection].delete_consumer("ORDERS", str(route.source.durable))
            await watch.until("NATS_SUBSCRIBE_ERROR", len(routes))
            await at.send()
            for route in routes:
                await until_stored(at.streams[route.to[0].connection], "ORDERS", 2 * len(routes), 10)
        assert at.refused() == {"eu": set(), "us": set()}
        assert not [one for one in watch.events if is_of_permission(one)]


@pytest.mark.nightly
@pytest.mark.parametrize("line", EACH)
async def test_without_any_of_the_printed_permissions_something_is_refused(line: Line, tmp_path: Path) -> None:
    subject, watch = subject_of(line.line), Watch()
    extra = ACKS_WITH_ACCOUNT if subject.startswith("$JS.ACK.*.") else ""

    def denied() -> bool:
        return any(overlaps(subject, one) for one in at.refused()[line.region])

    async with regions(tmp_path, line.text, line, extra) as at:
        if line.subscribes and subject.startswith("$JS.ACK."):
            await at.leave_unacked(line.region)
        async with Router(at.settings, observers=[watch], log=False).open():
            with trio.move_on_after(2.0):
                await watch.until("ROUTER_READY")
            if "ORDERS" not in subject or line.region == "eu" or not at.settings.streams:
                await at.send()
            if "MSG.GET" in subject:
                (route,) = [one for one in at.settings.routes if one.source.connection == line.region]
                await at.streams[line.region].delete_consumer("ORDERS", str(route.source.durable))
            await eventually(denied, 15, lambda: (at.refused(), watch.codes))
            if "(optional)" not in line.line:
                await eventually(lambda: any(map(is_of_permission, watch.events)), 15, lambda: watch.codes)
