"""router_trio: a message router for NATS and JetStream on Trio that never loses count."""

# Nothing is imported here, not even from the standard library: with `python -m router_trio` the working directory is
# still the first place to look, until `__main__` has changed that. So nothing is annotated with what is not built in.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any

    from router_trio.client.live import Live
    from router_trio.client.receipt import Receipt
    from router_trio.errors import Reject, Retry, RouterError
    from router_trio.message import Fate, Message
    from router_trio.router import Router
    from router_trio.settings import Settings

__all__ = ["Fate", "Live", "Message", "Receipt", "Reject", "Retry", "Router", "RouterError", "Settings"]

_HOMES = {
    "Fate": "message",
    "Live": "client.live",
    "Message": "message",
    "Receipt": "client.receipt",
    "Reject": "errors",
    "Retry": "errors",
    "Router": "router",
    "RouterError": "errors",
    "Settings": "settings",
}


def __getattr__(name: str) -> "Any":
    # Lazily: `router-trio check` needs the settings and neither Trio nor NATS, and starts in a third of the time.
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
