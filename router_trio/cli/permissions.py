"""`router-trio permissions`: print the least permissions that a configuration needs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from router_trio.cli.command_line import DONE, Parser, UsageError, did_you_mean, one_of
from router_trio.cli.configuration import load
from router_trio.cli.output import show

if TYPE_CHECKING:
    from router_trio.settings import ConnectionSettings, Settings
    from router_trio.settings.permissions import Grant

FORMATS = ("server", "nsc")

NAMED = 3
"""Maximum number of routes or streams that a comment names."""


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `permissions`."""
    parser.add_configurations(required=False)
    parser.add_argument("--connection", metavar="NAME", help="print those of this connection only")
    parser.add_argument(
        "--format",
        type=one_of(*FORMATS),
        choices=FORMATS,
        default=FORMATS[0],
        metavar="FORMAT",
        help="server: a block for the configuration of nats-server (default); nsc: commands",
    )
    parser.add_argument(
        "--after-first-start",
        action="store_true",
        help="leave out those with which the first start makes durables, streams and buckets",
    )
    parser.add_argument(
        "--for", dest="commands", metavar="COMMAND[,...]", help="print those of the user of these commands instead"
    )


def permissions(
    configs: Sequence[Path], *, connection: str | None, format: str, after_first_start: bool, commands: str | None
) -> int:
    """Print the least permissions that a configuration needs.

    For each connection a block is printed that fits into the user of the
    connection in a nats-server configuration, with the routes that need
    each permission. The router works without those marked (optional),
    but can report less. With --format nsc a command is printed that adds
    them to the user named like the credentials_file, or else like the
    connection; it removes no permission that the user has already.

    It does not connect. Names of streams that the configuration does not
    contain become wildcards. A handler may send to other subjects.

    Those marked (first start) are used until the durables, streams and
    buckets exist that the router makes: a thief of the credentials could
    make a consumer that delivers elsewhere. --after-first-start leaves
    them out. Commands such as audit run as another user: --for prints what
    that user needs, for a command or for one with its option or action.

    For example:

        router-trio permissions router.toml
        router-trio permissions router.toml --connection main --format nsc
        router-trio permissions router.toml --after-first-start
        router-trio permissions router.toml --for "audit,dead-letters list"
    """
    wanted = None if commands is None else _commands(commands)
    settings = load(*configs)
    known = settings.connections
    if connection is not None and connection not in known:
        from router_trio.settings.problems import suggestion

        raise UsageError(f"there is no connection {connection!r}; {suggestion(connection, known)}")
    for number, name in enumerate(known if connection is None else (connection,)):
        show(*([""] if number else []), *lines(settings, name, format, wanted, after_first_start=after_first_start))
    return DONE


def _commands(text: str) -> list[str]:
    """Return the commands of the table that a list names. Raises `UsageError`."""
    from router_trio.protocol.permissions import LIKE_THE_ROUTER, OF_COMMANDS, command_names

    found: list[str] = []
    for one in (part.strip() for part in text.split(",")):
        names = [one] if one == LIKE_THE_ROUTER else command_names(one)
        if not names:
            known = [*OF_COMMANDS, LIKE_THE_ROUTER]
            hint = did_you_mean(one, known) or f"; those that do are {', '.join(known)}"
            raise UsageError(f"--for {one!r}: no command of this name connects to a server{hint}")
        found += names
    return list(dict.fromkeys(found))


def lines(
    settings: Settings,
    connection: str,
    format: str,
    commands: Sequence[str] | None = None,
    *,
    after_first_start: bool = False,
) -> Iterator[str]:
    """Yield the lines that are printed for a connection: for the router, or for these commands."""
    from router_trio.errors.quotes import excerpt
    from router_trio.protocol.permissions import LIKE_THE_ROUTER
    from router_trio.settings.permissions import handlers_of, permissions_of, permissions_of_commands

    if commands is None or LIKE_THE_ROUTER in commands:
        granted = permissions_of(settings, connection)
        if after_first_start:
            granted = [one for one in granted if not one.first_start]
    else:
        granted = []
    if commands is not None:
        granted += permissions_of_commands(settings, connection, [one for one in commands if one != LIKE_THE_ROUTER])
    yield f"# connection {excerpt(connection)}"
    if routes := handlers_of(settings, connection):
        several = _several([("route", name) for name in routes])
        yield f"# add what else their handlers send to, by replace(subject=...): {several}"
    if domain := settings.connections[connection].domain:
        yield f"# a server that is of domain {domain} itself checks $JS.API instead of $JS.{domain}.API"
        if any(one.subject.startswith(f"$JS.{domain}.API.$KV.") for one in granted):
            yield f"# and $KV instead of $JS.{domain}.API.$KV"
    by_kind = [(kind, [one for one in granted if one.kind == kind]) for kind in ("publish", "subscribe")]
    if format == "server":
        yield "permissions {"
        for kind, grants in by_kind:
            yield from (f"  {line}" for line in _block(kind, grants))
        yield "}"
    else:
        options = [option for kind, grants in by_kind for option in _options(kind[:3], grants)]
        user = shlex.quote(_user(connection, settings.connections[connection]))
        *continued, last = f"nsc edit user --name {user}", *(f"  {option}" for option in options)
        yield from (f"{line} \\" for line in continued)
        yield last


def _block(kind: str, grants: Sequence[Grant]) -> Iterator[str]:
    yield f"{kind} {{"
    if grants:
        subjects = [json.dumps(one.subject, ensure_ascii=False) for one in grants]
        width = max(map(len, subjects))
        yield "  allow: ["
        yield from (f"    {subject:{width}}  # {_comment(one)}" for subject, one in zip(subjects, grants, strict=True))
        yield "  ]"
    else:
        # An empty list would allow everything.
        yield '  deny: ">"'
    yield "}"


def _comment(grant: Grant) -> str:
    reasons = [f"{several}: {sends}" if (several := _several(of)) else sends for sends, of in grant.reasons.items()]
    return "; ".join(reasons) + " (optional)" * grant.optional + " (first start)" * grant.first_start


def _several(parts: Sequence[tuple[str, str]]) -> str:
    """Return the names of routes and streams as text, for example `routes orders, payments`; empty for none."""
    from router_trio.errors.quotes import excerpt

    found: dict[str, list[str]] = {}
    for noun, name in dict.fromkeys(parts):
        if noun:
            found.setdefault(noun, []).append(excerpt(name))
    texts = []
    for noun, names in found.items():
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        texts.append(f"{noun}{'s' * (len(names) > 1)} {', '.join(names[:NAMED])}{more}")
    return ", ".join(texts)


def _options(kind: str, grants: Sequence[Grant]) -> Iterator[str]:
    for one in grants:
        yield f"--allow-{kind} {shlex.quote(_as_csv(one.subject))}"
    if not grants:
        yield f"--deny-{kind} '>'"


def _as_csv(subject: str) -> str:
    """Return a subject as one entry of the list, separated by commas, that nsc reads from each option."""
    doubled = subject.replace('"', '""')
    return f'"{doubled}"' if "," in subject or '"' in subject else subject


def _user(name: str, connection: ConnectionSettings) -> str:
    """Return the name of the user of a connection: nsc names the file of its credentials so."""
    return name if connection.credentials_file is None else connection.credentials_file.stem
