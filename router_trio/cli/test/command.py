"""`router-trio test`: run the tests in a configuration."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from router_trio.cli.command_line import DONE, FAILED, Parser, UsageError
from router_trio.cli.configuration import load_with_handlers
from router_trio.cli.output import show, show_json
from router_trio.terminals import printable

if TYPE_CHECKING:
    from router_trio.cli.test.example_run import Result
    from router_trio.settings.examples import ExampleSettings

_HINT = """\
{config} has no [[tests]]. Add one, such as

    [[tests]]
    name = "an order goes to Europe"
    message = {{ subject = "orders.7.created", json = {{ id = "7" }} }}
    expect = [ {{ subject = "eu.7", json = {{ id = "7" }} }} ]"""

_STYLES = {"ok": "green", "FAILED": "red", "-": "red", "+": "green"}


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `test`."""
    parser.add_configurations(required=True)
    parser.add_argument("--only", metavar="NAME", help="run only the test of this name")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_tests(configs: Sequence[Path], *, only: str | None, json: bool) -> int:
    """Run the [[tests]] of a configuration.

    Each test starts a router with all routes on fake brokers in memory,
    publishes the message of the test, and compares the messages that the
    router sends with the expected ones: - marks a line that is missing, and
    + one that was not expected. If a message failed, the reason is printed,
    even if nothing was expected. Handlers are imported and called; nothing
    is connected, and time is simulated. The exit code is 1 if a test
    failed.

    For example:

        router-trio test router.toml
        router-trio test router.toml --only "an order goes to Europe"
    """
    settings = load_with_handlers(*configs)
    examples = _chosen(configs[0], settings.tests, only)
    from router_trio.cli.test.example_run import run_examples

    gc.enable()  # see `__main__`
    results = []
    for result in run_examples(settings, examples):
        results.append(result)
        if not json:
            _print(_lines(result))
    failed = sum(not result.passed for result in results)
    if json:
        show_json({"tests": [result.as_json() for result in results]}, indent=2)
    else:
        _print([f"{len(results) - failed} passed, {failed} failed"])
    return FAILED if failed else DONE


def _chosen(config: Path, examples: Sequence[ExampleSettings], only: str | None) -> Sequence[ExampleSettings]:
    if not examples:
        raise UsageError(_HINT.format(config=config))
    if only is None:
        return examples
    chosen = [example for example in examples if example.name == only]
    if not chosen:
        from router_trio.settings.problems import suggestion

        raise UsageError(
            f"--only {only!r}: there is no test of this name; {suggestion(only, [one.name for one in examples])}"
        )
    return chosen


def _lines(result: Result) -> Iterable[str]:
    yield f"{'ok' if result.passed else 'FAILED':6}  {result.example.name}"
    for line in result.difference or result.failures:
        yield f"    {line}".rstrip()


def _print(lines: Iterable[str]) -> None:
    if not sys.stdout.isatty():
        for line in lines:
            show(line, flush=True)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for line in lines:
        console.print(Text(printable(line), style=_STYLES.get(line.split(maxsplit=1)[0] if line.strip() else "", "")))
