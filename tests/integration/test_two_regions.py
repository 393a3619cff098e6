"""The drill of the page about two regions, with its configuration and its commands: each order is stored once."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from router_trio import Router, Settings
from router_trio.embedded import HOST
from tests.docs.pages import DOCS, page
from tests.support.command import in_process, over_its_links
from tests.support.eventually import eventually
from tests.support.proxy import TcpProxy, tcp_proxy
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import RawClient, connect
from tests.support.servers import NatsServer, nats_server
from tests.support.watch import Watch

PAGE = page(DOCS / "how-to" / "two-regions.md")
_, BY_HEADER, BY_SUBJECT, POSITIONS = (one.text for one in PAGE.blocks if one.language == "toml")
TAKE_OVER, AUDITS, FAIL_BACK = (
    re.findall(r"^\$ router-trio (.+)$", one.text, re.MULTILINE) for one in PAGE.blocks if one.language == "text"
)
BOTH_WAYS = pytest.mark.parametrize(
    ("text", "written"),
    [
        pytest.param(BY_HEADER, {"eu": "orders.", "us": "orders."}, id="by header"),
        pytest.param(BY_SUBJECT, {"eu": "orders.eu.", "us": "orders.us."}, id="by subject"),
    ],
)


class Regions:
    """Both regions, with a stream `ORDERS` each, and the number of orders written so far.

    The router is in `us`, and `link` is its way to `eu`.
    """

    def __init__(
        self, folder: Path, servers: dict[str, NatsServer], link: TcpProxy, text: str, written: dict[str, str]
    ) -> None:
        self.folder = folder
        self.servers = servers
        self.link = link
        self.written = written
        self.orders = 0
        text = text.replace("[router]\n", '[telemetry]\nlisten = ""\n[router]\n')
        for name, url in {"eu": link.url, "us": servers["us"].url}.items():
            section = f'[connections.{name}]\nreconnect_delay = "50ms"\nmax_reconnect_delay = "200ms"\n'
            section += f'liveness_interval = "1s"\nservers = ["{url}"]'
            text, count = re.subn(rf"\[connections\.{name}\]\nservers = .*", section, text)
            assert count == 1
        (folder / "router.toml").write_text(text)

    @property
    def settings(self) -> Settings:
        return Settings.load(self.folder / "router.toml")

    @asynccontextmanager
    async def at(self, region: str) -> AsyncIterator[JetStream]:
        async with connect(self.servers[region].url) as client:
            yield JetStream(client)

    async def write(self, region: str, count: int) -> None:
        async with self.at(region) as streams:
            for _ in range(count):
                self.orders += 1
                await streams.publish(f"{self.written[region]}{self.orders}", b"%d" % self.orders)

    async def stored(self, region: str) -> Counter[int]:
        """Return how often a region has each order."""
        async with self.at(region) as streams:
            return Counter(int(one.payload) for one in await streams.stream_messages("ORDERS"))

    async def is_current(self, region: str, durable: str) -> bool:
        async with self.at(region) as streams:
            info = await streams.consumer_info("ORDERS", durable)
            return bool(info["num_pending"] == 0 == info["num_ack_pending"])

    async def until_current(self, *durables: tuple[str, str]) -> None:
        for one in durables:

            async def current(region: str = one[0], durable: str = one[1]) -> bool:
                return await self.is_current(region, durable)

            await eventually(current, 30)

    async def handle(self, region: str, count: int | None = None) -> list[int]:
        """Ack the next orders of `billing`, all of them or a number, and return them."""
        async with self.at(region) as streams:
            return await handled(streams.client, count)

    async def move_billing(self, command: str, region: str) -> None:
        """Run the command that creates `billing` in a region, and set its filter if the page asks for it."""
        await self.run(command)
        async with self.at(region) as streams:
            config = (await streams.consumer_info("ORDERS", "billing"))["config"]
            if self.written["eu"] != self.written["us"]:
                (wanted,) = re.findall(r"nats consumer edit ORDERS billing --filter '(.+?)'", PAGE.text)
                config.pop("filter_subjects", None)
                await streams.create_consumer("ORDERS", "billing", **config | {"filter_subject": wanted})

    async def run(self, command: str) -> str:
        """Run a command of the page, which must exit with 0, and return its output."""
        done = await over_its_links(*command.split(), cwd=self.folder)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout


async def handled(client: RawClient, count: int | None) -> list[int]:
    inbox = client.new_inbox()
    replies = await client.subscribe(inbox)
    body = json.dumps({"batch": count or 1000, "no_wait": True}).encode()
    await client.publish("$JS.API.CONSUMER.MSG.NEXT.ORDERS.billing", body, None, inbox)
    orders = list[int]()
    while len(orders) != count:
        message = await replies.next()
        if message.status:
            break
        assert message.reply is not None
        await client.request(message.reply, b"+ACK")
        orders.append(int(message.payload))
    return orders


@asynccontextmanager
async def regions(folder: Path, text: str, written: dict[str, str]) -> AsyncIterator[Regions]:
    for name in ("eu", "us"):
        (folder / name).mkdir()
    async with (
        nats_server(folder / "eu") as eu,
        nats_server(folder / "us") as us,
        tcp_proxy(HOST, eu.port) as link,
    ):
        at = Regions(folder, {"eu": eu, "us": us}, link, text, written)
        for name in at.servers:
            async with at.at(name) as streams:
                await streams.create_stream("ORDERS", ["orders.>"])
        yield at


@BOTH_WAYS
async def test_the_drill_stores_each_order_once_in_both_regions(
    text: str, written: dict[str, str], tmp_path: Path
) -> None:
    watch = Watch()
    async with regions(tmp_path, f"{text}\n{POSITIONS}", written) as at:
        async with at.at("eu") as streams:
            await streams.create_consumer("ORDERS", "billing")
        async with Router(at.settings, observers=[watch], log=False).open():
            await watch.until("ROUTER_READY")
            await at.write("eu", 12)
            await at.until_current(("eu", "to-us"))
            by_billing = Counter(await at.handle("eu", 8))
            # The checkpoint knows it.
            async with at.at("us") as streams:

                async def saved() -> bool:
                    kept = await streams.stream_messages("KV_router-positions")
                    return any(json.loads(one.payload)["floor"] == 8 for one in kept)

                await eventually(saved)

            # The network is cut: the last orders of eu are not copied. Then eu is lost.
            at.link.refuse()
            at.link.cut()
            await at.write("eu", 3)
            await at.servers["eu"].kill()
            (command,) = TAKE_OVER
            await at.move_billing(command, "us")
            await at.write("us", 5)
            by_billing.update(await at.handle("us"))
            assert by_billing == Counter({*range(1, 13), *range(16, 21)})

            # It is available again.
            await at.servers["eu"].restart()
            at.link.accept()
            await at.until_current(("eu", "to-us"), ("us", "to-eu"))
            by_billing.update(await at.handle("us"))
            each = Counter(range(1, 21))
            assert by_billing == each
            assert await at.stored("eu") == await at.stored("us") == each
            for command in AUDITS:
                await at.run(command)
            async with at.at("eu") as streams:
                await streams.delete_consumer("ORDERS", "billing")
            (command,) = FAIL_BACK
            await at.move_billing(command, "eu")
            await at.write("eu", 4)
            assert await at.handle("eu") == [21, 22, 23, 24]
            await at.until_current(("eu", "to-us"), ("us", "to-eu"))
            each = Counter(range(1, 25))
            assert await at.stored("eu") == await at.stored("us") == each
            for command in AUDITS:
                await at.run(command)


def test_check_refuses_both_directions_without_the_header(tmp_path: Path) -> None:
    without, count = re.subn(r"^(when|hop_limit|headers\.set) = .*\n", "", BY_HEADER, flags=re.MULTILINE)
    assert count == 6
    for text, refused in ((BY_HEADER, False), (without, True)):
        (tmp_path / "router.toml").write_text(text)
        done = in_process("check", "router.toml", cwd=tmp_path)
        assert (done.returncode != 0) is refused, done.stdout + done.stderr
        assert ("return to it" in done.stdout + done.stderr) is refused


async def test_check_online_finds_the_circle_of_two_files(tmp_path: Path) -> None:
    without = re.sub(r"^(when|hop_limit|headers\.set) = .*\n", "", BY_HEADER, flags=re.MULTILINE)
    head, there, back = without.split("[[routes]]\n")
    async with regions(tmp_path, f"{head}[[routes]]\n{there}", {}) as at:
        watch = Watch()
        async with Router(at.settings, observers=[watch], log=False).open():
            await watch.until("ROUTER_READY")
        text = (tmp_path / "router.toml").read_text()
        (tmp_path / "router.toml").write_text(text.replace(there, back))
        done = await over_its_links("check", "router.toml", "--online", cwd=tmp_path)
        assert "messages of route 'from-us' may return to it" in done.stdout + done.stderr
