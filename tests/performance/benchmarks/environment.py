"""Paths of the benchmark: the project's root, and an environment for the peers, outside of the project's.

The peers are installed on the first run, and again when `requirements.txt` has changed. Those in Go are built from the
modules in `peers`, where Go is installed, and again when one of their files has changed.

`python -m tests.performance.benchmarks.environment` installs and builds all of them, for a quick run.
"""

from __future__ import annotations

import compileall
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
PEERS = HERE / "peers"
WORK = ROOT / ".bench"
"""Environment and results; not under version control."""

_VENV = WORK / "venv"
_REQUIREMENTS = HERE / "requirements.txt"
_INSTALLED = WORK / "installed.txt"
INSTALL_WITHIN = 600

COMPILED = Path(".venv-compiled", "bin", "python")
"""The interpreter, in a checkout, that imports the compiled package, if `make compiled` has installed it."""

BEFORE = Path(os.environ["AGAINST"]).resolve() if os.environ.get("AGAINST") else None
"""Another checkout of the project, to be compared with this one. `make compiled` in it adds its compiled package."""

GO_PEERS = WORK / "go"
"""Peers that are written in Go."""
WITHOUT_PGO = "without PGO"


def peer_python() -> Path:
    """Return the interpreter of the peers' environment."""
    return _VENV / "bin" / "python"


def peer_package(name: str) -> Path:
    """Return the path of a package of the peers, if it could be installed."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return _VENV / "lib" / version / "site-packages" / name


def install_peers() -> list[str]:
    """Install the listed packages, each by itself, so that one that is unavailable leaves the others; return the
    failures.

    Blocks for a minute or so on the first run.
    """
    wanted = _REQUIREMENTS.read_text()
    if _INSTALLED.exists() and _INSTALLED.read_text().startswith(wanted):
        return [line[2:] for line in _INSTALLED.read_text()[len(wanted) :].splitlines()]
    WORK.mkdir(exist_ok=True)
    if not peer_python().exists():
        subprocess.run([sys.executable, "-m", "venv", str(_VENV)], check=True)
    failed = []
    for line in wanted.splitlines():
        if line and not line.startswith("#"):
            print(f"installing {line} ...", file=sys.stderr)
            command = [str(peer_python()), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", line]
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_WITHIN)
            if done.returncode:
                failed.append(f"{line}: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    _INSTALLED.write_text(wanted + "".join(f"! {one}\n" for one in failed))
    return failed


def build_go_peers() -> list[str]:
    """Build the peers in Go whose sources have changed, each by itself; return the failures. Blocks for seconds."""
    failed = []
    for module in sorted(PEERS.glob("*/go.mod")):
        program = GO_PEERS / module.parent.name
        sources = [path.stat().st_mtime for path in module.parent.iterdir()]
        if program.exists() and program.stat().st_mtime > max(sources):
            continue
        program.unlink(missing_ok=True)
        if shutil.which("go") is None:
            failed.append(f"{program.name}: there is no Go here")
            continue
        print(f"building {program.name} ...", file=sys.stderr)
        command = ["go", "build", "-buildvcs=false", "-trimpath", "-o", str(program), "."]
        done = subprocess.run(
            command, cwd=module.parent, capture_output=True, text=True, timeout=INSTALL_WITHIN, check=False
        )
        if done.returncode:
            failed.append(f"{program.name}: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    return failed


def python_build() -> str:
    """Return which Python this is, and if it was built with PGO, without which it is 10 to 25 % slower.

    Debian builds its interpreter with PGO, but `sysconfig` describes the build of its library.
    """
    if sys.base_prefix == "/usr" and Path("/etc/debian_version").exists():
        return f"{platform.python_version()}, Debian's, with PGO"
    optimized = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
    return f"{platform.python_version()}, {'with PGO' if optimized else WITHOUT_PGO}"


def compile_package() -> None:
    """Write the bytecode that an installed package has.

    The source tree may have none, or even be forbidden to write any.
    """
    compileall.compile_dir(ROOT / "router_trio", quiet=1)


def process_environment() -> dict[str, str]:
    """Return variables for every process: the project importable, no telemetry settings from outside, unbuffered
    output.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "ROUTER_TRIO_"))}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


if __name__ == "__main__":
    for failure in install_peers() + build_go_peers():
        print(f"left out: {failure}", file=sys.stderr)
