"""`router-trio explain`: show what would happen to a message."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from router_trio.cli.command_line import DONE, FAILED, Parser, UsageError
from router_trio.cli.configuration import load
from router_trio.cli.output import show, show_json, to_stderr
from router_trio.errors import PublishError, SubjectError

if TYPE_CHECKING:
    from router_trio.protocol.headers import Headers


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `explain`."""
    parser.add_configurations(required=True)
    add_message(parser)
    parser.add_argument(
        "--expect",
        action="append",
        default=[],
        metavar="SUBJECT",
        help="a subject to which the message must be sent; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_message(parser: Parser) -> None:
    """Add the arguments that describe a message: see `read_message`."""
    parser.add_argument("subject", metavar="SUBJECT", help="the subject of the message")
    parser.add_argument(
        "--header", action="append", default=[], metavar="K=V", help="a header of the message; may be repeated"
    )
    parser.add_argument("--data", default="", metavar="TEXT", help="the payload of the message")


def explain(
    configs: Sequence[Path], subject: str, *, header: Sequence[str], data: str, expect: Sequence[str], json: bool
) -> int:
    r"""Show what would happen to a message, and why.

    Prints the routes that would take the message, the value of each
    expression, the destinations that would get a copy, and the subject,
    payload and headers of each copy. It does not connect, and sends
    nothing.

    A handler is imported but not called; it may change the message or
    filter it out. The JSON schemas of the body that it takes and of what it
    returns are shown, and --data is checked. A copy is not followed into another route that reads its
    subject: explain that subject. If a choice depends on more than the
    message, such as a weight or which destinations are connected, the
    output names what it is.

    With --expect the exit code is 1 if the message would fail, or could
    not be sent to exactly these subjects. A single --expect '' means that
    it must not be sent anywhere.

    For example:

        router-trio explain router.toml orders.7.created
        router-trio explain router.toml orders.7.created \
            --header region=eu --data '{"total": 150}' --json
        router-trio explain router.toml orders.7.created --expect eu.7
        router-trio explain base.toml routes.d/ orders.7.created
    """
    from router_trio.cli.explain_message import explain_message
    from router_trio.routing.route_plans import compile_routes

    message = read_message(subject, header, data)
    settings = load(*configs)
    plans, workers = compile_routes(settings), settings.router.workers
    explanation = explain_message(plans, subject, message.block, message.payload, workers=workers)
    if json:
        show_json(explanation.as_json(), indent=2)
    else:
        show(f"message {subject}: {len(message.payload)} bytes of payload, {len(message.block)} bytes of headers")
        show(*explanation.lines())
    if expect:
        difference = explanation.difference([value for value in expect if value])
        if difference is not None:
            to_stderr(f"router-trio: not as expected: {difference}")
            return FAILED
    return DONE


@dataclass(frozen=True, slots=True)
class Given:
    """The headers and the payload of a message as given by arguments. `block` are the headers as they are sent."""

    headers: Headers
    block: bytes
    payload: bytes


def read_message(subject: str, header: Sequence[str], data: str) -> Given:
    """Return the message of the arguments. Raises `UsageError`."""
    from router_trio.protocol import headers
    from router_trio.subjects.patterns import validate_subject

    if subject.endswith(".toml") and Path(subject).is_file():
        raise UsageError(f"SUBJECT is missing: it must be the last argument, and {subject} is a file")
    try:
        validate_subject(subject)
        given = headers.Headers(_pairs(header))
        return Given(given, headers.encode(given), data.encode("utf-8", "surrogateescape"))
    except (SubjectError, PublishError) as error:
        raise UsageError(str(error)) from None


def _pairs(headers: Sequence[str]) -> Iterator[tuple[str, str]]:
    for header in headers:
        name, equals, value = header.partition("=")
        if not equals:
            raise UsageError(f"--header {header!r} is not of the form K=V, such as --header Nats-Msg-Id=7")
        yield name, value
