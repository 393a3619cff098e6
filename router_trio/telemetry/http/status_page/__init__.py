"""The status page at `/`: a single document that loads no other resources.

`page.html`, `page.css` and `page.js` are combined once. The page's Content-Security-Policy allows its own script and
style by their hashes, and requests to its own origin.
"""

from __future__ import annotations

from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files


@cache
def page() -> tuple[str, dict[str, str]]:
    """Return the text of the page, and the headers to serve it with."""
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
