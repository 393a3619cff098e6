"""Routers inside of other programs: the example of the first page, several in one process, and their errors."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio import Message, Router, Settings
from router_trio.embedded import HOST
from router_trio.errors import AuthorizationError, ConfigurationError, ListenError
from tests.support.command import command
from tests.support.eventually import eventually
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer, nats_server
from tests.support.settings import core_route

EXAMPLE = """
import trio
from router_trio import Message, Router, Settings

router = Router(Settings.load("router.toml"))

@router.route("orders.*.created", to="crm.{{wildcard(1)}}")
async def enrich(message: Message) -> Message | None:      # None: filtered out, counted
    return message.replace(payload=message.payload.upper())

async def main() -> None:
    async with router.open() as live:
        receipt = await live.publish("orders.7.created", b"hello")
        print(await receipt.settled())

trio.run(main)
"""


def embedded(*urls: str, listen: str = "", **more: Any) -> Settings:
    connections = {f"server{number}": {"servers": [url]} for number, url in enumerate(urls)}
    return Settings(telemetry={"listen": listen}, connections=connections, **more)


async def test_the_example_of_the_first_page_works(core_server: NatsServer, tmp_path: Path) -> None:
    (tmp_path / "router.toml").write_text(
        f'[telemetry]\nlisten = "{HOST}:0"\n\n[connections.main]\nservers = ["{core_server.url}"]\n'
    )
    (tmp_path / "example.py").write_text(EXAMPLE)
    async with connect(core_server.url) as client:
        subscription = await client.subscribe("crm.*")
        run = partial(
            trio.run_process,
            [sys.executable, "example.py"],
            cwd=tmp_path,
            capture_stdout=True,
            stderr=subprocess.STDOUT,
        )
        with trio.fail_after(30):
            process = await run()
        assert process.stdout == b"Fate(name='fenced', reason=None, stream=None, sequence=None, duplicate=False)\n"
        message = await subscription.next()
        assert (message.subject, message.payload) == ("crm.7", b"HELLO")


async def test_settings_from_a_file_and_from_code_are_the_same(core_server: NatsServer, tmp_path: Path) -> None:
    file = tmp_path / "router.toml"
    file.write_text(f'[telemetry]\nlisten = ""\n[connections.server0]\nservers = ["{core_server.url}"]\n')
    for given in (Settings.load(file), Settings.load(str(file)), embedded(core_server.url)):
        async with Router(given).open() as live:
            receipt = await live.publish("out", b"x")
            assert (receipt.status, (await receipt.settled()).name) == ("sent", "fenced")
            assert live.http_address is None


async def test_one_router_may_be_opened_again(core_server: NatsServer) -> None:
    router = Router(embedded(core_server.url))
    for _ in range(2):
        async with router.open() as live:
            receipt = await live.publish("out", b"x")
            assert (await receipt.settled()).name == "fenced"
        assert live.ledger()["server0"]["accepted"] == 1


@pytest.mark.parametrize("listen", ["", f"{HOST}:0"])
async def test_several_routers_in_one_process(core_server: NatsServer, listen: str) -> None:
    """Each has its own connections, routes, ledger and pages."""
    first = Router(embedded(core_server.url, listen=listen))
    second = Router(embedded(core_server.url, listen=listen, routes=[core_route("step.two", "step.three")]))

    @first.route("step.one", to="step.two")
    def shout(message: Message) -> Message:
        return message.replace(payload=message.payload.upper())

    async with connect(core_server.url) as client:
        subscription = await client.subscribe("step.three")
        async with first.open() as one, second.open() as two:
            receipt = await two.publish("step.one", b"hello")
            assert (await receipt.settled()).name == "fenced"
            assert (await subscription.next()).payload == b"HELLO"
            if listen:
                assert one.http_address is not None
                assert two.http_address is not None
                assert one.http_address != two.http_address
        assert one.ledger()["server0"]["settled"]["fenced"] == 1
        assert two.ledger()["server0"]["settled"]["fenced"] == 2


async def test_routers_in_tasks_of_one_nursery(core_server: NatsServer) -> None:
    ready: list[str] = []

    async def run(name: str) -> None:
        async with Router(embedded(core_server.url)).open() as live:
            await (await live.publish("out", b"x")).settled()
            ready.append(name)
            await eventually(lambda: len(ready) == 5)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(run, str(number))
    assert sorted(ready) == ["0", "1", "2", "3", "4"]


# --- errors ---


class Own(Exception):
    """An error of the program around the router."""


@pytest.mark.parametrize(
    "error",
    [
        Own("bare"),
        KeyboardInterrupt(),
        ExceptionGroup("of a nursery of its own", [Own("one"), KeyError("another")]),
        ExceptionGroup("with one in it", [Own("one")]),
        BaseExceptionGroup("of several kinds", [Own("one"), KeyboardInterrupt()]),
    ],
    ids=lambda error: str(error) or type(error).__name__,
)
async def test_an_error_of_the_body_is_raised_unchanged(core_server: NatsServer, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        async with Router(embedded(core_server.url)).open():
            raise error
    assert caught.value is error


async def test_a_cancelled_body_is_cancelled_and_nothing_else(core_server: NatsServer) -> None:
    with trio.move_on_after(0.1) as scope:
        async with Router(embedded(core_server.url)).open():
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_errors_of_the_start_are_raised_ungrouped(core_server: NatsServer, tmp_path: Path) -> None:
    async with nats_server(tmp_path, config="authorization { token: secret }\n", jetstream=False) as guarded:
        with pytest.raises(AuthorizationError):
            async with Router(embedded(core_server.url, guarded.url)).open():
                pytest.fail("entered")
    with pytest.raises(ListenError):
        async with Router(embedded(core_server.url, listen=f"{HOST}:{core_server.port}")).open():
            pytest.fail("entered")
    with pytest.raises(ConfigurationError, match=r"connections\.main\.servers"):
        async with Router(Settings(connections={"main": {}})).open():
            pytest.fail("entered")


PROGRAM = """
import trio
from router_trio import Router, Settings
from router_trio.testing import FakeBroker

broker, telemetry = FakeBroker(), {"listen": "", "handler_errors": "type"}
settings = Settings(telemetry=telemetry, connections={"main": {"servers": ["nats://fake"]}})
router = Router(settings, connect=lambda name, _: broker.connect, LOG)

@router.route("in.*", to="out.$1")
def broken(message):
    raise ValueError("HUSH")

async def main():
    async with router.open() as live:
        broker.publish("in.7", b"HUSH")
        while not live.status()["routes"]["broken"]["failed"]:
            await trio.sleep(0.01)

trio.run(main)
"""


@pytest.mark.parametrize(
    ("log", "codes"),
    [
        ("", ["ROUTE_MESSAGE_FAILED"]),
        ("log=False", []),
        ("log=True", None),
    ],
)
def test_a_program_gets_warnings_unless_it_configures_otherwise(
    log: str, codes: list[str] | None, tmp_path: Path
) -> None:
    file = tmp_path / "program.py"
    file.write_text(PROGRAM.replace(", LOG", f", {log}" if log else ""))
    done = command(file, cwd=tmp_path, python=[sys.executable])
    assert (done.returncode, done.stdout) == (0, "")
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    if codes is not None:
        assert [line["error_code"] for line in lines] == codes
    else:
        assert {"ROUTER_STARTED", "ROUTE_MESSAGE_FAILED", "ROUTER_STOPPED"} <= {line["error_code"] for line in lines}
    for line in lines:
        if line["error_code"] == "ROUTE_MESSAGE_FAILED":
            assert (line["level"], line["route"], line["subject"]) == ("WARN", "broken", "in.7")
            assert line["place"] == f"{file}:12 in broken"
    assert "HUSH" not in done.stderr
