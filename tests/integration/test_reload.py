"""Reloads of a `router-trio run`, by SIGHUP and by --watch: what passes, what is logged, and what a mistake changes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio import Settings
from tests.integration.workers import Workers, address_of
from tests.support.command import COMMAND, RunningCommand, command, running
from tests.support.eventually import eventually
from tests.support.raw_nats import RawClient, connect
from tests.support.servers import NatsServer

CONFIG = """
[router]
shutdown_timeout = "5s"

[telemetry]
listen = ""

[connections.main]
servers = ["URL"]

[[routes]]
name = "stays"
from = { subject = "stays.*" }
to = [ { subject = "stayed.$1" } ]

[[routes]]
name = "changes"
from = { subject = "in.*" }
to = [ { subject = "OUT.$1" } ]
"""


def write(path: Path, server: NatsServer, out: str) -> None:
    """Write the configuration atomically, as a careful program does."""
    new = path.with_suffix(".new")
    new.write_text(CONFIG.replace("URL", server.url).replace("OUT", out))
    os.replace(new, path)


def rewrite(path: Path, texts: dict[str, str]) -> None:
    """Replace texts in a configuration."""
    text = path.read_text()
    for old, new in texts.items():
        text = text.replace(old, new)
    path.write_text(text)


@pytest.fixture
def config(server: NatsServer, tmp_path: Path) -> Path:
    path = tmp_path / "router.toml"
    write(path, server, "old")
    return path


async def publish_until(client: RawClient, over: Callable[[], object], act: Callable[[], object]) -> int:
    """Publish consecutive numbers on `stays.1` and `in.1`, act after 200, publish 200 more after `over`.

    Return how many were published.
    """
    sent, last = 0, None
    while last is None or sent < last:
        if sent == 200:
            act()
        if last is None and sent > 200 and over():
            last = sent + 200
        await client.publish_many([("stays.1", b"%d" % sent), ("in.1", b"%d" % sent)])
        sent += 1
        await trio.sleep(0.001)
    return sent


async def assert_nothing_lost(
    client: RawClient, run: RunningCommand, over: Callable[[], object], act: Callable[[], object]
) -> None:
    """Publish while `act` changes the route from `old.1` to `new.1`: each message arrives once, and in order."""
    subjects = ("stayed.*", "old.*", "new.*")
    subscriptions = {subject: await client.subscribe(subject) for subject in subjects}
    await client.ping()
    sent = await publish_until(client, over, act)
    came: dict[str, list[int]] = {subject: [] for subject in subjects}

    def all_came() -> bool:
        for subject, subscription in subscriptions.items():
            came[subject] += [int(message.payload) for message in subscription.waiting()]
        return len(came["stayed.*"]) >= sent and len(came["old.*"]) + len(came["new.*"]) >= sent

    await eventually(all_came, otherwise=lambda: ({subject: len(one) for subject, one in came.items()}, run.errors))
    assert came["stayed.*"] == list(range(sent))
    assert came["old.*"] + came["new.*"] == list(range(sent))
    assert len(came["old.*"]) >= 200
    assert len(came["new.*"]) >= 200


async def test_sighup_changes_a_route_and_nothing_is_lost_or_duplicated(
    server: NatsServer, config: Path, tmp_path: Path
) -> None:
    async with connect(server.url) as client, running("run", config, cwd=tmp_path) as run:
        await run.has_logged("ROUTER_STARTED")
        write(config, server, "new")
        await assert_nothing_lost(client, run, lambda: run.logged("ROUTER_RELOADED"), lambda: run.send(signal.SIGHUP))
        (line,) = run.logged("ROUTER_RELOADED")
        assert line["keys"] == ['route changes: to[0].subject: "old.$1" -> "new.$1"']
        assert not run.logged("ROUTER_HANGUP_IGNORED")
        assert (line["level"], line["changed"], line["added"], line["removed"]) == ("INFO", ["route changes"], [], [])
        run.send(signal.SIGTERM)
        assert await run.ended() == 0
        assert len(run.logged("NATS_CONNECTION_ESTABLISHED")) == 1


async def test_pages_show_that_a_reload_was_refused_and_which_configuration_is_in_force(
    server: NatsServer, config: Path, tmp_path: Path
) -> None:
    rewrite(config, {'listen = ""': 'listen = "127.0.0.1:0"'})
    began = time.time()
    async with running("run", config, cwd=tmp_path) as run:
        await run.has_logged("ROUTER_STARTED")
        router = Workers(run, await address_of(run))

        async def shown() -> tuple[dict[str, Any], float, float]:
            state = (await router.status())["config"]
            assert await router.metric("router_config_info", hash=state["hash"]) == 1
            loaded_at = await router.metric("router_config_last_reload_timestamp_seconds")
            assert datetime.fromisoformat(state["loaded_at"]).timestamp() == pytest.approx(loaded_at, abs=1e-5)
            return state, await router.metric("router_config_last_reload_successful"), loaded_at

        before, successful, loaded_at = await shown()
        assert before["files"] == [str(config)]
        assert before["hash"] == Settings.load(config, environ={}).content_hash
        checked = await trio.to_thread.run_sync(lambda: command("check", config, cwd=tmp_path))
        assert checked.stdout.splitlines()[-1].endswith(f", config hash {before['hash']}")
        assert (before["last_error"], successful) == (None, 1)
        assert began < loaded_at < time.time()

        rewrite(config, {server.url: "nats://bob:s3cret@", "old.$1": "old.."})
        run.send(signal.SIGHUP)
        refused = await run.has_logged("ROUTER_RELOAD_REFUSED")
        state, successful, at = await shown()
        assert state.pop("last_error").splitlines() == refused["problems"]
        assert len(refused["problems"]) == 2
        assert not any("s3cret" in problem for problem in refused["problems"])
        assert state.pop("reloads") == {"accepted": 0, "refused": 1}
        assert (state | {"last_error": None, "reloads": before["reloads"]}, successful, at) == (before, 0, loaded_at)
        assert await router.metric("router_config_reloads_total", outcome="refused") == 1

        rewrite(config, {"nats://bob:s3cret@": server.url, "old..": "new.$1"})
        run.send(signal.SIGHUP)
        await run.has_logged("ROUTER_RELOADED")
        state, successful, at = await shown()
        assert (state["last_error"], successful) == (None, 1)
        assert at > loaded_at
        assert state["hash"] == Settings.load(config, environ={}).content_hash != before["hash"]
        run.send(signal.SIGTERM)
        assert await run.ended() == 0


async def test_watch_reloads_when_the_file_changes_and_refuses_a_mistake(
    server: NatsServer, config: Path, tmp_path: Path
) -> None:
    async with connect(server.url) as client, running("run", "--watch", config, cwd=tmp_path) as run:
        await run.has_logged("ROUTER_STARTED")
        write(config, server, "new..")
        refused = await run.has_logged("ROUTER_RELOAD_REFUSED")
        assert refused["level"] == "ERROR"
        assert refused["count"] == 1
        assert "routes[1].to[0].subject" in refused["problems"][0]
        await assert_nothing_lost(
            client, run, lambda: run.logged("ROUTER_RELOADED"), lambda: write(config, server, "new")
        )
        assert len(run.logged("ROUTER_RELOAD_REFUSED")) == 1
        run.send(signal.SIGTERM)
        assert await run.ended() == 0


def put(path: Path, content: bytes) -> None:
    """Write a file."""
    path.write_bytes(content)


def refused(run: RunningCommand, problem: str) -> bool:
    """Return True if a reload was refused for a problem of the file."""
    return any(
        line.startswith("/") and "router.toml: " in line and problem in line
        for event in run.logged("ROUTER_RELOAD_REFUSED")
        for line in event["problems"]
    )


@pytest.mark.parametrize("workers", [1, 2])
async def test_no_text_of_a_configuration_ends_a_running_router(
    server: NatsServer, config: Path, tmp_path: Path, workers: int
) -> None:
    digits, nested = f"\n[x]\ny = {'9' * 4301}\n", f"\n[x]\ny = {'[' * 900}{']' * 900}\n"
    valid = (
        CONFIG.replace("URL", server.url).replace("OUT", "old").replace('.*" }', '.*", queue = "routers" }').encode()
    )
    put(config, valid)
    async with running("run", "--workers", str(workers), config, cwd=tmp_path) as run:
        await run.has_logged("ROUTER_STARTED")
        for more, problem in ((digits, "64 bits"), (nested, "levels deep")):
            put(config, valid + more.encode())
            run.send(signal.SIGHUP)
            await eventually(partial(refused, run, problem))
        put(config, valid)
        run.send(signal.SIGHUP)
        await run.has_logged("ROUTER_RELOADED")
        run.send(signal.SIGTERM)
        assert await run.ended() == 0


async def test_sighup_during_the_start_reloads_after_the_start(
    server: NatsServer, config: Path, tmp_path: Path
) -> None:
    async with running("run", config, cwd=tmp_path) as run:
        with trio.fail_after(20):
            # The interpreter has to have begun with our code: before that no signal can be recorded.
            while not _notes_hangups(run):
                await trio.sleep(0.001)
        run.send(signal.SIGHUP)
        await run.has_logged("ROUTER_STARTED")
        await run.has_logged("ROUTER_RELOADED")
        run.send(signal.SIGTERM)
        assert await run.ended() == 0


def _notes_hangups(run: RunningCommand) -> bool:
    """Return True if the process has a handler for SIGHUP."""
    status = Path(f"/proc/{run._process.pid}/status").read_text()
    caught = int(next(line for line in status.splitlines() if line.startswith("SigCgt")).split()[1], 16)
    return bool(caught >> (signal.SIGHUP - 1) & 1)


async def test_a_reload_keeps_the_embedded_server(server: NatsServer, tmp_path: Path) -> None:
    path = tmp_path / "router.toml"
    without = CONFIG.replace('servers = ["URL"]', "")
    path.write_text(without.replace("OUT", "old"))
    async with running("run", "--embedded-nats", path, cwd=tmp_path) as run:
        await run.has_logged("ROUTER_STARTED")
        path.write_text(without.replace("OUT", "new"))
        run.send(signal.SIGHUP)
        line = await run.has_logged("ROUTER_RELOADED")
        assert line["changed"] == ["route changes"]
        run.send(signal.SIGTERM)
        assert await run.ended() == 0


async def test_a_configuration_from_standard_input_is_not_read_again_and_a_remedy_is_named(config: Path) -> None:
    shell = ["sh", "-c", 'exec "$0" "$@" < router.toml', *COMMAND]
    async with running("run", "-", cwd=config.parent, python=shell) as run:
        await run.has_logged("ROUTER_STARTED")
        run.send(signal.SIGHUP)
        refused = await run.has_logged("ROUTER_RELOAD_REFUSED")
        [problem] = refused["problems"]
        assert problem.startswith("<stdin>: a configuration from standard input can't be reloaded; restart the router ")
        assert "the path of a file" in problem
        run.send(signal.SIGTERM)
        assert await run.ended() == 0


async def test_there_is_no_file_to_watch_if_the_configuration_comes_from_standard_input(config: Path) -> None:
    done = command("run", "--watch", "-", cwd=config.parent)
    assert done.returncode == 2
    assert "--watch has no file to watch" in done.stderr
    assert "leave out --watch" in done.stderr


async def test_watch_checks_the_files_of_a_folder(server: NatsServer, tmp_path: Path) -> None:
    folder = tmp_path / "routes.d"
    folder.mkdir()
    text, _, last = CONFIG.replace("URL", server.url).rpartition("[[routes]]")
    (folder / "10-first.toml").write_text(text)
    async with running("run", "--watch", folder, cwd=tmp_path) as run:
        await run.has_logged("ROUTER_STARTED")
        (folder / "20-second.toml").write_text("[[routes]]" + last)
        line = await run.has_logged("ROUTER_RELOADED")
        assert line["added"] == ["route changes"]
        run.send(signal.SIGTERM)
        assert await run.ended() == 0


async def test_a_write_that_pauses_between_two_tables_is_not_mistaken_for_a_complete_file(
    server: NatsServer, config: Path, tmp_path: Path
) -> None:
    async with running("run", "--watch", config, cwd=tmp_path) as run:
        await run.has_logged("ROUTER_STARTED")
        first, _, second = CONFIG.replace("URL", server.url).replace("OUT", "new").rpartition("[[routes]]")
        with config.open("w") as file:
            file.write(first)
            file.flush()
            await trio.sleep(2.5)  # two checks find the same content
            file.write("[[routes]]" + second)
        line = await run.has_logged("ROUTER_RELOADED")
        assert (line["changed"], line["removed"]) == (["route changes"], [])
        assert len(run.logged("ROUTER_RELOADED")) == 1
        run.send(signal.SIGTERM)
        assert await run.ended() == 0


def in_queues(config: Path) -> None:
    """Have the routes of a configuration share their messages, as those of several workers must."""
    config.write_text(config.read_text().replace('.*" }', '.*", queue = "q" }'))


@pytest.mark.parametrize("workers", [1, 2])
async def test_under_nohup_the_log_reports_that_sighup_reloads_nothing(
    workers: int, server: NatsServer, config: Path, tmp_path: Path
) -> None:
    in_queues(config)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        async with running("run", "--workers", str(workers), config, cwd=tmp_path) as run:
            line = await run.has_logged("ROUTER_HANGUP_IGNORED")
            assert line["level"] == "INFO"
            assert "--watch" in line["message"]
            await run.has_logged("ROUTER_STARTED")
            assert len(run.logged("ROUTER_HANGUP_IGNORED")) == 1
            run.send(signal.SIGTERM)
            assert await run.ended() == 0
    finally:
        signal.signal(signal.SIGHUP, before)
