"""Settings for tests: one connection or several, with quick reconnects, and routes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from router_trio import Settings


def settings(url: str | list[str], *, routes: list[dict[str, Any]] | None = None, **connection: Any) -> Settings:
    """Return settings with one connection `main`, no HTTP, and reconnects that are quick enough for a test."""
    quick = {"reconnect_delay": "50ms", "max_reconnect_delay": "300ms", "liveness_interval": "1s"}
    servers = [url] if isinstance(url, str) else url
    return Settings(
        telemetry={"listen": ""},
        connections={"main": {"servers": servers, **quick, **connection}},
        routes=routes or [],
    )


def stream_route_file(
    folder: Path, url: str, *, to: str = "out.{{wildcard(1)}}", ack_wait: str = "5s", listen: str = "", **route: Any
) -> Path:
    """Write `router.toml` for a command that starts and ends in a test: a route from `SOURCE`, HTTP if wanted."""
    keys = "\n".join(f"{key} = {value}" for key, value in route.items())
    path = folder / "router.toml"
    path.write_text(f"""
[telemetry]
listen = "{listen}"
[connections.main]
servers = ["{url}"]
reconnect_delay = "50ms"
max_reconnect_delay = "300ms"
[[routes]]
name = "route"
from = {{ stream = "SOURCE", durable = "router", filter = "in.*", ack_wait = "{ack_wait}" }}
to = [{{ subject = "{to}", jetstream = true }}]
{keys}
""")
    return path


def core_route(subject: str, to: str, *, name: str = "route", **source: Any) -> dict[str, Any]:
    """Return a route from a core subject to a core subject."""
    failing = failing_of(source)
    return {"name": name, "from": {"subject": subject, **source}, "to": [{"subject": to}], **failing}


def stream_route(
    stream: str, to: str, *, name: str = "route", durable: str = "router", **source: Any
) -> dict[str, Any]:
    """Return a route from a stream to a stream."""
    failing = failing_of(source)
    return {
        "name": name,
        "from": {"stream": stream, "durable": durable, **source},
        "to": [{"subject": to, "jetstream": True}],
        **failing,
    }


def failing_of(source: dict[str, Any]) -> dict[str, Any]:
    """Move the keys about failures, which belong to the route, out of the keys of a source."""
    return {key: source.pop(key) for key in ("retry", "dead_letter") if key in source}
