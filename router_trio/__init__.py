"""router_trio: a message router for NATS and JetStream on Trio that never loses count."""

from __future__ import annotations

# Not that of `typing`, whose import would be half of what there is to do before a command can heed a signal.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from router_trio.errors import RouterError
    from router_trio.live import Live
    from router_trio.message import Fate, Message
    from router_trio.receipt import Receipt
    from router_trio.router import Router
    from router_trio.settings import Settings

__all__ = ["Fate", "Live", "Message", "Receipt", "Router", "RouterError", "Settings"]

_HOMES = {
    "Fate": "message",
    "Live": "live",
    "Message": "message",
    "Receipt": "receipt",
    "Router": "router",
    "RouterError": "errors",
    "Settings": "settings",
}


def __getattr__(name: str) -> Any:
    # Lazily: `router-trio check` needs the settings and neither Trio nor NATS, and starts in a third of the time.
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
