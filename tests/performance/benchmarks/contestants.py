"""Who takes part: how each contestant is started, and in which workloads.

Every one routes `in.TOKEN` to `out.TOKEN` in a process of its own. `raw` is no router: it is the limit, a loop that
does the I/O and no more.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.performance.benchmarks.environment import COMPILED, PEERS, ROOT, peer_python

HANDLER = "tests.performance.benchmarks.peers.shouting:shout"
CORE = "core"
HANDLED = "handler"
STREAM = "stream"
ROUTES = {
    CORE: 'from = { subject = "in.*" }\nto = [ { subject = "out.{{wildcard(1)}}" } ]',
    HANDLED: f'handler = "{HANDLER}"\nfrom = {{ subject = "in.*" }}\n'
    'to = [ { subject = "out.{{wildcard(1)}}" } ]',
    STREAM: 'from.stream = "IN"\nfrom.durable = "bench"\nfrom.filter = "in.*"\n'
    'to = [ { subject = "out.{{wildcard(1)}}", jetstream = true } ]',
}
"""What router_trio is told for each kind of job."""
BY_CONTENT = frozenset({"header", "body", "first-match", "weighted", "sticky", "payload"})
"""Jobs of routes that look at what comes."""
CONTENT = {
    "nats_py": BY_CONTENT,
    "faststream": frozenset({"header", "body"}),
    "mq_bridge": frozenset({"header", "first-match"}),
}
"""Who does which of them, besides router_trio."""
CONTENT_PEERS = tuple(CONTENT)


@dataclass(frozen=True)
class Job:
    """What a contestant is to do. `directory` is for its files; `collector` is where router_trio sends its spans, if it
    is to make any, of `sampled` of the messages, and `routes` are TOML for it; `options` are for nats_py.
    """

    url: str
    kind: str
    directory: Path
    collector: str = ""
    sampled: float = 0.01
    routes: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contestant:
    """One of them. `note` says what makes it differ from the others."""

    name: str
    kinds: frozenset[str]
    command: Callable[[Job], list[str]]
    note: str = ""
    window: int = 16_384
    """Messages under way at most: what it can be sent without losing any."""


def write_configuration(job: Job) -> Path:
    """router_trio's configuration: metrics and traces on, everything else as it is by default."""
    path = job.directory / "router.toml"
    routes = job.routes or f'[[routes]]\nname = "bench"\n{ROUTES[job.kind]}\n'
    path.write_text(
        f'[telemetry]\nlisten = "127.0.0.1:0"\n'
        f'otlp_endpoint = "{job.collector}"\ntrace_sample_ratio = {job.sampled}\n'
        f'[connections.main]\nservers = ["{job.url}"]\n{routes}'
    )
    return path


def _router_trio(job: Job) -> list[str]:
    return [sys.executable, "-m", "router_trio", "run", str(write_configuration(job))]


def _router_trio_compiled(job: Job) -> list[str]:
    # The current directory and PYTHONPATH's root have the pure package as well: the compiled one comes first.
    return ["env", "PYTHONSAFEPATH=1", f"PYTHONPATH={COMPILED}:{ROOT}", *_router_trio(job)]


def _raw(job: Job) -> list[str]:
    script = "raw_stream.py" if job.kind == STREAM else "raw_core.py"
    return [sys.executable, str(PEERS / script), job.url, *(["--handler"] if job.kind == HANDLED else [])]


def _nats_py(job: Job) -> list[str]:
    # The client that router_trio itself is tested with, in the same environment.
    return [sys.executable, str(PEERS / "nats_py.py"), job.url, job.kind, *job.options]


def _nats_py_uvloop(job: Job) -> list[str]:
    return [str(peer_python()), str(PEERS / "nats_py.py"), job.url, job.kind, "--uvloop"]


def _peer(script: str) -> Callable[[Job], list[str]]:
    return lambda job: [str(peer_python()), str(PEERS / script), job.url, job.kind]


CONTESTANTS = {
    contestant.name: contestant
    for contestant in (
        Contestant("router_trio", frozenset({CORE, HANDLED, STREAM}), _router_trio),
        Contestant("router_trio_compiled", frozenset({CORE, HANDLED, STREAM}), _router_trio_compiled),
        Contestant("raw", frozenset({CORE, HANDLED, STREAM}), _raw, "the limit: no bookkeeping at all"),
        Contestant("nats_py", frozenset({CORE, HANDLED, STREAM}), _nats_py, "asyncio"),
        Contestant("nats_py_uvloop", frozenset({CORE, HANDLED, STREAM}), _nats_py_uvloop, "uvloop"),
        Contestant("faststream", frozenset({CORE, HANDLED}), _peer("faststream_core.py"), "on nats-py"),
        Contestant("natsio", frozenset({CORE, HANDLED}), _peer("natsio_core.py"), "drops from about 2,000", 512),
        Contestant("mq_bridge", frozenset({CORE, HANDLED, STREAM}), _peer("mq_bridge_route.py"), "Rust; one subject"),
    )
}


def taking_part(kind: str, *, essential: bool) -> list[Contestant]:
    """Those that can do a kind of job; only router_trio, nats-py and the limit if that is to be enough."""
    some = ("router_trio", "nats_py", "raw") if essential else tuple(CONTESTANTS)
    absent = () if COMPILED.exists() else ("router_trio_compiled",)
    return [CONTESTANTS[name] for name in some if kind in CONTESTANTS[name].kinds and name not in absent]
