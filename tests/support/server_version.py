"""The nats-server that tests run, and marks for tests of features that older ones lack.

`NATS_SERVER=/path/to/nats-server` runs the tests against another server than the one that is installed with this
Python; `make test-servers` does so for every supported version.
"""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

import pytest

from router_trio.embedded import find_server_binary


def server_binary() -> Path:
    """Return the nats-server to run: the one that NATS_SERVER names, or else the one of the package."""
    named = os.environ.get("NATS_SERVER")
    return Path(named) if named else find_server_binary()


@cache
def server_version() -> tuple[int, int, int]:
    """Return the version of `server_binary`. Blocks on the first call, while the program is run."""
    said = subprocess.run([server_binary(), "--version"], capture_output=True, text=True, check=True, timeout=10).stdout
    major, minor, patch = said.strip().rpartition("v")[2].partition("-")[0].split(".")
    return int(major), int(minor), int(patch)


def why_not(*version: int, lacks: str) -> str:
    """Return why a test can't run where the server is older than a version, and "" where it can."""
    mine, since = (".".join(map(str, one)) for one in (server_version(), version))
    return f"nats-server {mine} has no {lacks}: since {since}" if server_version() < version else ""


def needs_server(*version: int, lacks: str) -> pytest.MarkDecorator:
    """Skip a test where the server is older than a version: `lacks` names the missing feature."""
    reason = why_not(*version, lacks=lacks)
    return pytest.mark.skipif(bool(reason), reason=reason or "not skipped")
