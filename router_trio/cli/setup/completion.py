"""`router-trio completion`: what a shell needs to complete commands and options."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from router_trio.cli import outcome


def completion(shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(help="The shell.")], /) -> int:
    """Print the script that completes commands and options in a shell.

    For example:

        router-trio completion zsh > ~/.zfunc/_router-trio
        eval "$(router-trio completion bash)"
    """
    # The commands are all of the application that this is one of.
    from router_trio.cli import app

    print(app.generate_completion(shell=shell), end="")
    return outcome.DONE
