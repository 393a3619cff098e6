"""Start and end of the pages: what precedes them, what an error of the program leaves, and the last line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import pytest
import trio

from router_trio import telemetry as telemetry_module
from router_trio.events import Event, RouterDraining
from router_trio.router import Router
from router_trio.telemetry import OBSERVERS_WITHIN, Telemetry
from router_trio.testing import FakeBroker
from tests.integration.pages import get, no_descriptor_left, served, telemetry_settings
from tests.support.eventually import eventually
from tests.support.telemetry_views import View

DRAINING = RouterDraining(at=0.0, pending_count=1, timeout_seconds=1.0)


# --- work that precedes the pages ---


async def test_a_request_before_the_pages_exist_is_answered_once_they_do(view: View) -> None:
    first = trio.Event()
    answered: list[int] = []
    telemetry = Telemetry(telemetry_settings(), logs=False)
    async with telemetry.serve(view, first=first.wait) as address, trio.open_nursery() as nursery:
        assert address is not None

        async def ask() -> None:
            answered.append((await get(address, "/healthz"))[0])

        nursery.start_soon(ask)
        await trio.sleep(OBSERVERS_WITHIN / 5)
        assert answered == []
        first.set()
    assert answered == [200]


async def test_work_that_precedes_the_pages_delays_them_only_briefly(view: View) -> None:
    async with Telemetry(telemetry_settings(), logs=False).serve(view, first=trio.sleep_forever) as address:
        assert address is not None
        assert (await get(address, "/healthz"))[0] == 200


async def test_pages_that_cannot_be_imported_end_the_router_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "router_trio.telemetry.http.application", None)
    broker = FakeBroker()
    router = Router(telemetry_settings(), connect=lambda name, _: broker.connect)
    with no_descriptor_left(), pytest.raises(ImportError, match=r"router_trio\.telemetry\.http\.application"):
        async with router.open():
            await trio.sleep_forever()


async def test_a_cancelled_import_of_the_pages_leaves_nothing_behind(
    view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, over = threading.Event(), threading.Event()

    def import_slowly(name: str) -> None:
        begun.set()
        time.sleep(0.2)
        over.set()

    monkeypatch.setattr(telemetry_module, "import_module", import_slowly)
    with trio.CancelScope() as scope:
        async with served(view):
            await eventually(begun.is_set)
            scope.cancel()
    assert scope.cancelled_caught
    assert over.is_set()


# --- the facade ---


async def test_an_error_of_the_program_inside_is_raised_unchanged(view: View) -> None:
    with pytest.raises(ZeroDivisionError):
        async with served(view):
            raise ZeroDivisionError
    with pytest.raises(ExceptionGroup) as caught:
        async with served(view):
            raise ExceptionGroup("of the router", [KeyError()])
    assert caught.value.message == "of the router"


async def test_a_listener_that_raises_affects_no_other(view: View, capfd: pytest.CaptureFixture[str]) -> None:
    heard: list[Event] = []

    def broken(event: Event) -> None:
        raise RuntimeError("listener")

    telemetry = Telemetry(telemetry_settings(), listeners=[broken, heard.append])
    async with telemetry.serve(view) as address:
        assert address is not None
        for _ in range(3):
            telemetry.emit(DRAINING)
        body = (await get(address, "/metrics"))[2].decode()
    assert heard == [DRAINING] * 3
    assert "router_listener_errors_total 3.0" in body
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [line["error_code"] for line in lines].count("ROUTER_DRAINING") == 3
    [failure] = [line for line in lines if line["error_code"] == "LIBRARY"]
    assert failure["error_type"] == "RuntimeError"


async def test_lines_from_before_serving_are_not_lost(view: View, capfd: pytest.CaptureFixture[str]) -> None:
    telemetry = Telemetry(telemetry_settings(listen=""))
    telemetry.emit(DRAINING)
    assert capfd.readouterr().err == ""
    async with telemetry.serve(view) as address:
        assert address is None
    assert json.loads(capfd.readouterr().err)["error_code"] == "ROUTER_DRAINING"


def test_disabled_features_are_not_imported() -> None:
    program = """
import sys, trio
from router_trio.settings import Settings
from router_trio.telemetry import Telemetry
from router_trio.telemetry.view import RouterView
class View: name, connections, routes, fatal = "r", {}, [], None
settings = Settings(telemetry={"listen": ""}, connections={"main": {"servers": ["nats://127.0.0.1:4222"]}})
async def main():
    async with Telemetry(settings, logs=False).serve(View()):
        pass
trio.run(main)
heavy = {"opentelemetry", "prometheus_client", "starlette", "h11", "structlog", "requests"}
print(sorted(heavy & sys.modules.keys()))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.stderr == ""
    assert done.stdout == "[]\n"


def test_a_process_ends_with_its_last_line_on_a_stalled_stderr() -> None:
    program = """
import trio
from router_trio.events import RouterDraining
from router_trio.settings import Settings
from router_trio.telemetry import Telemetry
class View: name, connections, routes, fatal = "r", {}, [], None
settings = Settings(telemetry={"listen": ""}, connections={"main": {"servers": ["nats://127.0.0.1:4222"]}})
async def main():
    telemetry = Telemetry(settings)
    async with telemetry.serve(View()):
        for _ in range(3000):
            telemetry.emit(RouterDraining(at=0.0, pending_count=1, timeout_seconds=1.0))
    print(telemetry.log_lines_dropped, flush=True)
trio.run(main)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with process:
        # stderr is not read until the process has ended: it must end all the same.
        assert process.stdout is not None
        assert process.stderr is not None
        dropped = int(process.stdout.readline())
        assert process.wait(10) == 0
        # The write that hangs has filled the pipe; the last line may be cut.
        written = process.stderr.read().splitlines()
    assert dropped > 0
    assert json.loads(written[0])["error_code"] == "ROUTER_DRAINING"
    assert len(written) < 3000
