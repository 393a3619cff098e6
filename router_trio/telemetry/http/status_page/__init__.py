"""The status page at `/`: one answer that loads nothing else.

`page.html`, `page.css` and `page.js` are put together once. The policy that the page is served with allows its own
script and style, by their hashes, and requests to where it came from.
"""

from __future__ import annotations

from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files


@cache
def page() -> tuple[str, dict[str, str]]:
    """Return the page's text, and the headers that it is to be served with."""
    html, allowed = _read("page.html"), {}
    for tag, file in (("style", "page.css"), ("script", "page.js")):
        content = f"\n{_read(file)}"
        allowed[tag] = f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'"
        html = html.replace(f"<{tag}></{tag}>", f"<{tag}>{content}</{tag}>")
    policy = (
        f"default-src 'none'; script-src {allowed['script']}; style-src {allowed['style']}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, {
        "content-security-policy": policy,
        "cache-control": "no-store",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }


def _read(name: str) -> str:
    return files(__name__).joinpath(name).read_text("utf-8")
