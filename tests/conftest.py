"""Fixtures: real servers, a proxy in front of one, and a check that a test leaves nothing behind."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest
from trio.testing import MockClock

from router_trio.embedded import HOST
from tests.support.clock import waits_for_threads
from tests.support.compiled import COMPILED, looks_inside, needs_sources
from tests.support.proxy import TcpProxy, tcp_proxy
from tests.support.servers import NatsServer, nats_server

# How long one example takes depends on the load of the machine. Costs have tests of their own.
hypothesis.settings.register_profile("router_trio", deadline=None)
hypothesis.settings.register_profile("quick", deadline=None, max_examples=25)
hypothesis.settings.load_profile("router_trio")

# The garbage collector took a tenth of the time of unit tests, mostly to look at the objects of pytest. So it runs less
# often, and skips the objects that collecting the tests created.
gc.set_threshold(50_000, 20, 20)

# A signal that is ignored, as under nohup and in the background of a script, is also ignored by each program that is
# started. A handled one is not: programs that the tests start have the default action. The tests themselves go on
# ignoring it.
for _number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda *_: None)

_THREADS_END_WITHIN = 2.0
_SERVERS = {"server", "core_server"}
_LONGEST = ("tests/simulation/", "tests/resilience/")
"""Folders with the tests that take the longest."""
_IDLE_TRIO_WORKER = "Trio thread"  # trio keeps idle workers for ten seconds; a busy one has the name of its job


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests that start a server as slow, and those that need the sources, before `-m` evaluates the marks.

    The longest tests start first: otherwise one worker may run one at the end while the others have nothing left.
    """
    if hasattr(config, "workerinput"):  # one of several workers of pytest-xdist
        items.sort(key=lambda item: not item.nodeid.startswith(_LONGEST))
    for item in items:
        if isinstance(item, pytest.Function) and not _SERVERS.isdisjoint(item.fixturenames):
            item.add_marker(pytest.mark.slow)
        if needs_sources(item):
            item.add_marker(looks_inside)
            if COMPILED:
                item.add_marker(pytest.mark.skip("needs the sources"))


def pytest_collection_finish() -> None:
    """Exclude the tests and their modules from garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Fail, at teardown, a test that leaves a child process (even an unreaped one) or a thread."""
    children, threads = _children(), set(threading.enumerate())
    yield
    left = sorted(_children() - children)
    assert not left, f"child processes left behind: {left}"
    deadline = time.monotonic() + _THREADS_END_WITHIN
    while busy := [thread for thread in threading.enumerate() if thread not in threads and _is_ours(thread)]:
        assert time.monotonic() < deadline, f"threads left behind: {busy}"
        busy[0].join(0.01)  # a process that was asked to end may need a moment


@pytest.fixture
def autojump_clock(monkeypatch: pytest.MonkeyPatch) -> MockClock:
    """Return the autojump clock of pytest-trio, except that it waits for threads."""
    return waits_for_threads(MockClock(), monkeypatch)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """Yield a nats-server with JetStream."""
    async with nats_server(tmp_path) as running:
        yield running


@pytest.fixture
async def core_server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """Yield a nats-server without JetStream."""
    async with nats_server(tmp_path, jetstream=False) as running:
        yield running


@pytest.fixture
async def proxy(server: NatsServer) -> AsyncIterator[TcpProxy]:
    """Yield a proxy in front of `server`."""
    async with tcp_proxy(HOST, server.port) as running:
        yield running


def _is_ours(thread: threading.Thread) -> bool:
    return not thread.name.startswith(_IDLE_TRIO_WORKER)


def _children() -> set[int]:
    if sys.platform != "linux":
        return set()
    try:  # looking at every process of the machine takes longer than most tests
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # there is no child, running or ended
        return set()
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # The name may contain spaces and brackets; the parent is the second word after its last bracket.
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue  # it ended in the meantime
            if parent == os.getpid():
                found.add(int(entry.name))
    return found
