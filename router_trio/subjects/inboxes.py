"""Inboxes of routers, and reply subjects that must not be answered on behalf of a sender. Pure.

The sender of a message chooses its reply subject. An answer is published there with the permissions of the router, or
of the service that the message was forwarded to: below `$` it would be a request to a server, and in an inbox of a
router it would be taken for a PubAck, a status or a message of a stream.
"""

from __future__ import annotations

from collections.abc import Iterable

from router_trio.subjects.patterns import INBOX_PREFIX

MARK = "rt-"
"""The start of the last token of a router's inbox. The default prefix is shared with other clients, whose NUIDs have no
hyphen, so a router recognizes its own inboxes, those of its workers and those of all other routers by this mark."""

SHARED = b"%b." % INBOX_PREFIX.encode()
"""The default prefix of clients' inboxes."""


def new_inbox(prefix: str, token: str) -> bytes:
    """Return the inbox with this random token below a connection's `inbox_prefix`."""
    return f"{prefix}.{MARK}{token}".encode()


def never_replied_to(prefixes: Iterable[str]) -> tuple[bytes, ...]:
    """Return the prefixes of reply subjects that are never answered. `prefixes` are all `inbox_prefix` of a router.

    Below a prefix of the router's own no subject is answered; below the shared default, no inbox of a router.
    """
    own = [prefix.encode() + b"." for prefix in dict.fromkeys(prefixes) if prefix != INBOX_PREFIX]
    return (b"$", SHARED + MARK.encode(), *own)
