"""The state of a router's configuration: which is in force, since when, and whether the last reload was accepted."""

from __future__ import annotations

import time
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio.errors import ConfigurationError
from router_trio.message import Message
from router_trio.settings import Settings
from router_trio.telemetry.metrics.metric import Metric, Sources
from router_trio.telemetry.metrics.table import TABLE
from tests.support.world import World, core, handled, world

ROUTE = core("in.*", "out.$1")
SECRET = "nats://bob:s3cret@127.0.0.1:4222"


def config(w: World) -> dict[str, Any]:
    shown: dict[str, Any] = w.live.status()["config"]
    return shown


def gauge(w: World, name: str) -> dict[tuple[str, ...], float]:
    [row] = [row for row in TABLE if row.name == f"router_config_{name}"]
    assert isinstance(row, Metric)
    return dict(row.read(Sources(w.live)))


async def refuse(w: World, handler: str = "no_such_module:function") -> None:
    with pytest.raises(ConfigurationError):
        await w.live.reload(w.configuration(ROUTE | {"handler": handler}))


async def test_a_router_from_code_has_no_files_and_was_loaded_at_its_start(autojump_clock: MockClock) -> None:
    before = time.time()
    async with world([ROUTE]) as w:
        shown = config(w)
        assert (shown["files"], shown["last_error"]) == ([], None)
        assert shown["hash"] == w.configuration(ROUTE).content_hash
        [at] = gauge(w, "last_reload_timestamp_seconds").values()
        assert before <= at <= time.time()
        assert shown["loaded_at"].startswith(time.strftime("%Y-%m-%dT", time.gmtime(at)))
        assert gauge(w, "last_reload_successful") == {(): 1}
        assert gauge(w, "reloads_total") == {("accepted",): 0, ("refused",): 0}
        assert gauge(w, "info") == {(shown["hash"],): 1}


async def test_a_refused_reload_is_shown_until_a_reload_is_accepted(autojump_clock: MockClock) -> None:
    async with world([ROUTE]) as w:
        before, began = config(w), gauge(w, "last_reload_timestamp_seconds")
        await refuse(w)
        shown = config(w)
        assert "routes[0].handler" in shown.pop("last_error")
        assert shown.pop("reloads") == {"accepted": 0, "refused": 1}
        assert shown == {key: value for key, value in before.items() if key not in ("last_error", "reloads")}
        assert gauge(w, "last_reload_successful") == {(): 0}
        assert gauge(w, "last_reload_timestamp_seconds") == began
        assert gauge(w, "info") == {(before["hash"],): 1}

        await refuse(w)
        changed = w.configuration(core("in.*", "other.$1"))
        await w.live.reload(changed)
        assert gauge(w, "reloads_total") == {("accepted",): 1, ("refused",): 2}
        assert (config(w)["hash"], config(w)["last_error"]) == (changed.content_hash, None)
        assert gauge(w, "last_reload_successful") == {(): 1}
        assert gauge(w, "last_reload_timestamp_seconds")[()] > began[()]
        assert gauge(w, "info") == {(changed.content_hash,): 1}


async def test_a_reload_without_a_difference_is_a_success(autojump_clock: MockClock) -> None:
    async with world([ROUTE]) as w:
        await refuse(w)
        await w.live.reload(w.configuration(ROUTE))
        assert (config(w)["hash"], config(w)["last_error"]) == (w.configuration(ROUTE).content_hash, None)


async def test_problems_are_shown_one_per_line_without_credentials(autojump_clock: MockClock) -> None:
    def load() -> Settings:
        routes = [core("in.*", f"out {SECRET}"), core("in..x", "y", name="b")]
        return w.configuration(*routes)

    async with world([ROUTE]) as w:
        with pytest.raises(ConfigurationError):
            await w.live.reload(load)
        first, second = config(w)["last_error"].splitlines()
        assert "routes[0].to[0].subject" in first
        assert "routes[1].from.subject" in second
        assert "s3cret" not in first


async def test_keys_that_need_a_restart_are_neither_in_force_nor_in_the_hash(autojump_clock: MockClock) -> None:
    async with world([ROUTE]) as w:
        before = config(w)["hash"]
        debug = w.configuration(ROUTE, telemetry={"log_level": "debug"})
        assert debug.content_hash != before
        await w.live.reload(debug)
        assert w.watch.of("ROUTER_RESTART_NEEDED")
        assert (config(w)["hash"], config(w)["last_error"]) == (before, None)


async def test_the_latest_refusal_is_shown_though_an_earlier_reload_takes_effect_later(
    autojump_clock: MockClock,
) -> None:
    async def slow(message: Message) -> Message:
        await trio.sleep(5)
        return message

    async with world(handlers=[handled(slow, subject="a", to="out")]) as w, trio.open_nursery() as nursery:
        w.broker.publish("a", b"1")
        await trio.sleep(1)
        # The first reload ends a route whose handler is busy, and the second waits for that.
        first, second = (w.configuration(core(subject, "out", name="route")) for subject in ("b", "c"))
        for one in (first, second):
            nursery.start_soon(w.live.reload, one)
            await trio.sleep(0.1)
        await refuse(w)
        assert (config(w)["hash"], gauge(w, "last_reload_successful")) == (first.content_hash, {(): 0})
        await w.watch.until("ROUTER_RELOADED", 2)
        assert (config(w)["hash"], gauge(w, "last_reload_successful")) == (second.content_hash, {(): 0})
        assert "no_such_module" in config(w)["last_error"]


async def test_a_reload_of_a_router_with_routes_from_code_reports_its_files(autojump_clock: MockClock) -> None:
    def handle(message: Message) -> Message:
        return message

    async with world(handlers=[handled(handle, subject="in", to="out")]) as w:
        text = b'[telemetry]\nlisten = ""\n[connections.main]\nservers = ["nats://fake:4222"]\n'
        await w.live.reload(lambda: Settings.parse(text, "router.toml", environ={}))
        assert config(w)["files"] == ["router.toml"]
        assert [one.name for one in w.live.routes] == ["route"]
