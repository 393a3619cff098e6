"""Which servers have pinned consumers, as far as their version shows."""

from __future__ import annotations

import pytest

from router_trio.errors import SourceError
from router_trio.nats.info import ServerInfo
from router_trio.nats.jetstream.standby import check_version


@pytest.mark.parametrize("version", ["2.11.0", "2.11.0-RC.1", "2.15.1", "3.0.0", "", "dev", "2"])
def test_a_server_that_may_have_them_is_asked(version: str) -> None:
    check_version(ServerInfo(version=version))


@pytest.mark.parametrize("version", ["2.10.26", "2.9.0", "1.4.1"])
def test_an_older_server_is_refused_before_it_creates_an_ordinary_consumer(version: str) -> None:
    with pytest.raises(SourceError, match=f"nats-server {version} has no pinned consumers") as caught:
        check_version(ServerInfo(version=version))
    assert caught.value.reason == "server_too_old"
