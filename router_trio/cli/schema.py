"""`router-trio schema`: print the JSON Schema of the configuration, for editors and validators."""

from __future__ import annotations

from router_trio.cli.command_line import DONE, Parser
from router_trio.cli.output import show_json


def add_arguments(parser: Parser) -> None:
    """Add nothing: `schema` takes no arguments."""


def schema() -> int:
    """Print the JSON Schema of the configuration.

    For example:

        router-trio schema > router.schema.json
    """
    from router_trio.settings import json_schema

    show_json(json_schema(), indent=2)
    return DONE
