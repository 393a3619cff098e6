"""Quotes of texts from outside: bounded, made in linear time, and without secrets."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from router_trio import events
from router_trio.errors import MappingError, PublishError, SubjectError
from router_trio.errors.quotes import LONGEST_QUOTE, LONGEST_TEXT, bounded, excerpt, quoted, redact, text_of_error
from router_trio.protocol.headers import Headers, encode
from router_trio.settings.server_url import _HOST, ServerURL
from router_trio.states import ConnectionState
from router_trio.subjects.mapping import Mapping
from router_trio.subjects.patterns import validate_pattern, validate_subject
from router_trio.telemetry.logs.lines import Logs
from router_trio.telemetry.logs.recent import Recent
from router_trio.telemetry.logs.redact import redact_all, shown_text
from router_trio.telemetry.traces.spans import error_text

HOSTILE = [
    *("a:a:a:a@", "://", "=", '"', "'", "(", "[", "a://", "a@", "a:", "@a", "@", ":", "token=", "token='", 'token":'),
    *("eyJ", "eyJ.", "SA", "-----BEGIN", "-----END", "bearer ", "'(", "a.", "x://[:", "x://a:", "a:@", "nats://a:b@"),
    *("//", "a:b@c ", "nats://a:b@c ", "\udc80", "\n", "\x1b", "a\u2028", "bearer x "),
]

# The words that the rules match, and single characters, so that texts reach the rules.
PIECES = st.lists(
    st.sampled_from([*HOSTILE, *":/@='\"([])?.,;- \n", "nats", "user", "host:4222", "token=", "secret=", "eyJhbGciOi"])
    | st.text(max_size=3),
    max_size=30,
).map("".join)


def grows_less_than(times: float, work: Callable[[str], object], unit: str, size: int) -> bool:
    """Return True if four times the text takes less than `times` as long: the least processor time of some runs.

    What seems too slow is measured again, up to three times in all.
    """

    def least(length: int) -> float:
        text = unit * (length // len(unit))
        best = float("inf")
        for _ in range(5):
            started = time.thread_time()
            work(text)
            best = min(best, time.thread_time() - started)
        return best

    return any(least(4 * size) < times * least(size) for _ in range(3))


def failed(text: str) -> events.Event:
    return events.MessageFailed(at=0.0, route="r", reason="mapping", detail=text)


def log(text: str) -> bytes:
    sink: list[bytes] = []
    logs = Logs(write=sink.append)
    logs.write(failed(text))
    return b"".join(logs._writer._lines)


def recent(text: str) -> str:
    kept = Recent()
    kept.observe(failed(text))
    return json.dumps(kept.since(0))


@pytest.mark.slow
@pytest.mark.parametrize("unit", HOSTILE)
def test_the_cost_grows_no_faster_than_the_text(unit: str) -> None:
    # Quadratic work would grow 16 times, cubic work 64 times.
    for work in (redact, log, recent, quoted, excerpt):
        assert grows_less_than(8, work, unit, 4_000), work
    started = time.thread_time()
    log(unit * (64 * 1024 // len(unit)))
    assert time.thread_time() - started < 1


@settings(deadline=None)  # the machine may be busy
@given(PIECES)
@example("nats://a://b@c")
def test_redacting_twice_changes_nothing(text: str) -> None:
    once = redact(text)
    assert redact(once) == once


@settings(deadline=None)  # the machine may be busy
@given(PIECES, st.integers(1, 200))
@example("\U00010000" * 4, 121)
def test_every_text_is_bounded_and_printable(text: str, times: int) -> None:
    text *= times
    for shown in (excerpt(text), quoted(text)):
        assert len(shown) <= 12 * LONGEST_QUOTE
        shown.encode()  # contains no surrogate
        assert shown.isprintable()
    assert len(excerpt(text)) <= LONGEST_QUOTE
    assert len(bounded(text)) <= LONGEST_TEXT
    assert len(shown_text(text)) <= LONGEST_TEXT
    assert shown_text(text).isprintable()
    # JSON writes a character beyond the basic plane as twelve; the rest of the line adds to that.
    assert len(log(text)) <= 12 * LONGEST_TEXT + len(log("x"))
    assert len(recent(text)) <= 12 * LONGEST_TEXT + len(recent("x"))


SECRET = st.text("ABCDEFGHJKLMNPQRSTUVWXYZ", min_size=12, max_size=12).map(lambda text: f"Q{text}9Z")
PLACES = st.sampled_from(
    [
        "nats://user:{}@host:4222",
        "nats://user:{}@",
        "nats://{}@host",
        "nats://user:{}",
        "nats://user:{}/path",
        "nats://user:{}:4222",
        "tls://user:{}@@host",
        "tls://a://b:{}@host",
        "nats://a:4222,nats://u:{}@b:4222",
        "user:{}@host:4222",
        "('user:{}@host', 4222)",
        "nats://host?token={}",
        "nats://host:4222/?token={}&x=1",
        "password={}",
        'token="{} and more"',
        '"password": "{}"',
        "api_key={}",
        "Authorization: Bearer {}",
        "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----",
        "-----BEGIN NATS USER JWT-----\n{}",
        "eyJhbGciOi.eyJqdGkiOiI.{}",
    ]
)


@settings(deadline=None)  # the machine may be busy
@given(SECRET, PLACES, st.text(" abc.\n", max_size=40), st.text(" abc.\n", max_size=2000))
def test_no_secret_survives(secret: str, place: str, before: str, after: str) -> None:
    text = f"{before} {place.format(secret)} {after}"
    for show in (redact, shown_text, bounded_and_redacted, lambda text: log(text).decode(), recent):
        assert secret not in show(text)


def bounded_and_redacted(text: str) -> str:
    return str(redact_all(bounded(text)))


@settings(deadline=None)  # the machine may be busy
@given(SECRET, st.integers(0, 1100))
def test_no_secret_survives_where_a_text_is_truncated(secret: str, at: int) -> None:
    text = "x" * at + f" nats://user:{secret}{'s' * 2000}@host:4222"
    for cut in (excerpt(text), quoted(text), bounded(text)):
        assert secret[:6] not in redact(cut)


@settings(deadline=None)  # the machine may be busy
@given(st.integers(0, 1200), st.integers(0, 1200))
def test_no_half_of_a_key_survives_behind_redacted_text(taken_out: int, before: int) -> None:
    text = f"{'a ' * before}nats://u:{'p' * taken_out}@host {SEED} {SEED}" + " b" * 1000
    for cut in (excerpt(text), quoted(text), bounded(text)):
        assert SEED[:10] not in redact(cut)


SEED = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"


def test_an_nkey_seed_is_redacted() -> None:
    seed = SEED
    assert redact(f"can't read {seed}") == "can't read [redacted]"


@pytest.mark.parametrize(
    "text",
    [
        "connect to nats://127.0.0.1:4222: refused",
        "nats://[::1]:4222, then nats://[fe80::a].",
        "http://localhost:4318/v1/traces (404)",
        "the durable 'd' of stream 'S' exists with another configuration: its ack policy is none; see a=b",
        "ask someone@example.com",
    ],
)
def test_text_without_secrets_is_kept(text: str) -> None:
    assert redact(text) == text


def test_truncation_is_marked() -> None:
    assert quoted("a" * 4096) == "'" + "a" * (LONGEST_QUOTE - 1) + "…' (4096 characters)"
    assert quoted("a" * LONGEST_QUOTE) == repr("a" * LONGEST_QUOTE)
    assert excerpt("a" * 4096).endswith("a…")
    assert excerpt("line\nline\x1b[1m\udc80") == "line\\nline\\x1b[1m\\udc80"


def test_an_error_that_cannot_be_printed_is_described_by_its_type() -> None:
    class BrokenError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert text_of_error(BrokenError()) == "BrokenError"
    assert text_of_error(ValueError()) == "ValueError"
    assert len(text_of_error(ValueError("x" * 5000))) <= LONGEST_QUOTE


LONG = "a:a:a:a@." * 500


@pytest.mark.parametrize(
    ("refuse", "kind"),
    [
        (lambda: validate_subject(LONG + "b c"), SubjectError),
        (lambda: validate_subject(LONG + "*"), SubjectError),
        (lambda: validate_pattern(LONG + "b*"), SubjectError),
        (lambda: Mapping.compile("a.*", "b.{{wildcard(1)}}").apply(LONG), MappingError),
        (lambda: Mapping.compile("*.*", "{{split(1,-)}}.b").apply(f"--{'x' * 4000}.y"), MappingError),
        (lambda: encode(Headers([(LONG + " ", "x")])), PublishError),
        (lambda: encode(Headers([("x" * 4000, "a\r\nb")])), PublishError),
    ],
)
def test_no_error_quotes_a_long_subject_or_header_in_full(refuse: Callable[[], object], kind: type[Exception]) -> None:
    with pytest.raises(kind) as raised:
        refuse()
    assert len(str(raised.value)) < LONGEST_TEXT


def test_the_texts_of_an_event_are_bounded_at_its_creation() -> None:
    event = events.ConnectionLost(
        at=0.0, connection="main", server="s" * 9999, reason="r" * 9999, detail="d" * 9999, pending_count=0
    )
    assert max(len(event.server), len(event.reason), len(event.detail)) <= LONGEST_TEXT


def test_a_span_contains_no_more_than_a_log_line() -> None:
    text = error_text("at nats://user:QSECRET@host " + "\udc80" * 5000)
    assert "QSECRET" not in text
    assert len(text) <= LONGEST_TEXT
    assert text.encode()


@pytest.mark.slow
@pytest.mark.parametrize("unit", [":", "a.", "a-", "@", "%", "[", "://", "?", "nats://a:b@"])
def test_a_server_address_is_refused_in_linear_time(unit: str) -> None:
    def parse(text: str) -> None:
        with pytest.raises(ValueError, match=r"server URL|scheme|host and a port"):
            ServerURL.parse(f"[{text}x]:4222")
        with pytest.raises(ValueError, match=r"server URL|scheme|host and a port"):
            ServerURL.parse(text + "-:4222/a")
        assert _HOST.fullmatch(text + "-") is None

    assert grows_less_than(8, parse, unit, 32_000)


def test_the_reason_of_an_unready_connection_is_short() -> None:
    state = ConnectionState("main")
    state.last_error = bounded("e" * 9999)
    reason = state.unready(0.0)
    assert reason is not None
    assert len(reason) <= LONGEST_TEXT + 20
