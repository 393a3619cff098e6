"""The commands as cyclopts knows them: their arguments, their help, and what is told of a wrong one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter

from router_trio.cli import outcome
from router_trio.cli.check import check
from router_trio.cli.configuration import STDIN
from router_trio.cli.contract import contract
from router_trio.cli.dead_letters.command import dead_letters
from router_trio.cli.demo import demo
from router_trio.cli.explain import explain
from router_trio.cli.reload.diff import diff
from router_trio.cli.run import run
from router_trio.cli.schema import schema
from router_trio.cli.setup.init import init
from router_trio.cli.test.command import run_tests

if TYPE_CHECKING:
    from cyclopts.help import HelpPanel
    from cyclopts.help.formatters import PlainFormatter
    from rich.console import Console, ConsoleOptions

_ABOUT = """\
Route messages between NATS subjects and JetStream streams, and never
lose count.

For example:

    router-trio demo
    router-trio init
    router-trio run --embedded-nats

Exit codes: 0 done; 1 failed while running, or messages were left
unsettled at shutdown; 2 wrong usage; 78 invalid configuration."""


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    from router_trio.protocol import framing

    compiled = "" if str(framing.__file__).endswith(".py") else " (compiled)"
    try:
        return f"router-trio {version('router-trio')}{compiled}"
    except PackageNotFoundError:
        return "router-trio, not installed: running from its source tree"


class _PlainHelp:
    """Plain text reads the same in a terminal, a pipe and a bug report, and costs less than panels.

    It is imported for whoever asks for help; `help_formatter="plain"` would import it for every command.
    """

    @cached_property
    def _formatter(self) -> PlainFormatter:
        from cyclopts.help.formatters import PlainFormatter

        return PlainFormatter()

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        self._formatter(console, options, panel)

    def render_usage(self, console: Console, options: ConsoleOptions, usage: object) -> None:
        self._formatter.render_usage(console, options, usage)

    def render_description(self, console: Console, options: ConsoleOptions, description: object) -> None:
        self._formatter.render_description(console, options, description)


app: App = App(
    name="router-trio",
    help=_ABOUT,
    version=_version,
    help_formatter=_PlainHelp(),
    help_format="plaintext",
    default_parameter=Parameter(negative="", json_list=False, json_dict=False),
    result_action="return_value",
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
)


def completion(shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(help="The shell.")], /) -> int:
    """Print the script that completes commands and options in a shell.

    For example:

        router-trio completion zsh > ~/.zfunc/_router-trio
        eval "$(router-trio completion bash)"
    """
    print(app.generate_completion(shell=shell), end="")
    return outcome.DONE


for _command in (init, run, demo, check, diff, explain, contract, schema, completion):
    app.command(_command)
app.command(run_tests, name="test")
app.command(dead_letters, name="dead-letters")


def command(arguments: Sequence[str]) -> object:
    """Run the command that the arguments name and return what it returns. Blocks until it is done.

    Raises `UsageError` for arguments that no command takes, and what the command raises.
    """
    try:
        return app(_with_stdin(arguments))
    except CycloptsError as error:
        raise outcome.UsageError(_told(error)) from None


def _with_stdin(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with a name in place of the `-` that stands for a configuration: cyclopts takes no `-`."""
    given = list(arguments)
    if given[:1] == ["run"]:
        return [STDIN if one == "-" else one for one in given]  # it has an option with a value, which is never that
    place = next((number for number, one in enumerate(given[1:], 1) if one == "-" or not one.startswith("-")), None)
    if place is not None and given[place] == "-":
        given[place] = STDIN
    return given


def _told(error: CycloptsError) -> str:
    """Return what is wrong with the arguments, and where to look."""
    command = " ".join(error.command_chain or ())
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        name = error.argument.name
        told = f"{name} needs a value" if name.startswith("-") else f"{command} needs {name}"
        return f"{told}; router-trio {command} --help shows an example."
    page = f"router-trio {command} --help" if command else "router-trio --help"
    return f"{str(error).strip()}\n{page} shows what there is."
