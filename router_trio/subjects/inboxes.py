"""Inboxes of routers, and to which reply subjects nothing is sent on behalf of a sender. Pure.

The sender of a message chooses its reply subject. An answer there is a publish with the rights of the router, or of the
service to which the subject was carried: below `$` it would be a request to a server, and in an inbox of a router it
would be taken for a PubAck, a status or a message of a stream.
"""

from __future__ import annotations

from collections.abc import Iterable

from router_trio.subjects.patterns import INBOX_PREFIX

MARK = "rt-"
"""The last token of a router's inbox begins so. The default prefix is shared with other clients, whose NUIDs have no
hyphen: each router knows its own inboxes by it, those of its workers, and those of all other routers."""

SHARED = b"%b." % INBOX_PREFIX.encode()
"""The prefix of the inboxes of clients, unless they are configured otherwise."""


def new_inbox(prefix: str, token: str) -> bytes:
    """Return the inbox below a connection's `inbox_prefix` that is known by this random token."""
    return f"{prefix}.{MARK}{token}".encode()


def never_replied_to(prefixes: Iterable[str]) -> tuple[bytes, ...]:
    """Return what the reply subjects begin with to which nothing is sent. `prefixes`: all `inbox_prefix` of a router.

    Below a prefix that is the router's own that is every subject, below the one that clients share its inboxes.
    """
    own = [prefix.encode() + b"." for prefix in dict.fromkeys(prefixes) if prefix != INBOX_PREFIX]
    return (b"$", SHARED + MARK.encode(), *own)
