"""Commands for first-time users: the files that `init` writes work unchanged, and shells complete every command."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import tomllib
from pathlib import Path

import pytest

from router_trio.cli.command_line import COMMANDS as NAMES
from router_trio.embedded import HOST
from tests.support.command import COMMAND, command, environment, in_process, running
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.watch import until_stored


async def test_the_files_of_init_pass_check_and_test_and_route(tmp_path: Path) -> None:
    done = command("init", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "router-trio run router.toml --embedded-nats" in done.stdout
    checked = command("check", "router.toml", cwd=tmp_path)
    assert checked.returncode == 0
    assert "warning" not in checked.stdout
    assert "ok (1 connection, 1 route, 3 streams)" in checked.stdout
    tested = command("test", "router.toml", cwd=tmp_path)
    assert (tested.returncode, tested.stdout.splitlines()[-1]) == (0, "2 passed, 0 failed")

    listen = {"ROUTER_TRIO_TELEMETRY__LISTEN": f"{HOST}:0"}
    async with running("run", "--embedded-nats", cwd=tmp_path, env=listen) as router:
        url = (await router.has_printed(r"nats://\S+"))[0]
        async with connect(url) as client:
            stream = JetStream(client)
            await router.has_logged("ROUTE_READY")
            await stream.publish_many([("orders.7.created", b"{}", [("region", "eu")])])
            await until_stored(stream, "EU", 1)
        router.send(signal.SIGINT)
        assert await router.ended() == 0


def test_init_overwrites_nothing_and_names_the_next_step(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text("mine")
    done = in_process("init", mine, cwd=tmp_path)
    assert (done.returncode, done.stdout, mine.read_text()) == (2, "", "mine")
    assert "exists and is not overwritten; give another name" in done.stderr
    (tmp_path / "link.toml").symlink_to(tmp_path / "elsewhere.toml")
    assert in_process("init", "link.toml", cwd=tmp_path).returncode == 2
    assert not (tmp_path / "elsewhere.toml").exists()
    done = in_process("init", "none/router.toml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no folder none; create it" in done.stderr


def test_the_file_names_its_schema_and_the_command_that_writes_it(tmp_path: Path) -> None:
    assert in_process("init", "mine.toml", cwd=tmp_path).returncode == 0
    text = (tmp_path / "mine.toml").read_text()
    assert text.startswith("#:schema ./router.schema.json\n")
    assert "router-trio schema > router.schema.json" in text
    schema = json.loads(in_process("schema", cwd=tmp_path).stdout)
    assert tomllib.loads(text).keys() <= schema["properties"].keys()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(shell: str, tmp_path: Path) -> None:
    done = in_process("completion", shell, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "router-trio" in done.stdout


def test_bash_completes_commands_and_options(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    (tmp_path / "completion").write_text(command("completion", "bash", cwd=tmp_path).stdout)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "router-trio"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n')
    program.chmod(0o755)
    script = """
        source ./completion
        type=$(complete -p router-trio); function=${type#*-F }; function=${function% *}
        completed() {
            COMP_LINE="$1"; COMP_POINT=${#1}; COMP_TYPE=9; COMPREPLY=(); compopt() { :; }
            $function router-trio; echo "${COMPREPLY[@]}"
        }
        completed "router-trio ini"
        completed "router-trio run --emb"
        completed "router-trio completion "
        completed "router-trio dead-letters router.toml orders re"
        completed "router-trio "
    """
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [bash, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True, env=environment({"PATH": path})
    )
    *some, commands = [line.split() for line in done.stdout.splitlines()]
    assert some == [["init"], ["--embedded-nats"], ["bash", "zsh", "fish"], ["redrive"]]
    assert set(commands) >= set(NAMES)
