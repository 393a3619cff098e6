"""`router-trio demo`: a router loses its server, and no message is lost."""

from __future__ import annotations

import gc
import sys

from router_trio.cli.command_line import DONE, FAILED, Parser, UsageError
from router_trio.cli.output import to_stderr


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `demo`."""
    parser.add_argument("--duration", default="20s", help="how long to publish, at least 3s; default: 20s")


def demo(*, duration: str) -> int:
    """Watch a router lose its server, but not a single message.

    Starts a nats-server and a router, publishes messages, and kills and
    restarts the server once. Then it compares the messages that arrived
    with those that were published, and prints the ledger. Exits with 0
    only if no message was lost.

    For example:

        router-trio demo
        router-trio demo --duration 1m
    """
    from router_trio.demo import SHORTEST
    from router_trio.settings.units import format_duration, parse_duration

    try:
        seconds = parse_duration(duration)
    except ValueError as error:
        raise UsageError(f"--duration: {error}") from None
    if seconds < SHORTEST:
        raise UsageError(f"--duration {duration} is too short for an outage; give at least {format_duration(SHORTEST)}")

    import trio

    from router_trio.cli.signals import run_with_signals
    from router_trio.demo.display import open_display
    from router_trio.demo.story import Story

    scope = trio.CancelScope()

    async def run_story() -> bool | None:
        with scope, open_display(sys.stdout) as display:
            return await Story(seconds, display).run()
        return None

    gc.enable()  # see `__main__`
    passed = trio.run(run_with_signals, run_story, lambda _number: scope.cancel())
    if passed is None:
        to_stderr("router-trio: the demo was interrupted before its end, so there is no verdict")
    return DONE if passed else FAILED
