"""The secrets of a connection, and their removal from what a peer sends.

A server, a proxy or a gateway may repeat what it was sent, in any text that ends in a log line or on a page: an -ERR,
the reason of a close frame, an answer in HTTP, the description of an error of JetStream.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Iterator
from typing import TypeVar
from urllib.parse import quote, unquote

from router_trio.errors import LinkError, UnexpectedError
from router_trio.errors.quotes import REDACTED
from router_trio.settings import ConnectionSettings, ServerURL

SHORTEST_SECRET = 4
"""Minimum length of a secret that is removed. Shorter ones are parts of many words."""

_CUT = "…"

E = TypeVar("E", bound=LinkError)


class Secrets:
    """The secrets that one link has sent, or may send, in every form in which a peer may write them."""

    __slots__ = ("_forms",)

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._forms: list[str] = []
        self.add(*secrets)

    def add(self, *secrets: str) -> None:
        """Remove these as well."""
        found = {form for one in secrets for form in _forms(one) if len(form) >= SHORTEST_SECRET}
        # The longest first: one secret may be a part of another one.
        self._forms = sorted({*self._forms, *found}, key=len, reverse=True)

    def hide(self, text: str) -> str:
        """Return the text without secrets, also without one that a quote of the peer was cut in."""
        if _CUT in text:
            for form in self._forms:
                for length in range(len(form) - 1, SHORTEST_SECRET - 1, -1):
                    text = text.replace(form[:length] + _CUT, REDACTED + _CUT)
        for form in self._forms:
            text = text.replace(form, REDACTED)
        return text

    def hide_in(self, error: E) -> E:
        """Return the error, or one of the same kind if a peer has brought a secret into its text."""
        if isinstance(error, UnexpectedError):
            # Its text is this package's own.
            return error
        text = str(error)
        hidden = self.hide(text)
        if hidden == text:
            return error
        found = type(error)(hidden, reason=error.reason)
        found.__cause__ = error.__cause__
        return found


def secrets_of(settings: ConnectionSettings, url: ServerURL) -> Secrets:
    """Return the secrets in the settings of a connection, and in the URL of the server that it connects to."""
    found = [settings.password, settings.token]
    pairs = [(settings.user, settings.password)]
    for one in (*settings.servers, url):
        found += [one.password, one.token, one.query]
        pairs.append((None if one.user is None else one.user.get_secret_value(), one.password))
    if (proxy := settings.proxy) is not None:
        found.append(proxy.password)
        pairs.append((None if proxy.user is None else proxy.user.get_secret_value(), proxy.password))
    secrets = Secrets(one.get_secret_value() for one in found if one is not None)
    for user, password in pairs:
        if user is not None and password is not None:
            # As Basic credentials have both. The user alone is none.
            secrets.add(b64encode(f"{user}:{password.get_secret_value()}".encode()).decode())
    for one in (*settings.servers, url):
        if one.query is not None:
            secrets.add(*(value.rpartition("=")[2] for value in one.query.get_secret_value().split("&")))
    for header in settings.websocket_headers.values():
        value = header.get_secret_value()
        secrets.add(value, value.rpartition(" ")[2])  # also without `Bearer`
    return secrets


def _forms(secret: str) -> Iterator[str]:
    """Yield the forms of a secret: as it is, decoded and encoded for a URL, in JSON, in Base64, and read as Latin-1."""
    for one in (secret, unquote(secret)):
        octets = one.encode()
        yield one
        yield octets.decode("latin-1")
        yield octets.decode("ascii", "backslashreplace")
        yield quote(one, safe="")
        yield json.dumps(one)[1:-1]
        encoded = b64encode(octets).decode().rstrip("=")
        yield encoded
        yield encoded.translate({ord("+"): "-", ord("/"): "_"})
