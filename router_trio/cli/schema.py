"""`router-trio schema`: print the JSON Schema of the configuration, for editors and validators."""

from __future__ import annotations

import json

from router_trio.cli.command_line import DONE, Parser


def add_arguments(parser: Parser) -> None:
    """Add nothing: `schema` takes no arguments."""


def schema() -> int:
    """Print the JSON Schema of the configuration.

    For example:

        router-trio schema > router.schema.json
    """
    from router_trio.settings import json_schema

    print(json.dumps(json_schema(), indent=2))
    return DONE
