"""A secret in the wrong place of a configuration is never repeated: neither in an error nor in a repr."""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router_trio import Settings
from router_trio.errors import ConfigurationError
from router_trio.settings.server_url import ServerURL
from tests.support.drawn import examples

SECRET = st.from_regex(r"[A-Za-z0-9_~!$*+-]{4,20}Zq9", fullmatch=True)
SEED = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"
JWT = "eyJ0eXAiOiJKV1QiLCJhbGciOiJlZDI1NTE5LW5rZXkifQ.eyJqdGkiOiJZQ1JTU0JLNk9KR0ZDIn0.c2lnbmF0dXJlLW9mLWEtdXNlcg"
PEM = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n-----END PRIVATE KEY-----\n"
CREDS = (
    f"-----BEGIN NATS USER JWT-----\n{JWT}\n------END NATS USER JWT------\n\n"
    f"-----BEGIN USER NKEY SEED-----\n{SEED}\n------END USER NKEY SEED------\n"
)

ODD_URLS = [
    "nats://user:{}",
    "nats://user:{}/",
    "nats://user:{}:4222",
    "tls://user:{}?x=1",
    "user:{}",
    "user:{}/host",
    "nats://host?token={}",
    "nats://host:4222?token={}",
    "nats://host:4222/?token={}&tls=1",
    "nats://host:4222/{}",
    "nats://host:4222#{}",
    "nats://host:4222 {}",
    "nats://user:{}@",
    "nats://user:{}@:4222",
    "nats://user:{}@host:port",
    "nats://@user:{}",
    "nats://host:4222@user:{}",
    "nats:/user:{}@host",
    "://user:{}@host",
    "http://user:{}@host",
    "user:{}://host",
    "nats://user:{}@host:4222/path",
    "nats://a:4222,nats://user:{}",
    "nats://[{}",
    "nats://[{}]:4222",
    "wss://host/leafnode?{}",
    "wss://host/nats?a={}#b",
    "wss://host/{}:x",
    "ws://user:{}@host/mqtt?x",
]


def refusal(build: Any) -> tuple[str, list[str]]:
    """Return everything that the error of a refused configuration shows, and the keys that it names."""
    with pytest.raises(ConfigurationError) as caught:
        build()
    error = caught.value
    shown = [str(error), repr(error), repr(error.problems), *traceback.format_exception(error)]
    return "\n".join(shown), [problem.path for problem in error.problems]


@settings(deadline=None)  # the machine may be busy
@given(SECRET, st.sampled_from(ODD_URLS))
def test_only_the_address_of_a_server_url_is_ever_repeated(secret: str, form: str) -> None:
    shown, keys = refusal(lambda: Settings(connections={"main": {"servers": [form.format(secret)]}}))
    assert secret not in shown
    assert keys == ["connections.main.servers[0]"]


@pytest.mark.parametrize("form", ["{}", "nats://{}", "nats://{}:4222", "tls://host/{}", "{}@", " {}"])
@pytest.mark.parametrize("secret", [SEED, JWT, PEM, CREDS, SEED[:40]])
def test_a_key_in_place_of_a_server_is_refused(form: str, secret: str) -> None:
    shown, keys = refusal(lambda: Settings(connections={"main": {"servers": [form.format(secret)]}}))
    assert secret[:20] not in shown
    assert SEED not in shown
    assert keys == ["connections.main.servers[0]"]


def test_a_wrong_address_is_still_shown() -> None:
    for text in ("http://host:4222", "nats://host:0", "nats://host:70000", "nats://[::1]:70000"):
        with pytest.raises(ValueError, match=r"'nats://host:4222'") as caught:
            ServerURL.parse(text)
        assert repr(text) in str(caught.value)


@pytest.mark.parametrize("key", ["credentials_file", "nkey_seed_file", "tls_ca_file", "tls_cert_file", "tls_key_file"])
@pytest.mark.parametrize("secret", [SEED, JWT, PEM, CREDS, SEED[:40], f" {SEED}\n", f"./{SEED}", PEM * 50])
def test_a_key_in_place_of_a_path_is_refused_with_a_cure(tmp_path: Path, key: str, secret: str) -> None:
    file = tmp_path / "router.toml"
    file.write_text(f"[connections.main]\n{key} = {json.dumps(secret)}\n")
    for build in (
        lambda: Settings.load(file, environ={}),
        lambda: Settings(connections={"main": {key: secret}}),
        lambda: Settings.load(file, environ={f"ROUTER_TRIO_CONNECTIONS__MAIN__{key.upper()}": secret}),
    ):
        shown, keys = refusal(build)
        assert f"connections.main.{key}" in keys
        assert "write it into a file" in shown
        assert "MIIEvQ" not in shown
        assert SEED[:30] not in shown
        assert JWT[:30] not in shown


@pytest.mark.parametrize("key", ["tls_hostname", "user"])
@pytest.mark.parametrize("secret", [SEED, JWT, PEM])
def test_a_key_in_place_of_a_name_is_refused(secret: str, key: str) -> None:
    shown, keys = refusal(lambda: Settings(connections={"main": {key: secret}}))
    assert secret[:30] not in shown
    assert f"connections.main.{key}" in keys


PLACES: list[tuple[str, dict[str, str]]] = [
    ("password = {}\nuser = 5", {}),
    ("passwort = {}", {}),
    ("[connections.main.nonsense]\npassword = {}", {}),
    ("password = [{}]", {}),
    ("token = {{ value = {} }}", {}),
    ("fail_open = {}", {}),
    ("max_pending_operations = {}", {}),
    ("on_pending_full = {}", {}),
    ("servers = {}", {}),
    ("servers = [[{}]]", {}),
    ("password = {}\n= broken", {}),
    ("password = {} {}", {}),
    ("", {"CONNECTIONS__MAIN__PASSWORT": "{}"}),
    ("", {"CONNECTIONS__MAIN__SERVERS": "{}"}),
    ("", {"CONNECTIONS__MAIN__SERVERS": '["nats://user:{}"]'}),
    ("", {"CONNECTIONS__MAIN__SERVERS": '{{"password": "{}"'}),
    ("", {"CONNECTIONS__MAIN": "{}"}),
    ("", {"CONNECTIONS": '{{"main": {{"password": "{}", "user": 5}}}}'}),
    ("", {"CONNECTIONS__MAIN__FAIL_OPEN": "{}"}),
    ("", {"CONNECTIONS__OTHER__PASSWORD": "{}"}),
    ("", {"CONNECTIONS__OTHER__PASSWORT": "{}"}),
    ("", {"CONNECTIONS__OTHER__PASSWORD": '["{}"]'}),
    ("", {"CONNECTIONS__OTHER": '{{"password": "{}"}}'}),
    ("", {"CONNECTIONS__OTHER": '"{}"'}),
    ("", {"CONNECTIONS__OTHER": '["{}"]'}),
    ("", {"CONNECTIONS": '{{"other": {{"password": "{}"}}}}'}),
    ("", {"CONNECTIONS": '{{"other": "{}"}}'}),
    ("", {"PASS__WORD": "{}"}),
    ("", {"TELEMETRY__OTLP_ENDPOINT": "http://user:{}@host"}),
    ("", {"TELEMETRY__OTLP_ENDPOINT": "user:{}@host"}),
    ("", {"TELEMETRY__LISTEN": "user:{}@host"}),
]


def shown_of(build: Any) -> str:
    """Return everything that is shown of a configuration: its refusal, or the settings and what they ignore."""
    try:
        loaded = build()
    except ConfigurationError as error:
        shown = [str(error), repr(error), repr(error.problems), *traceback.format_exception(error)]
    else:
        assert loaded.without_effect, "neither refused nor reported as ignored"
        shown = [repr(loaded), str(loaded), repr(loaded.without_effect), *map(str, loaded.without_effect)]
    return "\n".join(shown)


@pytest.mark.parametrize(("text", "variables"), PLACES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=examples(25))
@given(secret=SECRET)
def test_a_secret_in_the_wrong_place_is_never_repeated(
    tmp_path: Path, secret: str, text: str, variables: dict[str, str]
) -> None:
    file = tmp_path / "router.toml"
    file.write_text("[connections.main]\n" + text.format(*[json.dumps(secret)] * text.count("{}")))
    environ = {f"ROUTER_TRIO_{name}": form.format(secret) for name, form in variables.items()}
    assert secret not in shown_of(lambda: Settings.load(file, environ=environ))
