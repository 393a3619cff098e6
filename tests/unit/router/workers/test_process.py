"""The process of a worker, where the system lacks what it takes to wait for it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio

from router_trio.router.workers.process import WorkerProcess


@contextmanager
def started() -> Iterator[WorkerProcess]:
    """A process in place of a worker, which exits with 3 by itself."""
    channel: Any = None
    with subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]) as process:
        yield WorkerProcess(process, channel, -1)


async def test_the_end_of_a_worker_is_noticed_without_a_free_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_descriptor(pid: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with started() as worker:
        monkeypatch.setattr(os, "pidfd_open", no_descriptor, raising=False)
        with trio.fail_after(30):
            assert await worker.ended() == 3


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="without it, a thread waits")
async def test_the_end_of_a_worker_is_noticed_without_a_free_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_thread(*_: Any, **__: Any) -> Any:
        raise RuntimeError("can't start new thread")

    with started() as worker:
        monkeypatch.setattr(trio.to_thread, "run_sync", no_thread)
        with trio.fail_after(30):
            assert await worker.ended() == 3
