"""Check how a connection reaches its servers: by TCP, TLS or WebSocket, directly or through a proxy."""

from __future__ import annotations

from collections.abc import Iterator

from router_trio.errors import Problem
from router_trio.settings.sections import ConnectionSettings

_TLS_KEYS = ("tls_ca_file", "tls_cert_file", "tls_key_file", "tls_hostname", "tls_handshake_first")


def check_transport(path: str, connection: ConnectionSettings) -> Iterator[Problem]:
    """Yield each problem of the schemes of `servers` with each other and with other keys."""
    servers = connection.servers
    if not servers:
        return
    first, mixed = servers[0], False
    for index, server in enumerate(servers):
        if (server.websocket, server.websocket and server.tls) != (first.websocket, first.websocket and first.tls):
            mixed = True
            yield Problem(
                f"{path}.servers[{index}]",
                f"is {server.scheme}://, and servers[0] is {first.scheme}://: a server announces others of one kind "
                "only, so all servers of a connection are reached in the same way; move it to a connection of its own",
            )
        elif any(str(server) == str(other) and server != other for other in servers[:index]) and server.websocket:
            yield Problem(
                f"{path}.servers[{index}]",
                "differs from an earlier server only in its query or its user; remove one of them",
            )
    if mixed:
        return
    if first.scheme == "ws":
        for key in _TLS_KEYS:
            if getattr(connection, key):
                text = "has no effect on ws://, which has no TLS; write wss:// in servers, or remove it"
                yield Problem(f"{path}.{key}", text)
    elif first.scheme == "wss" and connection.tls_handshake_first:
        yield Problem(f"{path}.tls_handshake_first", "has no effect on wss://, which always begins with TLS; remove it")
    if connection.websocket_headers and not first.websocket:
        text = f"has no effect on {first.scheme}://: only ws:// and wss:// begin with an HTTP request; remove it"
        yield Problem(f"{path}.websocket_headers", text)
