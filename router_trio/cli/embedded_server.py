"""`run --embedded-nats`: a nats-server of the router's own, for every connection that has no servers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from router_trio.settings import ServerURL, Settings

_AUTHENTICATION = ("credentials_file", "user", "password", "token", "nkey_seed_file")


@asynccontextmanager
async def with_server(
    wanted: bool, settings: Settings, load: Callable[[], Settings]
) -> AsyncIterator[tuple[Settings, Callable[[], Settings]]]:
    """Run a server if it is wanted, and print its URL. Give settings, and what loads them, that use it.

    On the way out it waits for the end of the server.
    """
    if not wanted:
        yield settings, load
        return
    from router_trio.embedded import open_embedded_server

    async with open_embedded_server() as server:
        print(f"{server.url}\nnats-server: pid {server.pid}", flush=True)
        yield _with_servers(settings, server.url), partial(_load_with_servers, load, server.url)


def _load_with_servers(load: Callable[[], Settings], url: str) -> Settings:
    return _with_servers(load(), url)


def _with_servers(settings: Settings, url: str) -> Settings:
    """Return settings in which every connection without servers uses the one at `url`, and logs in as that says."""
    here = {"servers": [ServerURL.parse(url)], **dict.fromkeys(_AUTHENTICATION)}
    connections = {
        name: connection if connection.servers else connection.model_copy(update=here)
        for name, connection in settings.connections.items()
    }
    return settings.adapted(connections=connections)
