"""Why content sends a message nowhere, and why it fails for what it is."""

from __future__ import annotations

from typing import Final

WHEN: Final = "when"
"""The `when` of its route does not hold."""

UNMATCHED: Final = "unmatched"
"""No destination of its route takes it."""

_HEADERS_THAT_A_STREAM_DOES_NOT_TAKE = (
    10111,  # Nats-Rollup
    *(10165, 10166),  # Nats-TTL
    *range(10168, 10172),  # Nats-Incr
    *(*range(10174, 10178), 10179, *range(10199, 10202)),  # Nats-Batch-...
    *(*range(10188, 10193), 10203, 10212, 10223),  # Nats-Schedule...
)
"""Error codes of nats-server."""

OF_THE_MESSAGE = frozenset(
    {
        "handler_error",  # the handler raised, or made of it what is no message
        "retry",  # the handler wants it to come again later
        "rejected",  # the handler wants it never again
        "mapping",  # its subject does not fit the destination's mapping
        "reserved_subject",  # its subject would lead to where only NATS itself listens
        "invalid_subject",  # the handler gave it one
        "expression",  # an expression has no value for it
        "loop",  # it has passed too many routes
        "error",  # what it became can't be written, as a header that is none
        "poison",  # the server ends every link that it is sent on
        "too_large",  # for the server, or for the stream
        "wrong_expectation",  # its headers say what the stream has to be like
        *(f"jetstream_{code}" for code in _HEADERS_THAT_A_STREAM_DOES_NOT_TAKE),
    }
)
"""Reasons of failures for what a message is: what is behind it would not fail, so nobody waits for it.

Every other reason is the destination's: it refuses (permission_denied, limit, jetstream_...), does not answer or not
as a stream does (timeout, no_responders, bad_answer), or was away and kept nothing (queue_full, expired,
not_connected). It may take the message later, and would take what is behind it too early.
"""
