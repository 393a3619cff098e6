"""The command line: exit codes, the table of commands, and the parser of their arguments.

A command is a function. Its module also has `add_arguments`, which adds the parameters of that function to a parser.
Only the module of the requested command is imported, and each command has its own parser. `Parser` extends argparse:
values may begin with a hyphen, positional arguments may stand between options, and errors suggest a correction.
"""

from __future__ import annotations

from argparse import (
    Action,
    ArgumentError,
    ArgumentParser,
    ArgumentTypeError,
    HelpFormatter,
    RawDescriptionHelpFormatter,
)
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from inspect import cleandoc
from pathlib import Path
from typing import Any, NoReturn

from router_trio.cli.configuration import CONFIG, STDIN
from router_trio.cli.output import show

DONE = 0
FAILED = 1
"""The command failed while running, or messages were left unsettled at shutdown."""
WRONG_USAGE = 2
INVALID_CONFIGURATION = 78
"""EX_CONFIG of sysexits.h."""
INTERRUPTED = 130
"""Ctrl-C before there was anything to drain; shells report SIGINT by the same code."""

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
    "init": "router_trio.cli.init:init",
    "run": "router_trio.cli.run.command:run",
    "demo": "router_trio.cli.demo:demo",
    "check": "router_trio.cli.check:check",
    "diff": "router_trio.cli.diff:diff",
    "explain": "router_trio.cli.explain:explain",
    "trace": "router_trio.cli.trace:trace",
    "test": "router_trio.cli.test.command:run_tests",
    "permissions": "router_trio.cli.permissions:permissions",
    "audit": "router_trio.cli.audit:audit",
    "position": "router_trio.cli.position:position",
    "find": "router_trio.cli.find:find",
    "top": "router_trio.cli.top.command:top",
    "tap": "router_trio.cli.tap:tap",
    "partitions": "router_trio.cli.partitions:partitions",
    "pause": "router_trio.cli.pause:pause",
    "resume": "router_trio.cli.resume:resume",
    "replay": "router_trio.cli.replay:replay",
    "dead-letters": "router_trio.cli.dead_letters.command:dead_letters",
    "schedules": "router_trio.cli.schedules:schedules",
    "contract": "router_trio.cli.contract:contract",
    "schema": "router_trio.cli.schema:schema",
    "completion": "router_trio.cli.completion:completion",
}
"""Module and function of each command, in the order of `--help`."""

_MISSING = "the following arguments are required: "
"""The beginning of the error of argparse that lists the missing arguments."""

_HYPHENS = "\0--"
"""Replaces an argument `--` after the `--` that ends the options, which argparse would remove before Python 3.13.
No argument of a process contains NUL."""


class UsageError(Exception):
    """An argument can't be used. The text names the argument, the reason, and what to write instead."""


# --- the commands ---


def command(arguments: Sequence[str]) -> int:
    """Run the command named by the first argument and return its exit code. Blocks until the command has ended.

    Raises `UsageError` for invalid arguments, and any exception of the command.
    """
    name = arguments[0] if arguments else "--help"
    if name in COMMANDS:
        parsed = parse(name, arguments[1:])
        if parsed is None:
            return DONE
        function, given = parsed
        return function(**given)
    if name in ("-h", "--help"):
        _top_level_parser().print_help()
    elif name == "--version":
        show(_version())
    else:
        hint = did_you_mean(name, COMMANDS) or f"; the commands are {', '.join(COMMANDS)}"
        raise UsageError(f"unknown command {name!r}{hint}\nRun router-trio --help for a list of commands.")
    return DONE


def parse(name: str, arguments: Sequence[str]) -> tuple[Callable[..., int], dict[str, Any]] | None:
    """Return the function of a command and its keyword arguments; None if the arguments ask for help, which is printed.

    Raises `UsageError` for invalid arguments.
    """
    parser = Parser(prog=f"router-trio {name}")
    function = _add_command(name, parser)
    given = parser.read(arguments)
    return None if given is None else (function, given)


def parser_of_all() -> Parser:
    """Return a parser with every command as a subcommand, for completion in a shell."""
    parser = _top_level_parser()
    commands = parser.add_subparsers()
    for name in COMMANDS:
        _add_command(name, commands.add_parser(name))
    return parser


def _top_level_parser() -> Parser:
    width = max(map(len, COMMANDS))
    lines = (f"  {name:{width}}  {_docstring(_function(name)).splitlines()[0]}" for name in COMMANDS)
    listed = "\n".join(("commands:", *lines))
    parser = Parser(prog="router-trio", usage="router-trio COMMAND", description=_ABOUT, epilog=listed)
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    return parser


def _add_command(name: str, parser: Parser) -> Callable[..., int]:
    """Add the arguments and the help of a command to `parser`, and return the function of the command."""
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
        return "router-trio: not installed, running from the source tree"


# --- the arguments of one command ---


class Parser(ArgumentParser):
    """The parser of one command. It raises `UsageError` where argparse would end the process."""

    usage: str | None

    def __init__(self, **keywords: Any) -> None:
        self._flags: set[str] = set()
        self._valued: set[str] = set()
        self._repeated: set[str] = set()
        super().__init__(formatter_class=_help, allow_abbrev=False, exit_on_error=False, **keywords)

    def add_argument(self, *names: str, **keywords: Any) -> Action:
        """Add an argument as argparse does, and record whether an option takes a value."""
        if not names[0].startswith("-"):
            keywords["type"] = _literal(keywords.get("type", str))
        action = super().add_argument(*names, **keywords)
        (self._flags if action.nargs == 0 else self._valued).update(action.option_strings)
        if keywords.get("action") == "append":
            self._repeated.update(action.option_strings)
        return action

    def add_configurations(self, *, required: bool) -> None:
        """Add `configs`: files and folders that form one configuration; by default `CONFIG`, unless `required`."""
        default = "" if required else f"; default: {CONFIG}"
        self.add_argument(
            "configs",
            nargs="+" if required else "*",
            type=configuration,
            default=[CONFIG],
            metavar="CONFIG",
            help=f"TOML files, or folders of them, that form one configuration; - reads standard input{default}",
        )

    def read(self, arguments: Sequence[str]) -> dict[str, Any] | None:
        """Return the values of the arguments by name; None if the arguments ask for help, which is then printed."""
        options, positionals = self._split(arguments)
        try:
            # Options first: argparse accepts options between positional arguments only in a mode that ignores `--`.
            escaped = [_HYPHENS if argument == "--" else argument for argument in positionals]
            given, unread = self.parse_known_args([*options, *(("--", *escaped) if positionals else ())])
        except SystemExit:  # argparse has printed the help
            return None
        except ArgumentError as error:
            self.error(error.message if error.argument_name is None else f"{error.argument_name}: {error.message}")
        if unread:
            unknown = [argument.replace(_HYPHENS, "--") for argument in unread]
            self._refuse(
                [argument for argument in options if argument in unknown],
                [argument for argument in positionals if argument in unknown],
            )
        return vars(given)

    def error(self, message: str) -> NoReturn:
        """Raise `UsageError` with the message and the command that prints the help."""
        if message.startswith(_MISSING):
            missing = message.removeprefix(_MISSING).split(", ")[0]
            self._incomplete(f"{self.prog.removeprefix('router-trio ')} needs {missing}")
        raise UsageError(f"{message}\nRun {self.prog} --help for usage.")

    def _refuse(self, options: Sequence[str], positionals: Sequence[str]) -> NoReturn:
        if not options:
            self.error(f"unexpected argument {positionals[0]!r}")
        option = options[0].partition("=")[0]
        self.error(f"unknown option {option}{did_you_mean(option, self._flags | self._valued)}")

    def _incomplete(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; {self.prog} --help shows an example")

    def _split(self, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return the options, each joined with its value, and the positional arguments.

        argparse accepts `--data=-x` but not `--data -x`. Everything after `--` is positional.
        """
        options, positionals = list[str](), list[str]()
        rest, seen = iter(arguments), set[str]()
        for argument in rest:
            if argument == "--":
                positionals.extend(rest)
                break
            if not _looks_like_an_option(argument):
                positionals.append(argument)
                continue
            name, has_value, value = argument.partition("=")
            if name in self._flags and has_value:
                self.error(f"{name} takes no value, but got {value!r}")
            if name in seen:
                self.error(f"{name} is given more than once")
            if name in self._valued:
                seen.update({name} - self._repeated)
                if not has_value:
                    following = next(rest, None)
                    if following is None or following in self._flags | self._valued:
                        self._incomplete(f"{name} needs a value")
                    argument = f"{name}={following}"
            options.append(argument)
        return options, positionals


def _looks_like_an_option(argument: str) -> bool:
    """Return True for `-x` and `--name`, but not for a lone hyphen (standard input) or a negative number."""
    return argument.startswith("-") and not argument[1:2].isdecimal() and argument != "-"


def _help(prog: str) -> HelpFormatter:
    return RawDescriptionHelpFormatter(prog, max_help_position=30)


def _literal(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a function that parses an argument as `read` does, and `_HYPHENS` as `--`."""
    return lambda text: read("--" if text == _HYPHENS else text)


# --- kinds of values -------------------------------------------------------------------------------------------------


def configuration(text: str) -> Path:
    """Return the path of a configuration; `STDIN` for a lone hyphen."""
    return Path(STDIN if text == "-" else text)


def number(least: int | None = None, most: int | None = None) -> Callable[[str], int]:
    """Return a function that parses a whole number within these bounds, inclusive."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ArgumentTypeError(f"{text!r} is not a whole number") from None
        if least is not None and value < least:
            raise ArgumentTypeError(f"{value} is too small; give at least {least}")
        if most is not None and value > most:
            raise ArgumentTypeError(f"{value} is too large; give at most {most}")
        return value

    return read


def directory(text: str) -> Path:
    """Return the path of a directory, which may not exist. Raises ArgumentTypeError for `""`, an unset variable."""
    if not text:
        raise ArgumentTypeError("it is empty; give a directory, or '.' for the working directory")
    return Path(text)


def one_of(*choices: str) -> Callable[[str], str]:
    """Return a function that accepts only these words."""

    def read(text: str) -> str:
        if text not in choices:
            raise ArgumentTypeError(f"{text!r} is not one of {', '.join(choices)}{did_you_mean(text, choices)}")
        return text

    return read


def did_you_mean(text: str, known: Iterable[str]) -> str:
    """Return a suggestion for the end of an error message; empty if no known word is similar."""
    from difflib import get_close_matches

    close = get_close_matches(text, list(known), 1)
    return f"; did you mean {close[0]}?" if close else ""
