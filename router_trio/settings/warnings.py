"""What a configuration may mean, and probably does not: it runs, and `check` says so."""

from __future__ import annotations

from collections.abc import Iterator

from router_trio.errors import Problem
from router_trio.settings.loops import chosen_by_sender
from router_trio.settings.sections import RouteSettings
from router_trio.settings.settings import Settings


def warnings(settings: Settings) -> Iterator[Problem]:
    """Give every doubt about a valid configuration, with the path of its key."""
    for index, route in enumerate(settings.routes):
        yield from _first_tokens(f"routes[{index}]", route)


def _first_tokens(path: str, route: RouteSettings) -> Iterator[Problem]:
    for index, destination in enumerate(route.to):
        first = destination.subject.split(".")[0]
        if chosen_by_sender(first):
            yield Problem(
                f"{path}.to[{index}].subject",
                f"the first token of {destination.subject!r} is {first!r}: whoever sends the message chooses it, and "
                "so where it goes. What would go below '$' or to an inbox fails, anything else is sent; begin with a "
                "token of your own",
            )
