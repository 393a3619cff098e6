"""`audit` and `find` where the route did not begin with the first message of its source, and what a repair asks."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import trio

from router_trio import Router, Settings
from router_trio.audit.repair import RepairError
from router_trio.audit.start import STARTS_WITHIN
from tests.integration.test_audit import Place, place
from tests.support.command import over_its_links
from tests.support.eventually import eventually
from tests.support.servers import NatsServer


def start_at(here: Place, deliver: str) -> None:
    """Set `deliver` of the route."""
    file = here.folder / "router.toml"
    text = file.read_text().replace('message_id = "own"', f'message_id = "own", deliver = {deliver}')
    file.write_text(text)


async def stored(here: Place, stream: str = "SINK") -> int:
    return int((await here.stream.stream_info(stream))["state"]["messages"])


@pytest.mark.parametrize("by", ["router", "hand", "new", "time"])
async def test_no_message_before_the_start_of_a_route_is_missing(by: str, tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        here.configure()
        await here.publish(10)
        if by == "hand":
            filtered = {"filter_subject": "source.*"}
            await here.stream.create_consumer(
                "SOURCE", "router", deliver_policy="by_start_sequence", opt_start_seq=11, **filtered
            )
        elif by == "new":
            await here.stream.create_consumer("SOURCE", "router", deliver_policy="new", filter_subject="source.*")
            start_at(here, '"new"')
            await trio.sleep(STARTS_WITHIN + 0.1)  # its copies are certain from then on
        await here.publish(5, 10)
        if by == "router":
            start_at(here, "11")
        elif by == "time":
            first = await here.stream.api("STREAM.MSG.GET.SOURCE", {"seq": 11})
            start_at(here, first["message"]["time"])
        await here.route()
        report = await here.audit()
        assert (report.first, report.messages, +report.counts) == (11, 5, Counter(there=5))
        code, everything = await here.command("--from", "1")
        assert (code, Counter(everything["counts"])) == (
            0,
            Counter(everything["counts"]) | Counter(unknown=10, there=5),
        )
        assert (everything["messages"], everything["counts"]["missing"]) == (15, 0)
        code, _ = await here.command("--from", "1", "--repair")
        assert (code, await stored(here)) == (0, 5)
        # A copy that is lost behind the start is missing.
        await trio.sleep(0.2)  # longer than the duplicate window
        await here.delete("SINK", 3)
        assert (await here.audit()).counts["missing"] == 1
        assert (await here.command("--repair"))[0] == 0
        found = await over_its_links("find", "router.toml", "source.3", "--sequence", "4", "--json", cwd=tmp_path)
        ((outcome,),) = (
            [one["outcome"] for one in message["routes"]] for message in json.loads(found.stdout)["messages"]
        )
        assert outcome == "not_delivered"


async def test_a_durable_that_replaces_another_one_leaves_its_copies_in_peace(
    tmp_path: Path, server: NatsServer
) -> None:
    async with place(tmp_path, server) as here:
        await here.copied(10)
        await here.stream.delete_consumer("SOURCE", "router")
        start_at(here, "11")
        await here.publish(5, 10)
        await here.route()
        report = await here.audit()
        assert (report.first, +report.counts) == (11, Counter(there=5))
        await trio.sleep(0.2)
        await here.delete("SINK", 2)
        code, everything = await here.command("--from", "1", "--repair")
        assert (code, everything["counts"]["there"], everything["counts"]["unknown"]) == (0, 14, 1)
        assert await stored(here) == 14


async def test_a_durable_that_continues_for_a_deleted_one_covers_what_that_had(
    tmp_path: Path, server: NatsServer
) -> None:
    async with place(tmp_path, server) as here:
        here.configure()
        await here.publish(10)

        async def is_done(count: int) -> bool:
            return await stored(here) == count

        async def is_back() -> bool:
            names = (await here.stream.api("CONSUMER.NAMES.SOURCE"))["consumers"] or []
            return "router" in names

        async with Router(Settings.load(tmp_path / "router.toml"), log=False).open():
            await eventually(lambda: is_done(10))
            await here.stream.delete_consumer("SOURCE", "router")
            await eventually(is_back)
            await here.publish(5, 10)
            await eventually(lambda: is_done(15))
        info = await here.stream.consumer_info("SOURCE", "router")
        assert info["config"]["opt_start_seq"] > 1
        await here.delete("SINK", 2, 12)
        report = await here.audit()
        assert (report.first, +report.counts) == (1, Counter(there=13, missing=2))


async def widened(here: Place) -> None:
    """Route one of seven subjects, then have the route read all of them."""
    here.configure('to = [ { subject = "sink.all", jetstream = true } ]')
    file = here.folder / "router.toml"
    text = file.read_text()
    file.write_text(text.replace('filter = "source.*"', 'filter = "source.3"'))
    await here.publish(21)
    await here.route()
    await here.stream.api(
        "CONSUMER.DURABLE.CREATE.SOURCE.router",
        {
            "stream_name": "SOURCE",
            "config": (await here.stream.consumer_info("SOURCE", "router"))["config"] | {"filter_subject": "source.*"},
        },
    )
    file.write_text(text)
    await here.publish(1, 21)
    await here.route()


async def test_a_repair_of_more_than_was_ever_routed_asks_first(tmp_path: Path, server: NatsServer) -> None:
    async with place(tmp_path, server) as here:
        await widened(here)
        before = await stored(here)
        assert before == 4
        result = await over_its_links("audit", "router.toml", "copy", "--repair", cwd=tmp_path)
        assert (result.returncode, result.stdout) == (2, "")
        assert "were never routed" in result.stderr
        assert "--yes" in result.stderr
        dry = await over_its_links("audit", "router.toml", "copy", "--repair", "--dry-run", cwd=tmp_path)
        assert "--repair asks first" in dry.stderr
        async with Router(Settings.load(tmp_path / "router.toml"), log=False).open() as live:
            with pytest.raises(RepairError, match="were never routed"):
                await live.audit("copy", repair=True)
        assert await stored(here) == before
        code, report = await here.command("--repair", "--yes")
        assert (code, report["counts"]["there"]) == (0, 22)
