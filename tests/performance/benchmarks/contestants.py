"""The contestants: how each is started, and in which workloads.

Each routes `in.TOKEN` to `out.TOKEN` in a process of its own. `raw` is no router: it is the limit, a loop that does
only the I/O.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.performance.benchmarks.environment import (
    BEFORE,
    COMPILED,
    GO_PEERS,
    PEERS,
    ROOT,
    peer_package,
    peer_python,
)

HANDLER = "tests.performance.benchmarks.peers.shouting:shout"
QUICK = ("router_trio", "nats_py", "nats_go", "raw")
"""Contestants of a quick run: router_trio, a loop on the client of either language, and the limit."""
CORE = "core"
HANDLED = "handler"
STREAM = "stream"
BUCKET = "bucket"
WINDOW = 16_384
BRIDGED = 50_000
"""Operations that may wait for the other of two servers: as many as fit into the buffer of nats.go, 8 MB."""
BY_CONTENT = frozenset({"header", "body", "first-match", "weighted", "sticky", "payload"})
"""Jobs of routes that examine the content of messages."""
CONTENT = {
    "nats_py": BY_CONTENT,
    "faststream": frozenset({"header", "body"}),
    "mq_bridge": frozenset({"header", "first-match"}),
}
"""Contestants besides router_trio, and the jobs that each can do."""
CONTENT_PEERS = tuple(CONTENT)


@dataclass(frozen=True)
class Job:
    """The job of a contestant. `directory` is for its files; `collector` is where router_trio sends its spans, if any,
    for `sampled` of the messages, and more than 100 a second if not `limited`; `routes` are TOML for it, `options` are
    for nats_py.

    `sources` is the number of subscriptions `in.NUMBER.*`, or of streams `IN-NUMBER`, over which the load is spread;
    with 0 it is one, `in.*` or `IN`. `to` is the URL of the destination server, if it is not that of the source.
    """

    url: str
    kind: str
    directory: Path
    collector: str = ""
    sampled: float = 0.01
    limited: bool = True
    routes: str = ""
    options: tuple[str, ...] = ()
    sources: int = 0
    to: str = ""


@dataclass(frozen=True)
class Contestant:
    """A contestant. `note` explains how it differs from the others, `needs` is a file without which it is left out."""

    name: str
    kinds: frozenset[str]
    command: Callable[[Job], list[str]]
    note: str = ""
    window: int = WINDOW
    """Most messages under way: the number that it can be sent without losing any."""
    needs: Path | None = None

    @property
    def is_there(self) -> bool:
        """Return True if it can be run."""
        return self.needs is None or self.needs.exists()


def routes_of(kind: str, to: str = "main", sources: int = 0) -> str:
    """Return the routes of router_trio for a kind of job, in TOML: one, or one for each of the `sources`."""
    if not sources:
        return route_of(kind, to)
    return "".join(route_of(kind, to, name=f"{number:04d}") for number in range(sources))


def route_of(kind: str, to: str = "main", *, name: str = "") -> str:
    """Return a route of router_trio for a kind of job, in TOML; `to` is the connection to which it publishes.

    `name` is the source, one of several.
    """
    if kind == BUCKET:
        return (
            f'[[routes]]\nname = "bench"\nfrom = {{ connection = "main", bucket = "in", durable = "bench" }}\n'
            f'to = [ {{ connection = "{to}", bucket = "out" }} ]\n'
        )
    subject, stream = (f"{name}.", f"IN-{name}") if name else ("", "IN")
    head = f'[[routes]]\nname = "bench{name}"\n'
    head += f'to = [ {{ connection = "{to}", subject = "out.{subject}{{{{wildcard(1)}}}}"'
    if kind == STREAM:
        source = {"stream": stream, "durable": "bench", "filter": f"in.{subject}*"}
        head += ", jetstream = true } ]\n"
    else:
        source = {"subject": f"in.{subject}*"}
        head += " } ]\n" + (f'handler = "{HANDLER}"\n' if kind == HANDLED else "")
    return head + "".join(f'from.{key} = "{value}"\n' for key, value in {"connection": "main", **source}.items())


def write_configuration(job: Job) -> Path:
    """Write router_trio's configuration: metrics and traces on, everything else at its default.

    Between two servers the queue has the same room as the buffer of nats.go.
    """
    path = job.directory / "router.toml"
    connections = f'[connections.main]\nservers = ["{job.url}"]\n'
    if job.to:
        connections += f'[connections.other]\nservers = ["{job.to}"]\nmax_pending_operations = {BRIDGED}\n'
    routes = job.routes or routes_of(job.kind, "other" if job.to else "main", job.sources)
    traces = f'otlp_endpoint = "{job.collector}"\ntrace_sample_ratio = {job.sampled}\n'
    if not job.limited:
        traces += "max_traces_per_second = 1_000_000\n"
    path.write_text(f'[telemetry]\nlisten = "127.0.0.1:0"\n{traces}{connections}{routes}')
    return path


def _router_trio(job: Job, python: str | Path = sys.executable) -> list[str]:
    return [str(python), "-m", "router_trio", "run", str(write_configuration(job))]


def _router_trio_of(directory: Path, python: str | Path = sys.executable) -> Callable[[Job], list[str]]:
    """Return the command of the package in the directory, or of the one that `python` has if there is none.

    The current directory and the environment contain the pure package of this checkout.
    """

    def command(job: Job) -> list[str]:
        return ["env", "PYTHONSAFEPATH=1", f"PYTHONPATH={directory}", *_router_trio(job, python)]

    return command


def _compiled(checkout: Path) -> Callable[[Job], list[str]]:
    """Return the command of the compiled package. The handlers are imported where there is none but the installed."""
    return _router_trio_of(checkout / ".compiled", checkout / COMPILED)


def _before() -> list[Contestant]:
    """Return the router of the checkout that `AGAINST` names, pure and compiled."""
    if BEFORE is None:
        return []
    kinds, note = frozenset({CORE, HANDLED, STREAM}), f"of {BEFORE}"
    return [
        Contestant("router_trio_before", kinds, _router_trio_of(BEFORE), note, needs=BEFORE),
        Contestant("router_trio_compiled_before", kinds, _compiled(BEFORE), note, needs=BEFORE / COMPILED),
    ]


def _raw(job: Job) -> list[str]:
    script = "raw_stream.py" if job.kind == STREAM else "raw_core.py"
    return [sys.executable, str(PEERS / script), job.url, *(["--handler"] if job.kind == HANDLED else [])]


def _nats_py(job: Job) -> list[str]:
    # The client with which router_trio itself is tested, in the same environment.
    if job.to:
        return [sys.executable, str(PEERS / "nats_py_bridge.py"), job.url, job.kind, job.to]
    routes = ["--routes", str(job.sources)] if job.sources else []
    return [sys.executable, str(PEERS / "nats_py.py"), job.url, job.kind, *job.options, *routes]


def _nats_py_uvloop(job: Job) -> list[str]:
    return [str(peer_python()), str(PEERS / "nats_py.py"), job.url, job.kind, "--uvloop"]


def _in_go(name: str, note: str) -> Contestant:
    """Return a contestant written in Go; it is built where Go is installed."""
    program = GO_PEERS / name

    def command(job: Job) -> list[str]:
        options = ["-to", job.to] if job.to else []
        # Only nats_go can read several.
        options += ["-sources", str(job.sources)] if job.sources else []
        return [str(program), *options, job.url, job.kind]

    return Contestant(name, frozenset({CORE, HANDLED, STREAM}), command, note, needs=program)


def _in_python(name: str, kinds: frozenset[str], script: str, note: str, *, window: int = WINDOW) -> Contestant:
    """Return a contestant based on a package in the peers' environment."""

    def command(job: Job) -> list[str]:
        return [str(peer_python()), str(PEERS / script), job.url, job.kind, *([job.to] if job.to else [])]

    return Contestant(name, kinds, command, note, window, needs=peer_package(name))


CONTESTANTS = {
    contestant.name: contestant
    for contestant in (
        Contestant("router_trio", frozenset({CORE, HANDLED, STREAM}), _router_trio),
        Contestant(
            "router_trio_compiled",
            frozenset({CORE, HANDLED, STREAM}),
            _compiled(ROOT),
            needs=ROOT / COMPILED,
        ),
        *_before(),
        Contestant("raw", frozenset({CORE, HANDLED, STREAM}), _raw, "the limit: no bookkeeping at all"),
        Contestant("nats_py", frozenset({CORE, HANDLED, STREAM}), _nats_py, "asyncio"),
        Contestant("nats_py_uvloop", frozenset({CORE, HANDLED, STREAM}), _nats_py_uvloop, "uvloop"),
        _in_go("nats_go", "a loop on nats.go"),
        _in_go("watermill", "Go; one message at a time"),
        _in_python("faststream", frozenset({CORE, HANDLED}), "faststream_core.py", "on nats-py"),
        _in_python("natsio", frozenset({CORE, HANDLED}), "natsio_core.py", "drops from about 2,000", window=512),
        _in_python("mq_bridge", frozenset({CORE, HANDLED, STREAM}), "mq_bridge_route.py", "Rust; one subject"),
    )
}


def taking_part(kind: str, *, essential: bool) -> list[Contestant]:
    """Return the available contestants for a kind of job; with `essential` only those of a quick run."""
    compared = {"router_trio_compiled", *(contestant.name for contestant in _before())} if BEFORE else set()
    names = [name for name in CONTESTANTS if not essential or name in QUICK or name in compared]
    able = [CONTESTANTS[name] for name in names if kind in CONTESTANTS[name].kinds]
    return [contestant for contestant in able if contestant.is_there]
