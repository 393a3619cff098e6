"""The tutorial, step by step, as a reader does it: its files, its commands as written, its outage."""

from __future__ import annotations

import json
import re
import signal
import sys
from pathlib import Path

import pytest

from router_trio.embedded import HOST, reserve_port
from tests.docs.pages import DOCS, page
from tests.docs.typed import Reader

TUTORIAL = page(DOCS / "tutorial.md")
URL = re.compile(r"nats://router:\S+@127\.0\.0\.1:\d+")
LISTEN = "127.0.0.1:9001"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="a stopped process is another thing elsewhere"),
]


async def test_the_tutorial_from_the_first_route_to_the_first_outage(tmp_path: Path) -> None:
    (toml,) = [block.text for block in TUTORIAL.blocks if block.language == "toml"]
    (program,) = [block.text for block in TUTORIAL.blocks if block.language == "python"]
    (shown_url,) = set(URL.findall(TUTORIAL.text))
    (shown_pid,) = set(re.findall(r"nats-server: pid (\d+)", TUTORIAL.text))
    (tmp_path / "router.toml").write_text(toml)
    (tmp_path / "orders.py").write_text(program)
    reader = Reader(TUTORIAL, tmp_path)
    reader.skip("git clone ")  # tests/docs/test_first_page.py installs

    explained = reader.types()
    assert explained.returncode == 0
    assert "eu.7" in explained.stdout

    # Another port than the default: tests run beside each other.
    with reserve_port() as port:
        pass
    reader.replacements[LISTEN] = f"{HOST}:{port}"
    reader.env["ROUTER_TRIO_TELEMETRY__LISTEN"] = f"{HOST}:{port}"
    async with reader.starts() as router:
        reader.replacements[shown_url] = (await router.has_printed(URL.pattern))[0]
        reader.replacements[shown_pid] = (await router.has_printed(r"nats-server: pid (\d+)\n"))[1]
        await router.has_logged("NATS_STREAM_CREATED")
        await router.has_logged("ROUTE_READY")
        async with reader.starts() as orders:
            # The copy may arrive before the PubAck of the order is printed.
            await orders.has_printed("order 2: acked\n")
            await orders.has_printed("    arrived: order 2\n")
            assert reader.types().returncode == 0  # the server is frozen
            await router.has_logged("NATS_CONNECTION_LOST", reason="liveness")
            await router.has_logged("NATS_RECONNECT_ATTEMPT")
            await orders.has_printed("order [0-9]+: queued")
            readiness, status = reader.types().stdout.splitlines()
            assert json.loads(readiness)["reasons"]
            assert json.loads(status)["connections"]["main"]["state"] != "connected"
            assert reader.types().returncode == 0  # the server is resumed
            await router.has_logged("NATS_CONNECTION_RESTORED")
            queued = max(map(int, re.findall(r"order (\d+): queued\n", orders.output)))
            await orders.has_printed(f"order {queued + 2}: acked\n")
            await orders.has_printed(f"arrived: order {queued + 1}\n")
            orders.send(signal.SIGINT)
            assert await orders.ended() == 0
            sent = re.findall(r"^order (\d+): (?:acked|queued)\n", orders.output, re.MULTILINE)
            arrived = re.findall(r"arrived: order (\d+)\n", orders.output)
        router.send(signal.SIGINT)
        assert await router.ended() == 0
        (end,) = router.logged("ROUTER_STOPPED")
    assert reader.left == []
    assert sent == [str(number) for number in range(1, len(sent) + 1)]
    assert arrived == sent[: len(arrived)]
    ledger = end["ledger"]["main"]
    assert (ledger["pending"], ledger["in_flight"]) == (0, 0)
    assert ledger["accepted"] == ledger["settled"]["acked"] >= len(sent)
