"""A router whose own calls are recorded while it receives one message at a time: the process that `frames` starts.

It gets the URL of a server and `core` or `stream`, prints `ready`, and records calls until its standard input ends.
Then it writes JSON: for each message the calls in order, as numbers of functions, and how often Trio resumed a task;
and the functions. It imports nothing but the router, which may be that of another tree, so that nothing else is in the
process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import trio

import router_trio
from router_trio import Router, Settings

PACKAGE = Path(router_trio.__file__).parent
ARRIVAL = b"MSG in."
"""How the parser's input begins when a message has arrived."""


class Calls(trio.abc.Instrument):
    """The calls of functions of the package, by message: from its arrival to that of the next one.

    `turns` is how often a task was resumed.
    """

    def __init__(self) -> None:
        self.by_message: list[list[CodeType]] = []
        self.turns: list[int] = []
        self._calls: list[CodeType] = []
        self._ours = f"{PACKAGE}/"

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        """Record a call, for `sys.setprofile`. A resumed coroutine counts too: the interpreter enters its frame."""
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(self._ours):
            return
        if code.co_qualname == "FrameParser.feed" and frame.f_locals["data"].startswith(ARRIVAL):
            self._calls = []
            self.by_message.append(self._calls)
            self.turns.append(1)
        self._calls.append(code)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count a resumed task, see Trio. The turn in which a message arrives has begun before that is known."""
        if self.turns:
            self.turns[-1] += 1


def one_route(url: str, kind: str) -> Settings:
    """Return settings with a connection, and a route from it to it."""
    source: dict[str, Any] = {"connection": "main", "subject": "in.*"}
    to: dict[str, Any] = {"connection": "main", "subject": "out.{{wildcard(1)}}"}
    if kind == "stream":
        source = {"connection": "main", "stream": "IN", "durable": "router", "filter": "in.*"}
        to["jetstream"] = True
    routes = [{"name": "r", "from": source, "to": [to]}]
    return Settings(telemetry={"listen": ""}, connections={"main": {"servers": [url]}}, routes=routes)


async def main(url: str, kind: str) -> None:
    """Run the router and write its calls, as the module describes."""
    calls = Calls()
    async with Router(one_route(url, kind), log=False).open():
        print("ready", flush=True)
        trio.lowlevel.add_instrument(calls)
        sys.setprofile(calls)
        await trio.lowlevel.wait_readable(sys.stdin)
        sys.setprofile(None)
        trio.lowlevel.remove_instrument(calls)
    numbers: dict[CodeType, int] = {}
    messages = [[numbers.setdefault(code, len(numbers)) for code in one] for one in calls.by_message]
    functions = [(str(Path(code.co_filename).relative_to(PACKAGE.parent)), code.co_qualname) for code in numbers]
    json.dump({"messages": messages, "turns": calls.turns, "functions": functions}, sys.stdout)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2])
