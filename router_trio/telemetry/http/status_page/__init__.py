"""The status page at `/`: a single document that loads no other resources.

`page.html`, `page.css` and `page.js` are combined once. The page's Content-Security-Policy allows its own script and
style by their hashes, and requests to its own origin. The state of the router at the time of the request is in the page
as JSON, so that the first thing that a browser paints is complete.
"""

from __future__ import annotations

from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files

FIRST = '<script type="application/json" id="first"></script>'
"""The element of the page for the state."""


def in_page(json: bytes) -> bytes:
    """Return JSON as a part of the page. Nothing in it can end the element that it is in."""
    return json.replace(b"<", b"\\u003c")


@cache
def page() -> tuple[bytes, bytes, dict[str, str]]:
    """Return the page before and behind the state, which is JSON for `in_page`, and the headers to serve it with."""
    html, allowed = _read("page.html"), {}
    for tag, file in (("style", "page.css"), ("script", "page.js")):
        content = f"\n{_read(file)}"
        allowed[tag] = f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'"
        html = html.replace(f"<{tag}></{tag}>", f"<{tag}>{content}</{tag}>")
    policy = (
        f"default-src 'none'; script-src {allowed['script']}; style-src {allowed['style']}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    before, behind = html.split(FIRST)
    begin, end = FIRST.split("><")
    return (
        f"{before}{begin}>".encode(),
        f"<{end}{behind}".encode(),
        {
            "content-security-policy": policy,
            "cache-control": "no-store",
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        },
    )


def _read(name: str) -> str:
    return files(__name__).joinpath(name).read_text("utf-8")
