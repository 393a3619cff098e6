"""Go modules that hold conformance tests: only Go downloads and caches them, nothing of them is run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

FETCH_SECONDS = 60


@cache
def module_directory(module: str) -> Path | None:
    """Return the directory of a module such as `cel.dev/expr@v0.26.0`; None without Go, or if it can't be had.

    Blocks for up to 60 s to download it.
    """
    go = shutil.which("go")
    if go is None:
        return None
    command = [go, "mod", "download", "-json", module]
    environment = {**os.environ, "GOFLAGS": "-mod=mod"}
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=FETCH_SECONDS, env=environment, cwd="/")
    except (subprocess.SubprocessError, OSError):
        return None
    return Path(json.loads(done.stdout)["Dir"])
