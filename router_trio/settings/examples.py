"""`[[tests]]`: messages, and what the router must send for each."""

from __future__ import annotations

import json
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, model_validator

from router_trio.errors import PublishError
from router_trio.protocol.headers import Headers, encode
from router_trio.settings.sections import Section
from router_trio.subjects.patterns import validate_subject


def _checked_subject(text: str) -> str:
    validate_subject(text)
    return text


def _checked_headers(headers: dict[str, str]) -> dict[str, str]:
    try:
        encode(Headers(headers))
    except PublishError as error:
        raise ValueError(str(error)) from None
    return headers


def _checked_json(value: Any) -> Any:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        raise ValueError("must be what JSON can hold: no dates and times, and no numbers that are not finite") from None
    return value


Subject = Annotated[str, AfterValidator(_checked_subject)]
HeaderValues = Annotated[dict[str, str], AfterValidator(_checked_headers)]
JSON = Annotated[Any, AfterValidator(_checked_json)]

S = TypeVar("S", "ExampleMessage", "ExpectedMessage")


def _has_one_payload(section: S) -> S:
    # TOML has no null, so None means that neither was given.
    if section.body is not None and section.payload is not None:
        raise ValueError("json and payload exclude each other; keep one")
    return section


class ExampleMessage(Section, init=False):
    """`[tests.message]`: the message that the router receives."""

    connection: str | None = Field(
        None, description="Connection that receives the message; by default that of the first route that takes it."
    )
    subject: Subject = Field(description="Subject of the message.", examples=["orders.7.created"])
    headers: HeaderValues = Field(default={}, description="Its headers.", examples=[{"region": "eu"}])
    body: JSON = Field(
        None, validation_alias="json", serialization_alias="json", description="Its payload, which is sent as JSON."
    )
    payload: str | None = Field(None, description="Its payload as text.")

    _one_payload = model_validator(mode="after")(_has_one_payload)


class ExpectedMessage(Section, init=False):
    """`[[tests.expect]]`: a message that must be sent. Keys that are left out are not compared."""

    connection: str | None = Field(None, description="Connection that the message is published on.")
    subject: Subject = Field(description="Subject that the message is published on.", examples=["fast.7"])
    headers: HeaderValues | None = Field(None, description="Headers that the message must have; it may have others.")
    body: JSON = Field(
        None, validation_alias="json", serialization_alias="json", description="Its payload, compared as JSON."
    )
    payload: str | None = Field(None, description="Its payload as text.")

    _one_payload = model_validator(mode="after")(_has_one_payload)


class ExampleSettings(Section, init=False):
    """`[[tests]]`: a message, and what the router must send for it."""

    name: str = Field(min_length=1, description="Name of the example; unique.")
    message: ExampleMessage = Field(description="The message to route.")
    expect: list[ExpectedMessage] = Field(
        description="All messages that must be published, in any order; []: none may be."
    )
