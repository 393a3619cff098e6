"""Files of settings: where an error is, and what their paths are relative to."""

from __future__ import annotations

from pathlib import Path

import pytest

from router_trio.errors import ConfigurationError
from router_trio.settings import Settings
from tests.support.certificates import create_certificates
from tests.support.credentials import create_operator
from tests.unit.settings.problems import Load, problems


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[router]\nname = \n", "line 2, column 8"),
        ("[router\n", "line 1, column 8"),
        ("a = 1\na = 2\n", "line 2, column 6"),
        ('a = "x', "line 1, column 7"),
        ('a = """\nx', "line 2, column 2"),
    ],
)
def test_toml_error_names_line_and_column(text: str, place: str, load: Load, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(text)
    assert str(caught.value).startswith(f"{tmp_path / 'router.toml'}: not valid TOML: ")
    assert place in str(caught.value)


def test_file_that_is_not_utf8_names_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "router.toml"
    path.write_bytes(b"[router]\nname = '\xff'\n")
    with pytest.raises(ConfigurationError, match="line 2, column 9; save the file as UTF-8"):
        Settings.load(path, environ={})


def test_a_missing_file_or_an_empty_folder_is_reported_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such file; create it or correct the path") as caught:
        Settings.load(str(tmp_path / "none.toml"), environ={})
    assert caught.value.source == str(tmp_path / "none.toml")
    with pytest.raises(ConfigurationError, match=r"there is no \.toml file in this folder; add one"):
        Settings.load(tmp_path, environ={})
    for path in ("router\0.toml", "x" * 300):
        with pytest.raises(ConfigurationError, match=r"can't be read .*; c"):
            Settings.load(path, environ={})


def test_a_number_without_a_unit_in_a_file_is_refused(load: Load) -> None:
    found = problems(lambda: load("[connections.main]\nreconnect_delay = 500\nmax_pending_bytes = 4096\n"))
    assert found == {
        "connections.main.reconnect_delay": "has no unit; write '500s' for seconds or '500ms'",
    }


def test_paths_in_a_file_are_relative_to_its_folder(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for folder in (home, elsewhere, tmp_path / "tls"):
        folder.mkdir()
    made = create_certificates(tmp_path / "made")
    create_operator().credentials(tmp_path / "user.creds")
    made.ca.rename(tmp_path / "tls" / "ca.pem")
    made.client.certificate.rename(home / "cert.pem")
    made.client.key.rename(elsewhere / "key.pem")
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("HOME", str(home))
    main = load(
        f"""
        [connections.main]
        credentials_file = "user.creds"
        tls_ca_file = "tls/ca.pem"
        tls_cert_file = "~/cert.pem"
        tls_key_file = "{elsewhere}/key.pem"
        """
    ).connections["main"]
    assert main.credentials_file == tmp_path / "user.creds"
    assert main.tls_ca_file == tmp_path / "tls" / "ca.pem"
    assert main.tls_cert_file == home / "cert.pem"
    assert main.tls_key_file == elsewhere / "key.pem"


def test_the_home_of_an_unknown_user_is_reported_as_a_missing_file(load: Load, tmp_path: Path) -> None:
    found = problems(lambda: load('[connections.main]\ntls_ca_file = "~no.such.user/ca.pem"\n'))
    missing = str(tmp_path / "~no.such.user" / "ca.pem")
    assert found == {"connections.main.tls_ca_file": f"there is no file {missing!r}; create it or correct the path"}


ROUTE = '[connections.main]\nservers = ["nats://h"]\n[[routes]]\nname = "r"\nfrom = { subject = "in.*" }\n'
TO = '[[routes.to]]\nsubject = "out"\n'


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        (f'{ROUTE}{TO}jetstream = "yes"\n', "routes[0].to[0].jetstream", "must be true or false, without quotes"),
        (f"{ROUTE}{TO}jetstream = 1\n", "routes[0].to[0].jetstream", "must be true or false"),
        (f'{ROUTE}{TO}weight = "3"\n', "routes[0].to[0].weight", "must be a whole number, without quotes"),
        (f"{ROUTE}{TO}weight = true\n", "routes[0].to[0].weight", "must be a whole number"),
        (f'{ROUTE}{TO}mirror = "0.5"\n', "routes[0].to[0].mirror", "must be a number, without quotes"),
        (
            f'{ROUTE}[routes.to]\nsubject = "out"\n',
            "routes[0].to",
            "must be a list of tables: write [[routes.to]], with two brackets, in place of [routes.to]",
        ),
        (
            f"{ROUTE}{TO}".replace("[[routes]]", "[routes]"),
            "routes",
            "must be a list of tables: write [[routes]], with two brackets, in place of [routes]",
        ),
        (
            f"{ROUTE}{TO}".replace("[connections.main]", "[[connections.main]]"),
            "connections.main",
            "must be one table: write [connections.main], with one bracket, in place of [[connections.main]]",
        ),
        (
            f"{ROUTE}{TO}".replace('["nats://h"]', '"nats://HUSH@h"'),
            "connections.main.servers",
            "must be a list in brackets: write servers = [...]",
        ),
    ],
)
def test_a_value_of_another_kind_is_refused_with_the_cure(text: str, path: str, message: str, load: Load) -> None:
    found = problems(lambda: load(text))
    assert found == {path: message}
