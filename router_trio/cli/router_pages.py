"""Requests to the HTTP side of a running router, for the commands that look at one. They block, up to `TIMEOUT`."""

from __future__ import annotations

import json
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from router_trio.cli.command_line import UsageError
from router_trio.errors import RouterError
from router_trio.errors.quotes import excerpt

DEFAULT_URL = "http://127.0.0.1:9001"
"""The address of a router that has none in its configuration."""

TIMEOUT = 10.0
"""Seconds after which a router that does not answer counts as unreachable."""

MAX_ANSWER = 256 * 1024 * 1024
"""Maximum size of an answer in bytes: /status has some 1,000 bytes for each route."""

_FORM = f"give the URL of the router's HTTP side, such as {DEFAULT_URL}"


class PageRefused(RouterError):
    """The router has refused a request, with the HTTP status `code`. The text is the router's reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class RouterPages:
    """The pages of the router at `url`, over one connection, which is opened again when it was closed."""

    def __init__(self, url: str) -> None:
        """Raises `UsageError` if this is not an HTTP URL."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable or parts.query or parts.fragment or "@" in parts.netloc:
            raise UsageError(f"{excerpt(url)!r} is not the address of a router; {_FORM}")
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self.url: str = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._prefix = parts.path.rstrip("/")
        self._connection = kind(parts.netloc, timeout=TIMEOUT)

    def get(self, path: str) -> Any:
        """Return the JSON of a page. Raises `PageRefused`, and `RouterError` if the router can't be reached."""
        return self._request("GET", path)

    def unready(self) -> list[dict[str, str]]:
        """Return why the router is not ready, by connection, route, worker or router; nothing if it is.

        A router that hides its reasons is not ready either. Raises as `get`.
        """
        found = self._request("GET", "/readyz", allowed=503)
        if not isinstance(found, dict):
            return []
        reasons: list[dict[str, str]] = found["reasons"]
        if not reasons and found.get("status") == "unavailable":
            reasons = [{"reason": str(found.get("detail") or "not ready")}]
        return reasons

    def post(self, path: str, body: Any) -> Any:
        """Return the JSON that answers `body`. Raises as `get`."""
        return self._request("POST", path, json.dumps(body).encode())

    def delete(self, path: str) -> None:
        """Delete what is at a path. Raises as `get`."""
        self._request("DELETE", path)

    def _request(self, method: str, path: str, body: bytes | None = None, *, allowed: int | None = None) -> Any:
        try:
            code, text = self._exchange(method, path, body)
        except (OSError, HTTPException) as error:
            self._connection.close()
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise RouterError(f"no router answers at {self.url}: {excerpt(why)}; {_FORM}") from None
        try:
            found = json.loads(text) if text else None
        except (ValueError, RecursionError):
            found = None
        if code >= 400 and code != allowed:
            reason = found.get("error") if isinstance(found, dict) else None
            raise PageRefused(code, str(reason or f"{self.url}{path} answers {code}"))
        if found is None and text:
            raise RouterError(f"{self.url}{path} does not answer with JSON: is it a router? {_FORM}")
        return found

    def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        """Send a request, and once more if the router has closed a kept connection meanwhile, as it may do."""
        kept = self._connection.sock is not None
        headers = {} if body is None else {"content-type": "application/json"}
        try:
            self._connection.request(method, self._prefix + path, body, headers)
            answer = self._connection.getresponse()
        except (ConnectionError, HTTPException):
            if not kept:
                raise
            self._connection.close()
            return self._exchange(method, path, body)
        text = answer.read(MAX_ANSWER + 1)
        if len(text) > MAX_ANSWER:
            raise RouterError(f"{self.url}{path} answers with more than {MAX_ANSWER} bytes")
        return answer.status, text
