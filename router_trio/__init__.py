"""A message router for NATS and JetStream on Trio that never loses count.

A `Router` is made of `Settings`, from a file or built in code, and of handlers: functions that take a `Message` and
return what is sent on. `Router.open()` runs it, and gives a `Live`, which publishes and shows how things are. Each
publish returns a `Receipt`; what finally became of the message is its one `Fate`.

    import trio
    from router_trio import Message, Router, Settings

    router = Router(Settings.load("router.toml"))

    @router.route("orders.*.created", to="crm.{{wildcard(1)}}")
    async def enrich(message: Message) -> Message | None:
        return message.replace(payload=message.payload.upper())

    async def main() -> None:
        async with router.open() as live:
            receipt = await live.publish("orders.7.created", b"hello")
            print(await receipt.settled())

    trio.run(main)

A handler raises `Retry` or `Reject` to say what becomes of its message. Errors of this package are `RouterError`s,
among them `PublishError`; `router_trio.errors` has the others. `router_trio.testing` has a NATS in memory for tests,
`router_trio.embedded` starts a real nats-server, and `router_trio.faults` makes operations fail.
"""

# Nothing is imported here, not even from the standard library: with `python -m router_trio` the working directory is
# still the first place to look, until `__main__` has changed that. So nothing is annotated with what is not built in.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any

    from router_trio.client.live import Live
    from router_trio.client.receipt import Receipt
    from router_trio.errors import PublishError, Reject, Retry, RouterError
    from router_trio.message import Fate, Message
    from router_trio.protocol.headers import Headers
    from router_trio.router import Router
    from router_trio.settings import Settings

__all__ = [
    "Fate",
    "Headers",
    "Live",
    "Message",
    "PublishError",
    "Receipt",
    "Reject",
    "Retry",
    "Router",
    "RouterError",
    "Settings",
]

_HOMES = {
    "Fate": "message",
    "Headers": "protocol.headers",
    "Live": "client.live",
    "Message": "message",
    "PublishError": "errors",
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
    try:
        home = import_module(f"{__name__}.{_HOMES[name]}")
    except AttributeError as error:
        # For `from router_trio import ...` it would mean that there is no such name.
        raise ImportError(f"{__name__}.{_HOMES[name]} can't be imported: {error}") from error
    return getattr(home, name)


def __dir__() -> "list[str]":
    # For `dir`, `help` and completion, which know nothing of what is imported lazily.
    return [*__all__, "__all__", "__doc__", "__file__", "__name__", "__package__", "__path__"]
