"""The pictures of the status page: `python docs/screenshots.py` takes them again.

A real router between two real servers has traffic, a route whose handler fails, a paused durable, a refused reload and
an outage. Chromium looks at it: wide while all is well, then wide and narrow, light and dark. It takes a minute; see
`tests/support/browser.py` for the browser.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import trio
from PIL import Image

from router_trio import Live, Message, Router, Settings
from router_trio.errors import ConfigurationError
from tests.support.browser import Page, browser
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer, nats_server

PICTURES = Path(__file__).parent / "img"
TALLEST = 1500
"""Pixels, so that a picture is of use on a page."""


def settings(edge: NatsServer, core: NatsServer) -> Settings:
    """Return what the pictures show: routes from subjects and from streams; one more is added with its handler."""
    quick = {"reconnect_delay": "100ms", "max_reconnect_delay": "1s"}
    return Settings(
        router={"name": "orders-router"},
        telemetry={"listen": "127.0.0.1:0"},
        connections={"edge": {"servers": [edge.url]}, "core": {"servers": [core.url], **quick}},
        streams=[
            {"connection": "edge", "name": "ORDERS", "subjects": ["orders.>"]},
            {"connection": "edge", "name": "DEAD", "subjects": ["dead.>"]},
            {"connection": "core", "name": "EU", "subjects": ["eu.>"]},
            {"connection": "core", "name": "AUDIT", "subjects": ["audit.>"]},
            {"connection": "core", "name": "CRM", "subjects": ["crm.>"]},
        ],
        routes=[
            {
                "name": "eu-orders",
                "from": {"connection": "edge", "stream": "ORDERS", "durable": "router", "filter": "orders.*.*"},
                "to": [{"connection": "core", "subject": "eu.{{wildcard(1)}}.{{wildcard(2)}}", "jetstream": True}],
            },
            {
                "name": "audit",
                "from": {"connection": "edge", "subject": "orders.*.created", "queue": "routers"},
                "limit": {"rate": "500/s", "burst": 100},
                "to": [{"connection": "core", "subject": "audit.{{wildcard(1)}}", "jetstream": True}],
            },
            {
                "name": "telemetry",
                "from": {"connection": "edge", "subject": "sensors.>"},
                "to": [{"connection": "edge", "subject": "readings.>"}],
            },
            {
                "name": "billing",
                "from": {"connection": "edge", "stream": "ORDERS", "durable": "billing", "filter": "orders.*.closed"},
                "to": [{"connection": "edge", "subject": "billing.{{wildcard(1)}}", "jetstream": False}],
            },
        ],
    )


def crm(message: Message) -> Message:
    """Route orders of known customers; those of others are given up."""
    if not json.loads(message.payload)["customer"]:
        raise ValueError("no customer")
    return message


# The pictures show where the handler raised, as in a deployed program and not in this file.
crm.__code__ = crm.__code__.replace(co_filename="/app/orders.py", co_firstlineno=10)


async def traffic(live: Live) -> None:
    """Publish until cancelled: orders, more or fewer, and readings."""
    for number in range(1_000_000):
        for _ in range(1 + number // 100 % 5):
            await live.publish(f"orders.{number % 50}.created", b"{}", connection="edge")
        if number % 50 == 0:
            body = json.dumps({"customer": number % 100}).encode()
            await live.publish(f"orders.{number % 50}.closed", body, connection="edge")
        for sensor in range(8):
            await live.publish(f"sensors.{sensor}", b"21.5", connection="edge")
        await trio.sleep(0.03)


async def refuse_reload(live: Live, wrong: Settings) -> None:
    """Reload with a configuration that can't be used: the handler of a route is missing."""
    changed = wrong.routes[0].model_copy(update={"handler": "orders:enrich"})
    with suppress(ConfigurationError):
        await live.reload(wrong.with_changes(routes=[changed, *wrong.routes[1:]]))


async def take(page: Page, name: str, width: int, *, dark: bool = False) -> None:
    """Take a picture of the page as it is now."""
    await page.look(width, dark=dark)
    await page.evaluate("new Promise(requestAnimationFrame)")
    taken = Image.open(BytesIO(await page.picture(TALLEST)))
    # A page has few colours: a palette makes the file a quarter as large.
    taken.convert("RGB").quantize(128).save(PICTURES / f"{name}.png", optimize=True)


async def main() -> None:
    """Take all pictures."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        async with (
            nats_server(path, name="edge") as edge,
            nats_server(path, name="core") as core,
            browser(path / "profile") as running,
        ):
            router = Router(settings(edge, core))
            router.route(
                connection="edge",
                stream="ORDERS",
                durable="crm",
                filter="orders.*.closed",
                to={"connection": "core", "subject": "crm.{{wildcard(1)}}"},
                retry={"attempts": 1},
                dead_letter={"connection": "edge", "subject": "dead.{{wildcard(1)}}"},
            )(crm)
            async with router.open() as live, trio.open_nursery() as nursery:
                assert live.http_address is not None
                host, port = live.http_address
                nursery.start_soon(traffic, live)
                page = await running.page()
                await page.look(1280)
                await page.open(f"http://{host}:{port}/")
                await trio.sleep(30)
                await take(page, "status-page", 1280)
                await refuse_reload(live, settings(edge, core))
                async with connect(edge.url) as client:
                    await JetStream(client).pause_consumer("ORDERS", "billing", 3600)
                await page.until("document.getElementById('routes').innerText.includes('paused on the server')")
                await core.kill()
                await page.until("document.getElementById('routes').innerText.includes('is not connected')")
                await trio.sleep(6)
                await take(page, "status-page-dark", 1280, dark=True)
                await take(page, "status-page-narrow", 390)
                await take(page, "status-page-narrow-dark", 390, dark=True)
                await core.restart()
                nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
