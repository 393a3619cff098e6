"""The section for messages that are given up: where they go."""

from __future__ import annotations

from pydantic import Field

from router_trio.settings.sections import Section


class DeadLetterSettings(Section, init=False):
    """`[routes.dead_letter]`: where a message goes that is given up."""

    connection: str = Field("", description="Name of the connection; by default that of the source.")
    subject: str = Field(
        description="Subject, or a mapping of the source's wildcards with the syntax of nats-server.",
        examples=["dead.{{wildcard(1)}}"],
    )
    jetstream: bool = Field(True, description="Publish to JetStream and wait for the PubAck; false: core publish.")
