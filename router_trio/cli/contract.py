"""`router-trio contract`: list the metrics and log codes that dashboards and alerts can rely on, read from the code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from router_trio.cli.command_line import DONE, Parser
from router_trio.cli.output import show, show_json


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `contract`."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def contract(*, json: bool) -> int:
    """List the metrics and the log codes of this version.

    For example:

        router-trio contract
        router-trio contract --json
    """
    found = collect()
    if json:
        show_json(found, indent=2)
    else:
        show(*_lines(found))
    return DONE


def collect() -> dict[str, list[dict[str, Any]]]:
    """Return `metrics` (name, type, labels, help) and `logs` (code, level, help), read from the code."""
    from router_trio.telemetry.logs.lines import log_codes
    from router_trio.telemetry.metrics.table import TABLE

    metrics = [
        {"name": metric.name, "type": metric.kind, "labels": list(metric.labels), "help": metric.help}
        for metric in TABLE
    ]
    logs = [{"code": log.code, "level": log.level, "help": log.help} for log in log_codes()]
    return {"metrics": metrics, "logs": logs}


def _lines(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    yield "METRICS"
    width = max(len(metric["name"]) for metric in found["metrics"])
    for metric in found["metrics"]:
        yield f"{metric['name']:{width}}  {metric['type']:9}  {', '.join(metric['labels'])}"
        yield f"    {metric['help']}"
    yield ""
    yield "LOG CODES"
    width = max(len(log["code"]) for log in found["logs"])
    for log in found["logs"]:
        yield f"{log['code']:{width}}  {log['level']:5}  {log['help']}"
