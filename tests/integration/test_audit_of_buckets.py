"""`audit` of routes between KV buckets, one way and both ways."""

from __future__ import annotations

from pathlib import Path

import trio

from router_trio import Settings
from router_trio.audit.audit import EVERYTHING, Audit, connections_of
from router_trio.audit.find import Finder, connections_for
from router_trio.audit.report import Report
from router_trio.nats.command_link import open_links
from tests.integration.test_buckets import DELETE, PURGE, both_ways, copying, of_key, two_buckets, until_there, values
from tests.support.eventually import eventually
from tests.support.servers import NatsServer
from tests.support.watch import Watch, watched


async def audited(settings: Settings, number: int = 0) -> Report:
    route = settings.routes[number]
    async with open_links(settings, "audit", connections_of(route)) as links:
        return await Audit(settings, route, links).run(EVERYTHING)


def counts(report: Report) -> dict[str, int]:
    return {name: count for name, count in report.counts.items() if count}


async def test_values_that_are_missing_and_changed_are_found(server: NatsServer, tmp_path: Path) -> None:
    async with two_buckets(server, deny_delete=False) as stream:
        settings = copying(server)
        async with watched(settings, Watch()) as watch:
            for key, payload, headers in (
                ("a", b"1", None),
                ("b", b"1", None),
                ("b", b"2", None),
                ("c", b"1", None),
                ("c", b"", PURGE),
                ("d", b"1", None),
                ("d", b"", DELETE),
                ("e", b"1", None),
            ):
                await stream.publish(f"$KV.here.{key}", payload, headers)
            await until_there(stream, {"a": b"1", "b": b"2", "c": None, "d": None, "e": b"1"})
            await eventually(lambda: watch.router.routes[0].in_hand == 0)
        await trio.sleep(0.1)
        assert counts(await audited(settings)) == {"there": 7}
        (lost,) = await of_key(stream, "e")
        await stream.api("STREAM.MSG.DELETE.KV_there", {"seq": lost.sequence})
        (*_, deleted) = await of_key(stream, "d")
        await stream.api("STREAM.MSG.DELETE.KV_there", {"seq": deleted.sequence})
        report = await audited(settings)
        assert counts(report) == {"there": 5, "missing": 2}


async def test_copies_of_the_other_direction_are_not_missed(server: NatsServer) -> None:
    async with two_buckets(server) as stream:
        settings = both_ways(server)
        async with watched(settings, Watch()) as watch:
            await stream.publish("$KV.here.a", b"1")
            await stream.publish("$KV.there.b", b"2")
            expected: dict[str, bytes | None] = {"a": b"1", "b": b"2"}
            await until_there(stream, expected)

            async def is_here() -> bool:
                return await values(stream, "here") == expected

            await eventually(is_here)
            await eventually(lambda: [route.filtered["echo"] for route in watch.router.routes] == [1, 1])
            await eventually(lambda: sum(route.in_hand for route in watch.router.routes) == 0)
        await trio.sleep(0.1)
        for number in (0, 1):
            assert counts(await audited(settings, number)) == {"there": 1, "filtered": 1}


async def test_a_value_that_lost_a_conflict_is_overruled_and_not_different(server: NatsServer) -> None:
    async with two_buckets(server) as stream:
        settings = both_ways(server)
        await stream.publish("$KV.here.both", b"earlier")
        await stream.publish("$KV.there.both", b"later")
        async with watched(settings, Watch()) as watch:

            async def is_here() -> bool:
                return await values(stream, "here") == {"both": b"later"}

            await eventually(is_here)
            await eventually(lambda: sum(route.filtered["echo"] for route in watch.router.routes) == 2)
            await eventually(lambda: sum(route.in_hand for route in watch.router.routes) == 0)
        await trio.sleep(0.1)
        lost = await audited(settings)
        assert counts(lost) == {"overruled": 1, "filtered": 1}
        assert lost.clean
        assert counts(await audited(settings, 1)) == {"there": 1, "filtered": 1}
        async with open_links(settings, "find", connections_for(settings, "$KV.here.both")) as links:
            (here,) = (await Finder(settings, links).find("$KV.here.both", 1)).messages
            (there,) = (await Finder(settings, links).find("$KV.there.both", 1)).messages
        assert [route.outcome for route in here.routes] == ["overruled"]
        assert [route.outcome for route in there.routes] == ["routed"]


async def test_find_names_the_subject_of_a_key(server: NatsServer) -> None:
    async with two_buckets(server) as stream:
        await stream.publish("$KV.here.shop.7", b"1")
        settings = copying(server)
        async with open_links(settings, "find", connections_for(settings, "shop.7")) as links:
            found = await Finder(settings, links).find("shop.7")
        (note,) = found.notes
        assert note.endswith("no route from this stream reads shop.7: a key has the subject $KV.here.shop.7")
