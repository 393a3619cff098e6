"""argparse, with values that begin with a hyphen, arguments among options, and errors that say what would do."""

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
from pathlib import Path
from typing import Any, NoReturn

from router_trio.cli import outcome
from router_trio.cli.configuration import CONFIG, STDIN

_MISSING = "the following arguments are required: "
"""With which argparse begins to name them."""

_HYPHENS = "\0--"
"""Stands for an argument `--` behind the `--` that ends the options: argparse before Python 3.13 would remove it.
No argument of a process contains NUL."""


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
        raise outcome.UsageError(f"{message}\n{self.prog} --help shows what there is.")

    def _refuse(self, options: Sequence[str], others: Sequence[str]) -> NoReturn:
        if not options:
            self.error(f"{others[0]!r} is one argument too many")
        option = options[0].partition("=")[0]
        self.error(f"there is no option {option}{did_you_mean(option, self._flags | self._valued)}")

    def _incomplete(self, message: str) -> NoReturn:
        raise outcome.UsageError(f"{message}; {self.prog} --help shows an example.")

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
