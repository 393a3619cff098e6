"""The command line: exit codes, the commands, and how the arguments of each are read.

A command is a function and, in the same module, `add_arguments`, which adds to a parser what that function is called
with. Only the module of the command that is named is imported, and each command has a parser of its own. argparse reads
the arguments, with values that begin with a hyphen, arguments among options, and errors that say what would do.
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

DONE = 0
FAILED = 1
"""It failed while running, or messages were left unsettled at shutdown."""
WRONG_USAGE = 2
INVALID_CONFIGURATION = 78
"""EX_CONFIG of sysexits.h."""
INTERRUPTED = 130
"""Ctrl-C before there was anything to drain, as shells have it."""

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
    "test": "router_trio.cli.test.command:run_tests",
    "dead-letters": "router_trio.cli.dead_letters.command:dead_letters",
    "contract": "router_trio.cli.contract:contract",
    "schema": "router_trio.cli.schema:schema",
    "completion": "router_trio.cli.completion:completion",
}
"""The function of each, in the order of `--help`."""

_MISSING = "the following arguments are required: "
"""With which argparse begins to name them."""

_HYPHENS = "\0--"
"""Stands for an argument `--` behind the `--` that ends the options: argparse before Python 3.13 would remove it.
No argument of a process contains NUL."""


class UsageError(Exception):
    """An argument can't be used. The text says which, why, and what would do."""


# --- the commands ---


def command(arguments: Sequence[str]) -> int:
    """Run the command that the arguments name and return its exit code. Blocks until it is done.

    Raises `UsageError` for arguments that no command takes, and what the command raises.
    """
    name = arguments[0] if arguments else "--help"
    if name in COMMANDS:
        parsed = parse(name, arguments[1:])
        if parsed is None:
            return DONE
        function, given = parsed
        return function(**given)
    if name in ("-h", "--help"):
        _parser_of_help().print_help()
    elif name == "--version":
        print(_version())
    else:
        cure = did_you_mean(name, COMMANDS) or f"; there are {', '.join(COMMANDS)}"
        raise UsageError(f"there is no command {name!r}{cure}\nrouter-trio --help shows what there is.")
    return DONE


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


# --- the arguments of one command ---


class Parser(ArgumentParser):
    """Reads the arguments of one command. Raises `UsageError` where argparse would end the process."""

    usage: str | None

    def __init__(self, **keywords: Any) -> None:
        self._flags: set[str] = set()
        self._valued: set[str] = set()
        self._repeated: set[str] = set()
        super().__init__(formatter_class=_help, allow_abbrev=False, exit_on_error=False, **keywords)

    def add_argument(self, *names: str, **keywords: Any) -> Action:
        """See `argparse`. Of options it is remembered whether they take a value."""
        if not names[0].startswith("-"):
            keywords["type"] = _literal(keywords.get("type", str))
        action = super().add_argument(*names, **keywords)
        (self._flags if action.nargs == 0 else self._valued).update(action.option_strings)
        if keywords.get("action") == "append":
            self._repeated.update(action.option_strings)
        return action

    def add_configurations(self, *, required: bool) -> None:
        """Add `configs`: files and folders that make one configuration, by default `CONFIG` unless one is required."""
        default = "" if required else f"; default: {CONFIG}"
        self.add_argument(
            "configs",
            nargs="+" if required else "*",
            type=configuration,
            default=[CONFIG],
            metavar="CONFIG",
            help=f"TOML files, or folders of them, which make one configuration; - reads standard input{default}",
        )

    def read(self, arguments: Sequence[str]) -> dict[str, Any] | None:
        """Return what the arguments say, by name; None if they ask for help, which is then printed."""
        options, others = self._divided(arguments)
        try:
            # Options first: between others argparse takes them only in a mode that forgets what `--` means.
            literal = [_HYPHENS if one == "--" else one for one in others]
            given, more = self.parse_known_args([*options, *(("--", *literal) if others else ())])
        except SystemExit:  # its help does that
            return None
        except ArgumentError as error:
            self.error(error.message if error.argument_name is None else f"{error.argument_name}: {error.message}")
        if more:
            unread = [one.replace(_HYPHENS, "--") for one in more]
            self._refuse([one for one in options if one in unread], [one for one in others if one in unread])
        return vars(given)

    def error(self, message: str) -> NoReturn:
        """Raise `UsageError` with where to look."""
        if message.startswith(_MISSING):
            missing = message.removeprefix(_MISSING).split(", ")[0]
            self._incomplete(f"{self.prog.removeprefix('router-trio ')} needs {missing}")
        raise UsageError(f"{message}\n{self.prog} --help shows what there is.")

    def _refuse(self, options: Sequence[str], others: Sequence[str]) -> NoReturn:
        if not options:
            self.error(f"{others[0]!r} is one argument too many")
        option = options[0].partition("=")[0]
        self.error(f"there is no option {option}{did_you_mean(option, self._flags | self._valued)}")

    def _incomplete(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; {self.prog} --help shows an example.")

    def _divided(self, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return the options, each joined with its value, and all others.

        argparse takes `--data=-x`, and not `--data -x`. What is behind `--` is no option.
        """
        options, others = list[str](), list[str]()
        rest, seen = iter(arguments), set[str]()
        for one in rest:
            if one == "--":
                others.extend(rest)
                break
            if not _looks_like_an_option(one):
                others.append(one)
                continue
            name, has_value, value = one.partition("=")
            if name in self._flags and has_value:
                self.error(f"{name} takes no value, and got {value!r}")
            if name in seen:
                self.error(f"{name} is given twice")
            if name in self._valued:
                seen.update({name} - self._repeated)
                if not has_value:
                    following = next(rest, None)
                    if following is None or following in self._flags | self._valued:
                        self._incomplete(f"{name} needs a value")
                    one = f"{name}={following}"
            options.append(one)
        return options, others


def _looks_like_an_option(argument: str) -> bool:
    """Return False also for a lone hyphen, which is standard input, and for a negative number."""
    return argument.startswith("-") and not argument[1:2].isdecimal() and argument != "-"


def _help(prog: str) -> HelpFormatter:
    return RawDescriptionHelpFormatter(prog, max_help_position=30)


def _literal(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return what reads an argument as `read` does, and `_HYPHENS` as `--`."""
    return lambda text: read("--" if text == _HYPHENS else text)


# --- kinds of values -------------------------------------------------------------------------------------------------


def configuration(text: str) -> Path:
    """Return where a configuration is: `STDIN` for a lone hyphen."""
    return Path(STDIN if text == "-" else text)


def number(least: int | None = None, most: int | None = None) -> Callable[[str], int]:
    """Return what reads a whole number within these bounds."""

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


def one_of(*choices: str) -> Callable[[str], str]:
    """Return what reads one of these words."""

    def read(text: str) -> str:
        if text not in choices:
            raise ArgumentTypeError(f"{text!r} is none of {', '.join(choices)}{did_you_mean(text, choices)}")
        return text

    return read


def did_you_mean(text: str, known: Iterable[str]) -> str:
    """Return a question for the end of an error; empty if nothing is like it."""
    from difflib import get_close_matches

    close = get_close_matches(text, list(known), 1)
    return f"; did you mean {close[0]}?" if close else ""
