"""Writes the reference pages from the code: `python docs/reference/generate.py`.

Configuration, metrics, log codes and commands are known to the code already. A page that repeats them by hand would
be wrong after the next change; these pages are made, committed, and compared with the code by a test.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from router_trio.cli.contract import collect
from router_trio.events import catalogue
from router_trio.settings import json_schema

HERE = Path(__file__).parent
MADE_BY = "<!-- Made by `python docs/reference/generate.py`. Change the code, not this page. -->"
WIDTH = "80"
"""Columns of the help texts: as in a terminal, whatever the terminal here is."""

PREFIXES = {
    "RouterSettings": "ROUTER__",
    "TelemetrySettings": "TELEMETRY__",
    "ConnectionSettings": "CONNECTIONS__NAME__",
    "RouteSettings": "ROUTES__0__",
    "SourceSettings": "ROUTES__0__FROM__",
    "DestinationSettings": "ROUTES__0__TO__0__",
}
"""Of the environment variables, in the order of the sections; what else the schema has comes after them."""


def pages() -> dict[str, str]:
    """Every reference page, by file name."""
    contract = collect()
    return {
        "commands.md": _page(_commands()),
        "configuration.md": _page(_configuration(json_schema())),
        "logs.md": _page(_logs(contract["logs"])),
        "metrics.md": _page(_metrics(contract["metrics"])),
    }


def _page(lines: Iterable[str]) -> str:
    title, *rest = lines
    return "\n".join([title, "", MADE_BY, "", *rest]).rstrip() + "\n"


# --- configuration ---


def _configuration(schema: Mapping[str, Any]) -> Iterator[str]:
    yield "# Configuration"
    yield from (
        "One TOML file, `router.toml` by default. `router-trio schema` prints the same as JSON Schema, for editors;",
        "`router-trio check router.toml` says what is wrong with a file.",
        "",
        "Durations are written `500ms`, `30s`, `5m` or `1h`; sizes `512KiB` or `64MiB`. Every key can be set by the",
        "environment as well: `ROUTER_TRIO_` and the path of the key, with `__` between its parts, in capitals. Lists",
        "and tables as a whole are JSON there: `ROUTER_TRIO_CONNECTIONS__MAIN__SERVERS='[\"nats://10.0.0.5:4222\"]'`.",
        "Only a key without a default has to be given.",
    )
    for definition in dict.fromkeys((*PREFIXES, *schema["$defs"])):
        section = schema["$defs"][definition]
        # A section's description begins with what it is called in the file.
        heading, _, about = section["description"].partition(": ")
        yield from ("", f"## {heading}", "", f"{about[:1].upper()}{about[1:]}", "")
        if definition in PREFIXES:
            yield from (f"Environment: `ROUTER_TRIO_{PREFIXES[definition]}...`", "")
        yield "| key | type | default | what it is |"
        yield "|---|---|---|---|"
        required = section.get("required", ())
        for key, one in section["properties"].items():
            default = "required" if key in required else _code(_toml(one["default"])) if "default" in one else ""
            yield f"| `{key}` | {_type(one)} | {default} | {_cell(one.get('description', ''))} |"


def _type(one: Mapping[str, Any]) -> str:
    if "enum" in one:
        return " or ".join(_code(_toml(value)) for value in one["enum"])
    if "$ref" in one:
        return "table"
    if one.get("type") == "array":
        return "list of tables" if "$ref" in one["items"] else f"list of {one['items']['type']}s"
    known = {"path": "path", "password": "string (secret)"}
    kind = one.get("type", "string")
    spelled = kind if isinstance(kind, str) else " or ".join(kind)
    described = known.get(str(one.get("format")), spelled)
    least, most = one.get("minimum"), one.get("maximum")
    if least is not None and most is not None:
        return f"{described}, {least} to {most}"
    return described if least is None else f"{described}, at least {least}"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


# --- metrics and log codes ---


def _metrics(metrics: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    yield "# Metrics"
    yield from (
        "What `/metrics` shows, in the Prometheus text format. `router-trio contract --json` prints the same for",
        "programs. Every series whose labels are known beforehand exists from the start, at zero.",
        "",
        "| name | type | labels | what it is |",
        "|---|---|---|---|",
    )
    for one in metrics:
        labels = ", ".join(_code(label) for label in one["labels"])
        yield f"| `{one['name']}` | {one['type']} | {labels} | {_cell(one['help'])} |"


def _logs(logs: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    yield "# Log codes"
    yield from (
        "Each line on stderr is one JSON object with `timestamp`, `level`, `message` and `error_code`. The other",
        "fields depend on the code. With traces switched on, lines that belong to an outage also have `trace_id` and",
        "`span_id`. What can happen for every message is logged at most once a second for each code and connection or",
        "route; `count` says how many it stands for. No line holds a payload or a credential.",
        "",
        "| `error_code` | level | fields | when |",
        "|---|---|---|---|",
    )
    known = {kind.code: [one.name for one in fields(kind) if one.name != "at"] for kind in catalogue()}
    for one in logs:
        own = ", ".join(_code(name) for name in known.get(one["code"], ()))
        yield f"| `{one['code']}` | {one['level']} | {own} | {_cell(one['help'])} |"


# --- commands ---


def _commands() -> Iterator[str]:
    yield "# Commands"
    yield from (
        "What `router-trio` and each of its commands says with `--help`. Results go to stdout, logs and errors to",
        "stderr. `python -m router_trio` is the same as `router-trio`.",
    )
    yield from ("", "## `router-trio`", "", "```text", *help_of().splitlines(), "```")
    for name in command_names():
        yield from ("", f"## `router-trio {name}`", "", "```text", *help_of(name).splitlines(), "```")


def command_names() -> list[str]:
    """The commands that there are, in the order of `--help`."""
    from router_trio.cli import app

    return [name for name in app if not name.startswith("-")]


def help_of(*command: str) -> str:
    """What a command says with `--help`. Runs it; blocks for a moment."""
    environment = {**os.environ, "COLUMNS": WIDTH, "PYTHONPATH": str(HERE.parents[1])}
    run = [sys.executable, "-m", "router_trio", *command, "--help"]
    done = subprocess.run(run, capture_output=True, text=True, check=True, env=environment)
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    for file_name, text in pages().items():
        (HERE / file_name).write_text(text, encoding="utf-8")
        print(HERE / file_name)
