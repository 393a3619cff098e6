"""Figures of an embedding program: publishing, the drain after an outage, the memory of waiting messages, and the
start.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from functools import partial

import trio

from tests.performance.benchmarks.contestants import CORE, taking_part, write_configuration
from tests.performance.benchmarks.environment import PEERS, ROOT, compile_package, process_environment
from tests.performance.benchmarks.load_stream import create_streams
from tests.performance.benchmarks.measure import Figures, MeasurementError, Turn, in_turns, program, routed
from tests.performance.benchmarks.section import COST, RATE, Column, Section
from tests.performance.benchmarks.setting import Setting
from tests.performance.benchmarks.wire import Wire

PUBLISHERS = ("router_trio", "nats_py", "raw")
CORE_PUBLISHES = 200_000
ACKED_PUBLISHES = {1: 3_000, 64: 20_000, 1024: 40_960}
"""Number of messages for a number of callers: a second or two of each."""
YARDSTICK = "import trio, nats"
"""The start of any program on both libraries."""
AS_COMMAND = "import gc; gc.disable()"
"""The work of `router_trio.__main__` before it imports anything."""
PENDING = 100_000
MANY_PENDING = 1_000_000


async def publish(setting: Setting) -> list[Section]:
    """Measure core publishes, then with PubAck from 1, 64 and 1024 concurrent callers."""
    sections = []
    share = 4 if setting.quick else 1
    for callers, count in {0: CORE_PUBLISHES, **ACKED_PUBLISHES}.items():
        turns = {
            who: partial(_publish_turn, setting, who, count // share // max(callers, 1) * max(callers, 1), callers)
            for who in PUBLISHERS
        }
        results = await in_turns(setting.rounds, turns, say=setting.say)
        what = f"`publish_with_ack`, {callers} at a time" if callers else "`publish`, one caller"
        text = "128 B, from a program that embeds the router, until the last one is confirmed; stream on file."
        sections.append(Section(f"publish-{callers}", what, text, (RATE, COST), results))
    return sections


async def drain(setting: Setting) -> list[Section]:
    """Measure how fast waiting messages leave after a reconnect."""
    turns = {who: partial(_pending, "drain", who, PENDING) for who in ("router_trio", "raw")}
    results = await in_turns(setting.rounds, turns, say=setting.say)
    text = f"{PENDING:,} publishes of 128 B wait; the time from the link's birth to the last confirmation."
    columns = (Column("seconds", "seconds", 3), RATE, COST)
    return [Section("drain", "Drain", text, columns, results, against=("raw",), more_is_better=False)]


async def memory(setting: Setting) -> list[Section]:
    """Measure the memory of a waiting publish."""
    sections = []
    for count in (PENDING,) if setting.quick else (PENDING, MANY_PENDING):
        turns = {who: partial(_pending, "memory", who, count) for who in ("router_trio", "frames")}
        results = await in_turns(2, turns, say=setting.say)
        text = f"Growth of the process, {count:,} publishes of 128 B; `frames` is a deque of nothing but the bytes."
        columns = (Column("bytes", "bytes each"),)
        title = f"Memory of {count:,} pending publishes"
        sections.append(
            Section(f"memory-{count}", title, text, columns, results, against=("frames",), more_is_better=False)
        )
    return sections


async def start(setting: Setting) -> list[Section]:
    """Measure how long commands take, and the first message."""
    compile_package()
    path = str(write_configuration(setting.job(CORE)))
    python = sys.executable
    reference = {YARDSTICK: [python, "-c", YARDSTICK]}
    commands = {
        "python -c pass": [python, "-c", "pass"],
        **reference,
        "router-trio --help": [python, "-m", "router_trio", "--help"],
        "router-trio check": [python, "-m", "router_trio", "check", path],
        "import of an embedding program": [python, "-c", "import router_trio.router"],
        "imports of run": [python, "-c", f"{AS_COMMAND}; import router_trio.cli.run.serving; gc.freeze()"],
    }
    turns = {name: partial(_timed, command) for name, command in commands.items()}
    results = await in_turns(5 if setting.quick else 15, turns, say=_silent)
    columns: tuple[Column, ...] = (Column("seconds", "ms", 0, 1000),)
    text = "From the start of the process to its end."
    sections = [Section("start", "Commands", text, columns, results, against=(YARDSTICK,), more_is_better=False)]

    spec = {"job": "first", "url": setting.url}
    firsts: dict[str, Turn] = {name: partial(_timed, command) for name, command in reference.items()}
    firsts |= {
        contestant.name: partial(routed, spec, contestant, setting.job(CORE))
        for contestant in taking_part(CORE, essential=setting.quick)
    }
    results = await in_turns(setting.rounds, firsts, say=setting.say)
    text = "From the start of the process to the first message that comes out."
    columns = (Column("seconds", "ms", 0, 1000), Column("cpu_seconds", "CPU ms", 0, 1000))
    against = (YARDSTICK, "nats_py")
    sections.append(
        Section("first", "First message routed", text, columns, results, against=against, more_is_better=False)
    )
    return sections


async def _publish_turn(setting: Setting, who: str, count: int, callers: int) -> Figures:
    if callers:
        await trio.to_thread.run_sync(lambda: create_streams(Wire(setting.url)))
    return await program([sys.executable, str(PEERS / "publishing.py"), who, setting.url, str(count), str(callers)])


async def _pending(what: str, who: str, count: int) -> Figures:
    return await program([sys.executable, str(PEERS / "pending.py"), what, who, str(count)])


async def _timed(command: Sequence[str]) -> Figures:
    begin = time.perf_counter()
    done = await trio.run_process(
        list(command), capture_stdout=True, capture_stderr=True, check=False, env=process_environment(), cwd=ROOT
    )
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise MeasurementError(f"{command[1:]} ended with {done.returncode}: {done.stderr.decode()[-400:]}")
    return {"seconds": seconds}


def _silent(text: str) -> None:
    """Print nothing: fifteen rounds of five commands are not worth a line each."""
