"""axe-core, which finds accessibility problems of a page: fetched from npm, in a fixed version.

It is half a megabyte and under the MPL, so it is not part of this tree.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from base64 import b64encode
from functools import cache
from pathlib import Path
from typing import Any

from tests.support.browser import Page

VERSION = "4.14.1"
INTEGRITY = "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ=="
FETCHED_WITHIN = 60
_SCRIPT = "package/axe.min.js"


class NoAxe(Exception):
    """axe-core is not available here; the argument is the reason."""


@cache
def script() -> str:
    """Return the script of axe-core, from the cache of this user or from npm. Raises `NoAxe`."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "router_trio"
    packed = folder / f"axe-core-{VERSION}.tgz"
    if not packed.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise NoAxe("no npm to fetch axe-core with")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as directory:
            command = [npm, "pack", f"axe-core@{VERSION}", "--silent", "--pack-destination", directory]
            try:
                subprocess.run(command, capture_output=True, check=True, timeout=FETCHED_WITHIN, cwd=directory)
            except (subprocess.SubprocessError, OSError) as error:
                raise NoAxe(f"npm could not fetch axe-core {VERSION}: {error}") from error
            (Path(directory) / packed.name).replace(packed)
    digest = b64encode(hashlib.sha512(packed.read_bytes()).digest()).decode()
    assert digest == INTEGRITY, f"{packed} is not axe-core {VERSION} as it was published: remove it"
    with tarfile.open(packed) as archive:
        member = archive.extractfile(_SCRIPT)
        assert member is not None
        return member.read().decode()


async def violations(page: Page) -> list[str]:
    """Return the problems that axe-core finds in a page: one line for each element."""
    if not await page.evaluate("'axe' in window"):
        await page.evaluate(f"{script()}; true")
    asked = "axe.run(document, {resultTypes: ['violations']}).then((found) => found.violations)"
    found: list[dict[str, Any]] = await page.evaluate(asked)
    return [f"{one['id']}: {node['html']}: {node['failureSummary']}" for one in found for node in one["nodes"]]
