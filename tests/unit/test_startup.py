"""What the commands that must start fast may not import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {
    "trio",
    "trio_asyncio",
    "asyncio",
    "nats",
    "opentelemetry",
    "structlog",
    "starlette",
    "hypercorn",
    "prometheus_client",
}
PROBE = """
import sys
from router_trio.cli import main
code = main(sys.argv[2:])
loaded = sorted(set(sys.argv[1].split(",")) & set(sys.modules))
print(f"exit code {code}, loaded {loaded}", file=sys.stderr)
"""
CONFIG = """
[connections.main]
servers = ["nats://127.0.0.1:4222"]
[[routes]]
name = "orders"
from = { subject = "orders.*" }
to = [ { subject = "eu.{{wildcard(1)}}" } ]
"""


@pytest.mark.parametrize(
    ("arguments", "more"),
    [
        (["--help"], {"pydantic"}),
        (["run", "--help"], {"pydantic"}),
        (["--version"], {"pydantic"}),
        (["check", "CONFIG"], {"rich", "pydantic_settings"}),
        (["explain", "CONFIG", "orders.7"], {"rich", "pydantic_settings"}),
        (["schema"], {"rich", "pydantic_settings"}),
    ],
)
def test_heavy_packages_are_not_imported(arguments: list[str], more: set[str], tmp_path: Path) -> None:
    config = tmp_path / "router.toml"
    config.write_text(CONFIG)
    given = [str(config) if argument == "CONFIG" else argument for argument in arguments]
    done = subprocess.run(
        [sys.executable, "-c", PROBE, ",".join(HEAVY | more), *given], capture_output=True, text=True, cwd=ROOT
    )
    assert done.stderr.splitlines()[-1] == "exit code 0, loaded []"
