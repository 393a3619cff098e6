"""The listening sockets of the HTTP server.

They are opened before anything else starts, so that an address in use is reported at once. Clients that connect before
the pages are served wait in the listen queue.
"""

from __future__ import annotations

import errno

import trio

from router_trio.errors import ListenError
from router_trio.forked import close_in_children


async def open_listeners(host: str, port: int) -> list[trio.SocketListener]:
    """Listen on an address; port 0 chooses a free port. Waits for a name lookup.

    Raises `ListenError` with the address and what to do about it.
    """
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        raise ListenError(f"can't listen on {_address(host, port)}: {_cure(error)}") from error
    if port == 0:
        # Each address of the name got a different free port, and only one can be reported.
        for listener in listeners[1:]:
            await listener.aclose()
        del listeners[1:]
    for listener in listeners:
        close_in_children(listener.socket)
    return listeners


def address_of(listener: trio.SocketListener) -> tuple[str, int]:
    """Return the host and port that a listener is bound to."""
    host, port = listener.socket.getsockname()[:2]
    return host, port


def page_url(host: str, port: int) -> str:
    """Return the URL of the status page for a browser on this machine, with loopback in place of a wildcard address."""
    anywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    return f"http://{_address(anywhere.get(host, host), port)}/"


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _cure(error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return "another process uses it; stop that one, or change telemetry.listen ('' switches HTTP off)"
        case errno.EACCES | errno.EPERM:
            return "not permitted; take a port above 1023 in telemetry.listen"
        case errno.EADDRNOTAVAIL:
            return "this machine does not have that address; change telemetry.listen"
    return f"{error}; change telemetry.listen"
