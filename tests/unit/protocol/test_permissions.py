"""The purpose of refused publishes. `tests/unit/cli/test_permissions.py` has the table."""

from __future__ import annotations

import pytest

from router_trio.protocol.permissions import ACK, PULL, REQUEST, Cause, cause_of


@pytest.mark.parametrize(
    ("subject", "cause"),
    [
        ("$JS.ACK.S.D.1.2.3.4.0", Cause(ACK, "$JS.ACK.S.D.>", "S", "D")),
        ("$JS.ACK.hub.hash.S.D.1.2.3.4.0", Cause(ACK, "$JS.ACK.hub.hash.S.D.>", "S", "D")),
        ("$JS.ACK._.hash.S.D.1.2.3.4.0.token", Cause(ACK, "$JS.ACK._.hash.S.D.>", "S", "D")),
        ("$JS.API.CONSUMER.MSG.NEXT.S.D", Cause(PULL, "$JS.API.CONSUMER.MSG.NEXT.S.D", "S", "D")),
        ("$JS.hub.API.CONSUMER.MSG.NEXT.S.D", Cause(PULL, "$JS.hub.API.CONSUMER.MSG.NEXT.S.D", "S", "D")),
        ("$JS.API.STREAM.INFO.S", Cause(REQUEST, "$JS.API.STREAM.INFO.S")),
        ("$JS.ACK.S.D", None),
        ("orders.1", None),
        ("", None),
    ],
)
def test_the_purpose_of_a_refused_publish_is_recognized(subject: str, cause: Cause | None) -> None:
    assert cause_of(subject) == cause


def test_an_api_prefix_is_recognized() -> None:
    asked = "from.hub.API.CONSUMER.MSG.NEXT.S.D"
    assert cause_of(asked, "from.hub.API") == Cause(PULL, asked, "S", "D")
    assert cause_of(asked) is None
