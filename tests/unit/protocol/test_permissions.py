"""The purpose of refused publishes. `tests/unit/cli/test_permissions.py` has the table."""

from __future__ import annotations

import pytest

from router_trio.protocol.permissions import ACK, PULL, REQUEST, Cause, cause_of, mapped_at_own_domain


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


@pytest.mark.parametrize(
    ("asked", "checked"),
    [
        (b"$JS.hub.API.STREAM.INFO.S", b"$JS.API.STREAM.INFO.S"),
        (b"$JS.hub.API.$KV.settings.eu", b"$KV.settings.eu"),
        (b"$JS.hub.API.$OBJ.files.C.1", b"$OBJ.files.C.1"),
        (b"$JS.API.STREAM.INFO.S", b"$JS.API.STREAM.INFO.S"),
        (b"from.hub.API.STREAM.INFO.S", b"from.hub.API.STREAM.INFO.S"),
        (b"$JS.ACK.S.D.1.2.3.4.0", b"$JS.ACK.S.D.1.2.3.4.0"),
        (b"orders.1", b"orders.1"),
        (b"", b""),
    ],
)
def test_the_server_of_a_domain_checks_what_it_maps_the_subject_to(asked: bytes, checked: bytes) -> None:
    assert mapped_at_own_domain(asked) == checked
