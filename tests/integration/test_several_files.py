"""The commands with several files and folders: `run base.toml routes.d/`."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.support.command import command, in_process, running
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer

BASE = '[telemetry]\nlisten = ""\n[connections.main]\nservers = ["nats://127.0.0.1:4222"]\n'

ONE = """
[[routes]]
name = "one"
from = { subject = "one.*" }
to = [ { subject = "out.{{wildcard(1)}}" } ]
[[tests]]
name = "one goes out"
message = { subject = "one.7" }
expect = [ { subject = "out.7" } ]
"""

TWO = """
[[routes]]
name = "two"
from = { subject = "two.x.*" }
to = [ { subject = "{{wildcard(1)}}.out" } ]
limit = { rate = "5/s" }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Create a folder with `base.toml` and `routes.d`."""
    (tmp_path / "base.toml").write_text(BASE)
    (tmp_path / "routes.d").mkdir()
    (tmp_path / "routes.d" / "1.toml").write_text(ONE)
    (tmp_path / "routes.d" / "2.toml").write_text(TWO)
    return tmp_path


def test_check_lists_the_contents_of_each_file(folder: Path) -> None:
    done = in_process("check", "base.toml", "routes.d", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.partition(", config hash")[0].split(": ")[:2] for line in done.stdout.splitlines()] == [
        ["routes.d/2.toml", "routes[0].to[0].subject"],
        ["routes.d/2.toml", "routes[0].limit"],
        ["base.toml routes.d", "ok (1 connection, 2 routes)"],
    ]
    (folder / "routes.d" / "2.toml").write_text(ONE + "handler = 'none:f'\n")
    done = in_process("check", "base.toml", "routes.d", cwd=folder)
    assert (done.returncode, done.stderr) == (78, "")
    assert "routes.d/2.toml: routes[0].name: 'one' is the name of routes[0] of routes.d/1.toml already" in done.stdout


def test_a_missing_handler_is_named_with_its_file(folder: Path) -> None:
    (folder / "routes.d" / "2.toml").write_text(TWO.replace('name = "two"', 'name = "two"\nhandler = "none_such:f"'))
    done = command("run", "base.toml", "routes.d", cwd=folder)
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith("routes.d/2.toml: routes[0].handler: ")


def test_explain_takes_the_last_argument_for_the_subject(folder: Path) -> None:
    done = in_process("explain", "base.toml", "routes.d", "two.x.7", "--json", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    (found,) = json.loads(done.stdout)["routes"]
    assert (found["name"], found["destinations"][0]["subject"]) == ("two", "7.out")
    done = in_process("explain", "base.toml", "routes.d/1.toml", cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert "SUBJECT is missing: it must be the last argument, and routes.d/1.toml is a file" in done.stderr


def test_test_runs_the_tests_of_all_files(folder: Path) -> None:
    done = in_process("test", "routes.d", "base.toml", cwd=folder)
    assert (done.returncode, done.stdout) == (0, "ok      one goes out\n1 passed, 0 failed\n")


async def test_run_routes_the_routes_of_all_files(folder: Path, core_server: NatsServer) -> None:
    (folder / "base.toml").write_text(BASE.replace("nats://127.0.0.1:4222", core_server.url))
    async with running("run", "base.toml", "routes.d", cwd=folder) as router:
        async with connect(core_server.url) as client:
            out = await client.subscribe("*.>")
            await router.has_logged("ROUTE_READY", route="one")
            await router.has_logged("ROUTE_READY", route="two")
            await client.publish("one.7", b"1")
            await client.publish("two.x.8", b"2")
            seen: set[str] = set()
            while not {"out.7", "8.out"} <= seen:
                seen.add((await out.next()).subject)
        router.send(signal.SIGINT)
        assert await router.ended() == 0
