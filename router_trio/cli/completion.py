"""`router-trio completion`: print the completion script of a shell, and answer the requests of that script."""

from __future__ import annotations

from router_trio.cli.command_line import DONE, Parser, one_of
from router_trio.cli.output import show

SHELLS = ("bash", "zsh", "fish")


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `completion`."""
    parser.add_argument("shell", type=one_of(*SHELLS), choices=SHELLS, metavar="SHELL", help="bash, zsh or fish")


def completion(shell: str) -> int:
    """Print the script that completes commands and options in a shell.

    For example:

        router-trio completion zsh > ~/.zfunc/_router-trio
        eval "$(router-trio completion bash)"
    """
    from argcomplete.shell_integration import shellcode

    show(*shellcode(["router-trio"], shell=shell).split("\n"))
    return DONE


def complete() -> None:
    """Write the completions of the line in the variables of the shell, and end the process."""
    from argcomplete import autocomplete

    from router_trio.cli.command_line import parser_of_all

    autocomplete(parser_of_all(), always_complete_options=False)
