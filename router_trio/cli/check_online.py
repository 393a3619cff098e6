"""The online part of `router-trio check`: ask the servers, and print what would fail, lose or double there."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

from router_trio.cli.command_line import DONE, FAILED, INVALID_CONFIGURATION
from router_trio.cli.output import show, show_json
from router_trio.errors import ConfigurationError, LinkError, Problem

if TYPE_CHECKING:
    from router_trio.nats.command_link import CommandLink
    from router_trio.online.report import Report
    from router_trio.settings import Settings


MOST_NAMED = 8
"""Findings that are named for a server that could not be asked: one that is away lacks all of them."""


def check_servers(settings: Settings, outage: float | None, json: bool) -> int:
    """Ask the servers of a valid configuration, print the findings, and return the exit code."""
    import trio

    from router_trio.cli.over_links import over_links

    settings.require_servers()
    return trio.run(over_links, settings, "check", (), partial(_job, settings, outage, json), lambda number: True)


async def _job(settings: Settings, outage: float | None, json: bool, links: Mapping[str, CommandLink]) -> int:
    from router_trio.nats.command_link import open_links
    from router_trio.online.asking import ask
    from router_trio.online.facts import Unknown
    from router_trio.online.report import report_of

    unreachable: dict[str, Unknown] = {}
    for name in settings.connections:
        try:
            async with open_links(settings, "check", [name]) as found:
                await found[name].link.fence()
        except LinkError as error:
            unreachable[name] = Unknown(str(error))
    async with AsyncExitStack() as stack:
        reached = [name for name in settings.connections if name not in unreachable]
        opened = await stack.enter_async_context(open_links(settings, "check", reached))
        facts = await ask(settings, opened, unreachable, outage)
    report = report_of(facts)
    _print(settings, report, json)
    if report.is_bad:
        return INVALID_CONFIGURATION
    return FAILED if report.missing else DONE


def _print(settings: Settings, report: Report, json: bool) -> None:
    found = [(settings.located(Problem(one.path, one.text)), one) for one in report.findings]
    found.sort(key=lambda pair: pair[0].line or inf)
    missing = [(settings.located(Problem(one.path, one.why)), one) for one in report.missing]
    if json:
        findings = [
            {"name": one.name, "severity": one.severity} | _as_json(settings.source, problem) for problem, one in found
        ]
        left_out = [_as_json(settings.source, problem) | {"findings": list(one.names)} for problem, one in missing]
        show_json({"findings": findings, "missing": left_out, "unseen": list(report.unseen)}, indent=2)
        return
    for problem, one in found:
        show(f"{_place(settings, problem)}: {one.severity}: {problem.with_place}")
    for problem, left in missing:
        show(f"{_place(settings, problem)}: not asked: {problem.with_place}")
        if len(left.names) > MOST_NAMED:
            show(f"  {len(left.names)} findings are missing for it; --json names them")
        else:
            show(f"  findings that are missing for it: {', '.join(left.names)}")
    for text in report.unseen:
        show(f"not seen: {text}")
    counts = {severity: sum(one.severity == severity for _, one in found) for severity in ("error", "warning", "note")}
    counted = ", ".join(f"{number} {severity}{'s' * (number != 1)}" for severity, number in counts.items())
    show(f"online: {counted}{', not everything was asked' * bool(missing)}")


def print_problems(error: ConfigurationError) -> None:
    """Print the problems of an invalid configuration as JSON, in the form of findings."""
    findings = [
        {"name": "configuration", "severity": "error"} | _as_json(error.source, problem) for problem in error.problems
    ]
    show_json({"findings": findings, "missing": [], "unseen": []}, indent=2)


def _as_json(source: str, problem: Problem) -> dict[str, Any]:
    return {
        "file": problem.source or source,
        "key": problem.path,
        "line": problem.line,
        "message": problem.message,
    }


def _place(settings: Settings, problem: Problem) -> str:
    return f"{problem.source or settings.source}: {problem.path}"
