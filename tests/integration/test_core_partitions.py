"""The mapping of a server on the page about scaling out: each key has one process, in order, and no second one."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

from router_trio import Settings
from router_trio.subjects.mapping import Mapping
from tests.docs.pages import DOCS, page
from tests.support.eventually import eventually
from tests.support.raw_nats import connect
from tests.support.servers import nats_server
from tests.support.watch import Watch, watched

BLOCKS = page(DOCS / "how-to" / "scale-out.md").blocks
[MAPPINGS] = [one for one in BLOCKS if one.text.startswith("mappings = {")]
ROUTER = BLOCKS[BLOCKS.index(MAPPINGS) + 1]
"""The configuration of each process, below the mapping."""

COUNT = 3
KEYS, EACH = 40, 10
NUMBER_OF = Mapping.compile("orders.*.*", "{{partition(3,1)}}")


def process(number: int, url: str) -> Settings:
    """Return the settings of one of the processes, by the variable on the page."""
    assert (
        "ROUTER_TRIO_ROUTES__0__FROM__SUBJECT='part.1.orders.*.*'" in DOCS.joinpath("how-to/scale-out.md").read_text()
    )
    environ = {
        "ROUTER_TRIO_ROUTES__0__FROM__SUBJECT": f"part.{number}.orders.*.*",
        "ROUTER_TRIO_CONNECTIONS__MAIN__SERVERS": f'["{url}"]',
        "ROUTER_TRIO_TELEMETRY__LISTEN": "",
    }
    return Settings.parse(ROUTER.text.encode(), environ=environ)


async def test_each_key_has_one_process_which_keeps_its_order(tmp_path: Path) -> None:
    async with (
        nats_server(tmp_path, config=MAPPINGS.text, jetstream=False) as server,
        connect(server.url) as client,
        AsyncExitStack() as stack,
    ):
        watches: list[Watch] = []
        for number in range(COUNT):
            watches.append(await stack.enter_async_context(watched(process(number, server.url), alone=False)))
        copies, originals = await client.subscribe("eu.*.*"), await client.subscribe("orders.*.*")
        sent = [(f"orders.{key}.{number}", b"") for number in range(EACH) for key in range(KEYS)]
        await client.publish_many(sent)
        received = [(await copies.next()).subject for _ in sent]
        for key in range(KEYS):
            assert [one for one in received if one.startswith(f"eu.{key}.")] == [f"eu.{key}.{n}" for n in range(EACH)]
        shares = [0] * COUNT
        for key in range(KEYS):
            shares[int(NUMBER_OF.apply(f"orders.{key}.0"))] += EACH
        assert [watch.router.routes[0].received for watch in watches] == shares
        assert all(shares)
        await client.ping()
        assert not originals.waiting(), "the mapping replaces the subject"


async def test_a_process_that_is_away_has_no_successor(tmp_path: Path) -> None:
    async with (
        nats_server(tmp_path, config=MAPPINGS.text, jetstream=False) as server,
        connect(server.url) as client,
        watched(process(0, server.url)) as watch,
    ):
        copies = await client.subscribe("eu.*.*")
        await client.publish_many([(f"orders.{key}.0", b"") for key in range(KEYS)])
        own = [key for key in range(KEYS) if NUMBER_OF.apply(f"orders.{key}.0") == "0"]
        await eventually(lambda: watch.router.routes[0].settled["routed"] == len(own))
        await client.ping()
        assert [one.subject for one in copies.waiting()] == [f"eu.{key}.0" for key in own]
        assert 0 < len(own) < KEYS
