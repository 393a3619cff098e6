"""A configuration for `router-trio run`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Write = Callable[..., Path]

ROUTE = """
[[routes]]
name = "orders"
from = { connection = "main", subject = "orders.*" }
to = [ { connection = "main", subject = "eu.{{wildcard(1)}}" } ]
"""


def writing(tmp_path: Path) -> Write:
    """Return a function that writes a configuration with one connection `main`, and `rest`."""

    def write(*servers: str, connection: str = "", rest: str = ROUTE, telemetry: str = 'listen = ""') -> Path:
        given = f"servers = {list(servers)}\n".replace("'", '"') if servers else ""
        path = tmp_path / "router.toml"
        path.write_text(
            f'[router]\nshutdown_timeout = "5s"\n[telemetry]\n{telemetry}\n'
            f"[connections.main]\n{given}{connection}\n{rest}"
        )
        return path

    return write
