"""Secrets are removed from texts of peers, in every form, and only they."""

from __future__ import annotations

from typing import Any, cast

import pytest

from router_trio.errors import AuthorizationError
from router_trio.nats.jetstream.api import Api, ApiError, Denials
from router_trio.nats.jetstream.pubacks import PubAcks
from router_trio.nats.secrets import Secrets

SECRETS = Secrets(["s3cret-of-main", "s3cret", "abc"])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("password s3cret-of-main is wrong", "password [redacted] is wrong"),
        ("password s3cret is wrong", "password [redacted] is wrong"),
        ("czNjcmV0LW9mLW1haW4= is wrong", "[redacted]= is wrong"),
        ("it was s3cret-of…", "it was [redacted]…"),
        ("it was s3…", "it was s3…"),
        ("abc is a word", "abc is a word"),
    ],
)
def test_a_secret_is_hidden_also_where_a_quote_cuts_it(text: str, shown: str) -> None:
    assert SECRETS.hide(text) == shown


def test_an_error_keeps_its_kind_its_reason_and_its_cause() -> None:
    error = AuthorizationError("you sent s3cret", reason="handshake")
    error.__cause__ = OSError()
    hidden = SECRETS.hide_in(error)
    assert (type(hidden), str(hidden), hidden.reason) == (AuthorizationError, "you sent [redacted]", "handshake")
    assert hidden.__cause__ is error.__cause__
    other = AuthorizationError("no")
    assert SECRETS.hide_in(other) is other


async def test_the_description_of_an_error_of_the_api_has_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answered(*_: Any) -> bytes:
        return b""

    def refused(_: bytes) -> None:
        raise ApiError(500, 10_000, "you are s3cret")

    monkeypatch.setattr(Api, "request", answered)
    with pytest.raises(ApiError, match=r"^you are \[redacted\]$"):
        await Api(cast(Any, None), Denials(), hide=SECRETS.hide).at("$JS.hub.API").ask("INFO", b"", refused)


def test_the_refusal_of_a_publish_has_no_secret() -> None:
    details: list[str] = []

    class Listener:
        def acked(self, pubacks: object) -> None:
            """Do nothing: none is stored."""

        def ack_refused(self, order: int, reason: str, detail: str, retriable: bool, stream: str = "") -> None:
            details.append(detail)

    body = b'{"error":{"code":500,"err_code":10000,"description":"you are s3cret"}}'
    PubAcks(cast(Any, Listener()), hide=SECRETS.hide).read([(b"_INBOX.x.1", b"", 0, len(body), body + b"\r\n")])
    assert details
    assert not [detail for detail in details if "s3cret" in detail]
