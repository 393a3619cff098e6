"""The `router-trio` command, and `python -m router_trio`: the same."""

# Built in, or imported by the interpreter before us: there is no file of that name to be found in another place.
import gc
import os
import sys


def main() -> int:
    """Run the command in `sys.argv` and return its exit code. Blocks until it is done."""
    # What a command imports and reads at its start stays to its end. Looking for garbage in it, again and again, would
    # take a sixth of the start; a command that works for long switches it on (see `cli.serving`).
    gc.disable()
    from router_trio.cli import main as command

    try:
        return command()
    finally:
        # Nor does the interpreter have to look through all that, when all that is left to do is to end.
        gc.freeze()


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # it is gone
        return ""


if __name__ == "__main__":
    # `python -m` looks into the working directory first, where a `json.py` is somebody's own and not for us to run.
    # Handlers are found there all the same, behind everything else (see `cli.configuration`).
    if not sys.flags.safe_path and sys.path[:1] in ([""], [_working_directory()]):
        del sys.path[0]
    sys.exit(main())
