"""Writes the reference pages from the code: `python docs/reference/generate.py`.

The code knows its configuration, metrics, log codes, commands, limits and public API, so a page that repeats them by
hand would be wrong after the next change. These pages are generated, committed, and compared with the code by a test.
`python_api.py` makes the page of the public API, and `limits.py` that of the limits, from `limits.in`.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from router_trio.cli.contract import collect
from router_trio.errors.codes import Asked, rows
from router_trio.events import catalogue
from router_trio.expressions.language.parser import MACROS
from router_trio.expressions.language.signatures import FUNCTIONS, OPERATORS, Function, Overload
from router_trio.expressions.language.types import TYPE_NAMES, spelled
from router_trio.expressions.message import MESSAGE_VARIABLES, STREAM_VARIABLES
from router_trio.protocol.permissions import OF_COMMANDS, PERMISSIONS
from router_trio.settings import json_schema

HERE = Path(__file__).parent
MADE_BY = "<!-- Made by `python docs/reference/generate.py`. Change the code, not this page. -->"
TROUBLESHOOTING = "../operations/troubleshooting.md"
BEGIN, END = "<!-- begin: made by `python docs/reference/generate.py` -->", "<!-- end -->"
WIDTH = "80"
"""Columns of the help texts, independent of the terminal."""

PREFIXES = {
    "RouterSettings": "ROUTER__",
    "TelemetrySettings": "TELEMETRY__",
    "ConnectionSettings": "CONNECTIONS__NAME__",
    "RouteSettings": "ROUTES__0__",
    "SourceSettings": "ROUTES__0__FROM__",
    "RetrySettings": "ROUTES__0__RETRY__",
    "DeadLetterSettings": "ROUTES__0__DEAD_LETTER__",
    "LimitSettings": "ROUTES__0__LIMIT__",
    "DestinationSettings": "ROUTES__0__TO__0__",
    "HeaderSettings": "ROUTES__0__TO__0__HEADERS__",
    "BreakerSettings": "ROUTES__0__TO__0__BREAKER__",
    "StreamSettings": "STREAMS__0__",
    "ExampleSettings": "TESTS__0__",
    "ExampleMessage": "TESTS__0__MESSAGE__",
    "ExpectedMessage": "TESTS__0__EXPECT__0__",
}
"""Prefixes of the environment variables, in the order of the sections. Other sections of the schema follow."""


def pages() -> dict[str, Callable[[], str]]:
    """Return a function that makes each reference page, by file name; some take a second."""
    made: dict[str, Callable[[], Iterable[str]]] = {
        "commands.md": _commands,
        "configuration.md": lambda: _configuration(json_schema()),
        "expressions.md": _expressions,
        "logs.md": lambda: _logs(collect()["logs"]),
        "metrics.md": lambda: _metrics(collect()["metrics"]),
        "permissions.md": _permissions,
        "python.md": lambda: runpy.run_path(str(HERE / "python_api.py"))["lines"](),
        "../explanation/limits.md": lambda: runpy.run_path(str(HERE / "limits.py"))["lines"](),
    }
    return {name: partial(_page, lines) for name, lines in made.items()} | {TROUBLESHOOTING: _troubleshooting}


def _troubleshooting() -> str:
    """Return the page as it is, with the tables of the error codes between their marks."""
    before, begin, rest = (HERE / TROUBLESHOOTING).read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    return "\n".join([before + begin, "", *_codes(), "", end + after])


def _codes() -> Iterator[str]:
    for asked in Asked:
        yield from (
            f"In the answer to {asked.value}:",
            "",
            "| code | the server | for a route | cure |",
            "|---|---|---|---|",
        )
        for one in rows([asked]):
            yield f"| {one.number} | {_cell(one.words)} | {_cell(one.means)} | {_cell(one.change)} |"
        if asked is not tuple(Asked)[-1]:
            yield ""


def _page(lines: Callable[[], Iterable[str]]) -> str:
    title, *rest = lines()
    return "\n".join([title, "", MADE_BY, "", *rest]).rstrip() + "\n"


# --- configuration ---


def _configuration(schema: Mapping[str, Any]) -> Iterator[str]:
    yield "# Configuration"
    yield from (
        "One TOML file, `router.toml` by default, or [several](../how-to/several-files.md). `router-trio schema`",
        "prints the same as JSON Schema, for editors; `router-trio check router.toml` reports the errors of a file.",
        "",
        "Write durations as `500ms`, `30s`, `5m` or `1h`, and sizes as `512KiB` or `64MiB`. Every key can also be set",
        "in the environment: `ROUTER_TRIO_` and the path of the key, in capitals, with `__` between its parts. Write a",
        "list or a table there as JSON: `ROUTER_TRIO_CONNECTIONS__MAIN__SERVERS='[\"nats://10.0.0.5:4222\"]'`.",
        "",
        "Expressions are [CEL](expressions.md). These pages explain what each strategy guarantees:",
        "[all and first_match](../how-to/route-by-content.md), [weighted](../how-to/split-by-weight.md),",
        "[sticky](../how-to/sticky.md), [fallback](../how-to/fallback.md). See also [mirrors](../how-to/mirror.md),",
        "[transforms](../how-to/transform.md), [limits](../how-to/limit-the-rate.md),",
        "[breakers](../how-to/circuit-breaker.md), and [concurrency and order by key](../how-to/concurrency.md).",
    )
    for definition in dict.fromkeys((*PREFIXES, *schema["$defs"])):
        section = schema["$defs"][definition]
        # A section's description begins with its name in the file.
        heading, _, about = section["description"].partition(": ")
        yield from ("", f"## {heading}", "", f"{about[:1].upper()}{about[1:]}", "")
        if definition in PREFIXES:
            yield from (f"Environment: `ROUTER_TRIO_{PREFIXES[definition]}...`", "")
        yield "| key | type | default | description |"
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
    if "anyOf" in one:
        return " or ".join(_type(each) for each in one["anyOf"])
    if "type" not in one:
        return "any JSON"
    if one["type"] == "array":
        return "list of tables" if "$ref" in one["items"] else f"list of {one['items']['type']}s"
    if one["type"] == "object" and "additionalProperties" in one and "$ref" not in one["additionalProperties"]:
        return f"table of {one['additionalProperties']['type']}s"
    known = {"path": "path", "password": "string (secret)"}
    kind = one.get("type", "string")
    spelled = kind if isinstance(kind, str) else " or ".join(kind)
    described = known.get(str(one.get("format")), spelled)
    least, most = one.get("minimum"), one.get("maximum")
    if "exclusiveMinimum" in one:
        return f"{described}, more than {one['exclusiveMinimum']}, at most {most}"
    if least is not None and most is not None:
        return f"{described}, {least} to {most}"
    return described if least is None else f"{described}, at least {least}"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


# --- expressions ---

_VARIABLES = {
    "subject": "the subject of the message",
    "tokens": "the tokens of the subject, which dots separate",
    "headers": "the first value of each header; names are case-sensitive",
    "body": "the payload decoded as JSON, when an expression first reads it",
    "payload": "the payload in bytes, not decoded",
    "size": "the size of the payload, in bytes",
    "stream": "the name of the stream",
    "sequence": "the sequence of the message in its stream",
    "deliveries": "the number of deliveries of the message, 1 for the first",
    "time": "the time at which the stream stored the message",
}
_MACROS = {
    "has(a.b)": "True if the map `a` has the key `b`. Fails if `a` itself is missing.",
    "a.all(x, p)": "True if p holds for every element of a list, or every key of a map.",
    "a.exists(x, p)": "True if p holds for at least one element or key.",
    "a.exists_one(x, p)": "True if p holds for exactly one element or key.",
    "a.filter(x, p)": "The elements or keys for which p holds, as a list.",
    "a.map(x, t)": "The values of t for all elements or keys, as a list.",
    "a.map(x, p, t)": "The values of t for the elements or keys for which p holds, as a list.",
}


def _expressions() -> Iterator[str]:
    assert {name.partition("(")[0].removeprefix("a.") for name in _MACROS} == {"has", *MACROS}
    yield "# Expressions"
    yield from (
        "Expressions are [CEL](https://cel.dev), the Common Expression Language. They are checked when the router",
        "starts, and have no side effects. An expression that fails on a message (a key is missing, a type is wrong,",
        "or the body is not JSON) has no value; a failure never counts as false.",
        "[Conformance to CEL](../explanation/expressions.md) lists what is not supported, and",
        "[Limits](../explanation/limits.md#expressions) their limits.",
        "",
        "## Variables",
        "",
        "| name | type | value |",
        "|---|---|---|",
    )
    for name, kind in STREAM_VARIABLES.items():
        where = "" if name in MESSAGE_VARIABLES else "; only for messages from a stream"
        yield f"| `{name}` | {spelled(kind)} | {_VARIABLES[name]}{where} |"
    yield from (
        "",
        "A number in the body without fraction and exponent is an int if it fits into 64 bits, else a double. The",
        "keys of `body` and `headers` are not known in advance: their values have the types `dyn` and string.",
        "",
        "## Types",
        "",
        ", ".join(_code(name) for name in TYPE_NAMES) + " and `dyn`, a type that is known only when a message",
        "is evaluated, and is accepted everywhere.",
        "",
        "## Operators",
        "",
        "In order of precedence, lowest first. Numbers of different types can be compared but not added: convert one,",
        "as in `double(size) * 1.5`.",
    )
    yield from _functions(OPERATORS, lambda function, _: function.shown)
    yield from (
        "",
        "`a && b` and `a || b` have a value if one side alone decides, even if the other side fails.",
        "",
        "## Macros",
        "",
        "| macro | value |",
        "|---|---|",
    )
    yield from (f"| `{name}` | {about} |" for name, about in _MACROS.items())
    yield from ("", "## Functions")
    yield from _functions(FUNCTIONS, lambda function, one: _call(function, one))


def _functions(functions: Iterable[Function], shown: Callable[[Function, Overload], str]) -> Iterator[str]:
    yield from ("", "| written | takes | gives | description |", "|---|---|---|---|")
    for function in functions:
        about = _cell(function.about)
        # One row for each spelling and result type; argument types share a row.
        rows: dict[tuple[str, str], list[str]] = {}
        for one in function.overloads:
            takes = ", ".join(map(spelled, one.takes))
            rows.setdefault((shown(function, one), spelled(one.gives)), []).append(takes)
        for (written, gives), taken in rows.items():
            yield f"| {_code(_cell(written))} | {'; '.join(dict.fromkeys(taken))} | {gives} | {about} |"
            about = ""


def _call(function: Function, one: Overload) -> str:
    names = [*"abcd"[: len(one.takes)], *["..."] * one.repeats]
    if one.method:
        return f"a.{function.name}({', '.join(names[1:])})"
    return f"{function.name}({', '.join(names)})"


# --- metrics and log codes ---


def _metrics(metrics: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    yield "# Metrics"
    yield from (
        "`/metrics` exposes these metrics in the Prometheus text format. `router-trio contract --json` lists them for",
        "programs. Series whose labels are known in advance exist from the start, at zero. Those of",
        "`router_messages_given_up_total` begin with the first event on a route where each failure loses its message.",
        "",
        "| name | type | labels | description |",
        "|---|---|---|---|",
    )
    for one in metrics:
        labels = ", ".join(_code(label) for label in one["labels"])
        yield f"| `{one['name']}` | {one['type']} | {labels} | {_cell(one['help'])} |"


def _logs(logs: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    yield "# Log codes"
    yield from (
        "Each line on stderr is one JSON object with `timestamp`, `level`, `message`, `error_code`, and the fields of",
        'the code. On a terminal, or with `log_format = "console"`, a line has the time, level and message, and then',
        "the fields. With traces enabled, lines that belong to an outage also have `trace_id` and `span_id`. An event",
        "that can happen for every message is logged at most once a second for each code and connection or route, and",
        "`count` is the number of messages that the line covers. No line contains a payload or a credential.",
        "",
        "| `error_code` | level | fields | when |",
        "|---|---|---|---|",
    )
    known = {kind.code: [name for name in kind.fields if name not in kind.not_logged] for kind in catalogue()}
    for one in logs:
        own = ", ".join(_code(name) for name in known.get(one["code"], ()))
        yield f"| `{one['code']}` | {one['level']} | {own} | {_cell(one['help'])} |"


# --- permissions ---


def _permissions() -> Iterator[str]:
    yield "# Permissions"
    yield from (
        "The permissions that the user of a connection needs, what the router sends with each, and what you see when",
        "the server refuses it. [`router-trio permissions`](commands.md#router-trio-permissions) prints those of a",
        "configuration. Names in braces are those of the configuration; `{api}` is `$JS.API` unless the connection has",
        "a `domain` or an `api_prefix`, `{kv}` is `$KV` unless it has one, else `$KV` below `{api}`, and `{domain}` is",
        "`*` unless it has a `domain`. A refusal of what routes need is logged and counted for what caused it, and",
        "`/readyz` names it until the server accepts the same operation again.",
        "Granting a permission needs no restart. The router works without the optional permissions, but can report",
        "less.",
        "",
        "[nats-permissions.conf](../deploy/nats-permissions.conf) is an example for a server.",
        "",
        "When a server that maps subjects refuses a publish, it names the mapped subject, which the router does not",
        "know. All core publishes in flight then fail (`NATS_REFUSAL_NOT_ATTRIBUTED`), so that a publish that may have",
        "been refused never counts as sent.",
        "",
    )
    for kind in ("publish", "subscribe"):
        yield from (f"## To {kind}", "", "| subject | used for | needed by | without it |", "|---|---|---|---|")
        for one in PERMISSIONS:
            if one.kind == kind:
                needed = f"{one.needed} (optional)" if one.optional else one.needed
                yield f"| `{one.subject}` | {_cell(one.sends + one.details)} | {_cell(needed)} | {_cell(one.refused)} |"
        yield ""
    yield from (
        "## Commands",
        "",
        "What the user of a command must be allowed to publish, on the connections of the source, the destinations and",
        "the dead letters of the route. It must also be allowed to subscribe to `{inbox_prefix}.>` on each of them. A",
        "command that is refused ends with an error that names the subject. `{target}` is the stream of the copies,",
        "`{letters}` that of the dead letters, and `{retries}` that of scheduled retries, which the durable `{due}`",
        "reads. Those of dead letters are needed by routes that have them. With",
        "`redrive --to-source` the source is the destination. `check --online` needs what `router-trio permissions`",
        "prints: it tests the permissions of the router, and reports each one that is missing.",
        "[Its option `--for`](../how-to/commands-as-another-user.md) fills in the names of a configuration.",
        "",
        "| command | connection | subject | used for |",
        "|---|---|---|---|",
    )
    for command, needs in OF_COMMANDS.items():
        for need in needs:
            used = f"{need.sends} (optional)" if need.optional else need.sends
            yield f"| `{command}` | {need.at} | `{need.subject}` | {_cell(used)} |"


# --- commands ---


def _commands() -> Iterator[str]:
    yield "# Commands"
    yield from (
        "The help of `router-trio` and its commands. Results are written to stdout, logs and errors to stderr.",
        "`python -m router_trio` is the same as `router-trio`.",
    )
    yield from ("", "## `router-trio`", "", "```text", *help_of().splitlines(), "```")
    for name in command_names():
        yield from ("", f"## `router-trio {name}`", "", "```text", *help_of(name).splitlines(), "```")


def command_names() -> list[str]:
    """Return the names of all commands, in the order of `--help`."""
    from router_trio.cli.command_line import COMMANDS

    return [*COMMANDS]


def help_of(*command: str) -> str:
    """Run a command with `--help` and return its output."""
    environment = {**os.environ, "COLUMNS": WIDTH, "PYTHONPATH": str(HERE.parents[1])}
    run = [sys.executable, "-m", "router_trio", *command, "--help"]
    done = subprocess.run(run, capture_output=True, text=True, check=True, env=environment)
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    for file_name, make in pages().items():
        (HERE / file_name).write_text(make(), encoding="utf-8")
        print(HERE / file_name)
