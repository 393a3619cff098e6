"""Which server version the tests run, and that a mark skips only on older ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from router_trio.embedded import find_server_binary
from tests.support.server_version import needs_server, server_binary, server_version


def test_the_variable_selects_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NATS_SERVER", raising=False)
    assert server_binary() == find_server_binary()
    monkeypatch.setenv("NATS_SERVER", "/elsewhere/nats-server")
    assert server_binary() == Path("/elsewhere/nats-server")


def test_a_mark_skips_on_older_servers_only() -> None:
    major, minor, patch = mine = server_version()
    assert mine >= (2, 10, 0)
    for version, skips in [
        ((major, minor), False),
        (mine, False),
        ((major, minor, patch + 1), True),
        ((major, minor + 1), True),
        ((major + 1,), True),
    ]:
        mark = needs_server(*version, lacks="feature").mark
        assert mark.args == (skips,)
        assert ("has no feature" in mark.kwargs["reason"]) == skips
