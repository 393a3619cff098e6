"""The commands, and what each takes of a command line: read by argparse.

A command is a function and, in the same module, `add_arguments`, which adds to a parser what that function is called
with. Only the module of the command that is named is imported, and each command has a parser of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from inspect import cleandoc
from typing import Any

from router_trio.cli import outcome
from router_trio.cli.command_line.parser import Parser, did_you_mean

_ABOUT = """\
Route messages between NATS subjects and JetStream streams, and never
lose count.

For example:

    router-trio demo
    router-trio init
    router-trio run --embedded-nats

Exit codes: 0 done; 1 failed while running, or messages were left
unsettled at shutdown; 2 wrong usage; 78 invalid configuration."""

COMMANDS = {
    "init": "router_trio.cli.setup.init:init",
    "run": "router_trio.cli.run:run",
    "demo": "router_trio.cli.demo:demo",
    "check": "router_trio.cli.check:check",
    "diff": "router_trio.cli.reload.diff:diff",
    "explain": "router_trio.cli.explain:explain",
    "test": "router_trio.cli.test.command:run_tests",
    "dead-letters": "router_trio.cli.dead_letters.command:dead_letters",
    "contract": "router_trio.cli.contract:contract",
    "schema": "router_trio.cli.schema:schema",
    "completion": "router_trio.cli.command_line.completion:completion",
}
"""The function of each, in the order of `--help`."""


def command(arguments: Sequence[str]) -> int:
    """Run the command that the arguments name and return its exit code. Blocks until it is done.

    Raises `UsageError` for arguments that no command takes, and what the command raises.
    """
    name = arguments[0] if arguments else "--help"
    if name in COMMANDS:
        parsed = parse(name, arguments[1:])
        if parsed is None:
            return outcome.DONE
        function, given = parsed
        return function(**given)
    if name in ("-h", "--help"):
        _parser_of_help().print_help()
    elif name == "--version":
        print(_version())
    else:
        cure = did_you_mean(name, COMMANDS) or f"; there are {', '.join(COMMANDS)}"
        raise outcome.UsageError(f"there is no command {name!r}{cure}\nrouter-trio --help shows what there is.")
    return outcome.DONE


def parse(name: str, arguments: Sequence[str]) -> tuple[Callable[..., int], dict[str, Any]] | None:
    """Return the function of a command and what to call it with; None if help was asked for, and is printed.

    Raises `UsageError` for arguments that the command does not take.
    """
    parser = Parser(prog=f"router-trio {name}")
    function = _describe(name, parser)
    given = parser.read(arguments)
    return None if given is None else (function, given)


def whole_parser() -> Parser:
    """Return the parser of all commands, for a shell that completes them."""
    parser = _parser_of_help()
    commands = parser.add_subparsers()
    for name in COMMANDS:
        _describe(name, commands.add_parser(name))
    return parser


def _parser_of_help() -> Parser:
    width = max(map(len, COMMANDS))
    lines = (f"  {name:{width}}  {_docstring(_function(name)).splitlines()[0]}" for name in COMMANDS)
    listed = "\n".join(("commands:", *lines))
    parser = Parser(prog="router-trio", usage="router-trio COMMAND", description=_ABOUT, epilog=listed)
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    return parser


def _describe(name: str, parser: Parser) -> Callable[..., int]:
    """Give a parser the arguments and the help of a command; return the function of the command."""
    function = _function(name)
    parser.description = _docstring(function)
    import_module(function.__module__).add_arguments(parser)
    return function


def _function(name: str) -> Callable[..., int]:
    module, _, function = COMMANDS[name].partition(":")
    found: Callable[..., int] = getattr(import_module(module), function)
    return found


def _docstring(function: Callable[..., int]) -> str:
    return cleandoc(function.__doc__ or "")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    from router_trio.protocol import framing

    compiled = "" if str(framing.__file__).endswith(".py") else " (compiled)"
    try:
        return f"router-trio {version('router-trio')}{compiled}"
    except PackageNotFoundError:
        return "router-trio, not installed: running from its source tree"
