"""Announcements of a server: discarded if made in clear before TLS, and dropped if they are garbage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from router_trio.embedded import HOST, reserve_port
from router_trio.errors import ProtocolError
from router_trio.settings import ConnectionSettings
from tests.integration.dial import SECRET
from tests.integration.handshakes import link_to, serve_in_clear
from tests.support.certificates import Certificates
from tests.support.eventually import eventually
from tests.support.impostors import Caller, Play, impostor, info
from tests.support.raw_nats import connect
from tests.support.recorder import Recorder
from tests.support.servers import cluster
from tests.support.settings import settings
from tests.support.watch import assert_alive, watched

# --- announcements in clear are discarded ---


def tls_server(
    certificates: Certificates, *, in_clear: dict[str, Any] | None = None, behind: bytes = b"", over_tls: bytes = b""
) -> Play:
    """Serve one link over TLS until its first fence is answered; later callers are turned away.

    `in_clear` is in its INFO, `behind` is data that an attacker adds, `over_tls` is sent before its first PONG.
    """
    served = False

    async def play(caller: Caller) -> None:
        nonlocal served
        if served:
            await caller.close()
            return
        await caller.say(info(tls_required=True, **(in_clear or {})) + behind)
        if not await caller.upgrade(certificates):
            return
        served = True
        await caller.hear(b"PING\r\n")
        await caller.say(over_tls + b"PONG\r\n")
        await caller.hear(b"PING\r\nSUB _INBOX")
        while caller.secured.count(b"PING\r\n") < 2:
            await caller.hear()
        await caller.say(b"PONG\r\n")
        await caller.hear()
        await caller.close()

    return play


@pytest.mark.parametrize(
    "behind",
    [
        info(connect_urls=["evil.example.com:4222"]),
        b"INFO {",
        b"PONG\r\n",
        b"PING\r\n",
        b"+OK\r\n",
        b"\r\n",
        b"\x00",
        b"MSG x 1 1\r\nx\r\n",
    ],
)
async def test_data_behind_an_info_in_clear_is_a_protocol_error(certificates: Certificates, behind: bytes) -> None:
    async with impostor(tls_server(certificates, in_clear={}, behind=behind)) as server:
        listener = Recorder()
        config = ConnectionSettings(servers=[server.url], tls_ca_file=certificates.ca, password=SECRET, user="router")
        with pytest.raises(ProtocolError, match="before the upgrade to TLS"):
            async with link_to(config, listener):
                pass
        assert server.heard_in_clear == b""
        assert listener.servers == []


@pytest.mark.parametrize("demanded", [True, False])
@pytest.mark.parametrize("where", ["in clear", "over TLS"])
async def test_only_a_host_announced_over_tls_is_dialled(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch, where: str, demanded: bool
) -> None:
    """If the configuration asks for TLS it is dialled with TLS: the password is never sent in clear."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.ca))
    demand: dict[str, Any] = {"tls_ca_file": certificates.ca} if demanded else {}
    async with impostor(serve_in_clear) as other:
        named = {"connect_urls": [other.address, f"{HOST}:99999", "[::1"]}
        if where == "in clear":
            play = tls_server(certificates, in_clear=named)
        else:
            play = tls_server(certificates, over_tls=info(**named))
        async with (
            impostor(play) as server,
            watched(settings(server.url, user="router", password=SECRET, connect_timeout="1s", **demand)) as watch,
        ):
            await watch.until("NATS_CONNECTION_LOST")
            await watch.until("NATS_CONNECTION_FAILED", 4)
            tried = {event.server for event in watch.of("NATS_RECONNECT_ATTEMPT")}
            if where == "in clear":
                assert tried == {server.url}
                assert other.callers == []
            elif demanded:
                assert tried == {server.url, f"tls://{other.address}"}
                assert other.callers
                assert other.heard_in_clear == b""
            else:
                assert tried == {server.url, other.url}


async def test_an_announced_server_of_a_mixed_list_is_dialled_with_tls(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not matter which server of the list announced it, and which one is tried next."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.ca))
    async with impostor(serve_in_clear) as other:
        play = tls_server(certificates, over_tls=info(connect_urls=[other.address]))
        async with impostor(play) as server:
            with reserve_port() as port:
                servers = [server.url, f"tls://{HOST}:{port}"]
                async with watched(settings(servers, user="router", password=SECRET)) as watch:
                    await watch.until("NATS_CONNECTION_LOST")
                    await eventually(lambda: len(other.callers) >= 2)
                    assert other.heard_in_clear == b""
                    assert f"tls://{other.address}" in {event.server for event in watch.of("NATS_RECONNECT_ATTEMPT")}


# --- garbage in announcements ---

ADDRESSES = (f"{HOST}:99999", f"{HOST}:-1", "[::1", "[::1]:x", ":", "a b:4222", "u:p@h:1", "\x00:1", "é:1", "x" * 5000)


async def test_bad_announcements_are_dropped_and_the_link_lives() -> None:
    async def play(caller: Caller) -> None:
        await caller.say(info(connect_urls=[*ADDRESSES, "good.example.com:4222", None, 7, [], {}]))
        await caller.hear(b"PING\r\n")
        await caller.say(b"PONG\r\n" * 2)

    listener = Recorder()
    async with impostor(play) as server, link_to(ConnectionSettings(servers=[server.url]), listener):
        assert listener.servers == ["good.example.com:4222"]


@pytest.mark.parametrize("advertised", ["router.invalid:99999", "a b:4222"])
async def test_a_cluster_that_advertises_garbage_stays_usable(tmp_path: Path, advertised: str) -> None:
    async with cluster(tmp_path, 2, config=f'client_advertise: "{advertised}"\n') as group:
        first = group.servers[0]
        async with connect(first.url) as client:
            assert advertised in client.info["connect_urls"], "the server does not announce it"
        async with watched(settings(first.url)) as watch:
            await first.kill()
            await watch.until("NATS_CONNECTION_FAILED", 5)
            await first.restart()
            await watch.until("NATS_CONNECTION_RESTORED")
            await assert_alive(watch.router)
            assert {event.server for event in watch.of("NATS_RECONNECT_ATTEMPT")} == {first.url}
