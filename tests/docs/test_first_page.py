"""The commands of the first page run as written: here on this tree, in the nightly run in a fresh environment."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from router_trio.embedded import HOST, reserve_port
from tests.docs.pages import DOCS, README, ROOT, page
from tests.docs.typed import Reader
from tests.support.eventually import eventually

pytestmark = pytest.mark.slow

PAGE = page(README)
REPOSITORY = "https://github.com/router-trio/router-trio"
INSTALLED_WITHIN = 900.0


def free_address() -> dict[str, str]:
    """Return another address for the HTTP side than the default: tests run beside each other."""
    with reserve_port() as port:
        return {"ROUTER_TRIO_TELEMETRY__LISTEN": f"{HOST}:{port}"}


async def run_it(reader: Reader) -> None:
    """Run the commands of the page under "Run it"; its `router.toml` is in place."""
    async with reader.starts() as router:
        await router.has_printed(r"ok \(1 connection, 1 route, 2 streams\), config hash [0-9a-f]+\n")
        await router.has_printed(r"-> main: eu\.7\.created")
        await router.has_printed(r"nats://router:\S+@127\.0\.0\.1:\d+\n")
        await router.has_logged("ROUTE_READY", route="eu-orders")
        router.send(signal.SIGINT)
        assert await router.ended() == 0
        assert router.logged("ROUTER_STOPPED")[0]["unsettled"] == 0


def router_toml() -> str:
    """Return the first configuration of the page."""
    return next(block.text for block in PAGE.blocks if block.language == "toml")


async def test_the_router_of_the_first_page_runs(tmp_path: Path) -> None:
    reader = Reader(PAGE, tmp_path)
    for beginning in ("git clone", "make test", "pip install"):
        reader.skip(beginning)  # the one below
    (tmp_path / "router.toml").write_text(router_toml())
    reader.env |= free_address()
    await run_it(reader)
    assert reader.left == []


# --- with everything that a reader has to install ---


def repository(place: Path) -> Path:
    """Create a repository of this tree in its current state, committed or not, to be cloned."""
    place.mkdir()
    git = ["git", "-c", "user.name=reader", "-c", "user.email=reader@example.com"]
    files = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(files, cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file() and not (ROOT / name).is_symlink():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place / name)
    for arguments in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "as it is"]):
        subprocess.run([*git, *arguments], cwd=place, check=True)
    return place


def reader_of(name: Path, place: Path, venv: Path | None) -> Reader:
    """Return a reader with a home, a clone and a Python of her own, who uses the repository and the wheel made here."""
    wheels = place / "wheels"
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(wheels), str(ROOT)],
        check=True,
        capture_output=True,
    )
    home = place / "home"
    home.mkdir()
    first = str(Path(sys.executable).parent) if venv is None else f"{venv / 'bin'}"
    env = {
        "HOME": str(home),
        "PATH": os.pathsep.join([first, os.environ["PATH"]]),
        "PYTHONPATH": "",
        "PYTHONUNBUFFERED": "1",
        "PIP_FIND_LINKS": f"{wheels} {os.environ.get('PIP_FIND_LINKS', '')}",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{repository(place / 'repository')}.insteadOf",
        "GIT_CONFIG_VALUE_0": REPOSITORY,
    }
    return Reader(page(name), home, env)


@pytest.mark.nightly
async def test_the_first_page_in_a_fresh_environment(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    await trio.run_process([sys.executable, "-m", "venv", str(venv)])
    reader = reader_of(README, tmp_path, venv)
    reader.env |= free_address()
    demo = reader.types(within=INSTALLED_WITHIN)
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "Nothing was lost." in demo.stdout
    reader.skip("make test")  # the interpreter that runs these tests
    installed = reader.types(within=INSTALLED_WITHIN)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    assert (venv / "bin" / "router-trio").is_file()
    (reader.place / "router.toml").write_text(router_toml())
    await run_it(reader)
    assert reader.left == []


@pytest.mark.nightly
async def test_the_installation_of_the_tutorial_runs_its_first_commands(tmp_path: Path) -> None:
    reader = reader_of(DOCS / "tutorial.md", tmp_path, None)
    installed = reader.types(within=INSTALLED_WITHIN)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    binaries = [path for path in reader.place.rglob("bin") if (path / "router-trio").is_file()]
    assert len(binaries) == 1
    reader.env["PATH"] = os.pathsep.join([str(binaries[0]), reader.env["PATH"]])
    (toml,) = [block.text for block in page(DOCS / "tutorial.md").blocks if block.language == "toml"]
    (reader.place / "router.toml").write_text(toml)
    explained = reader.types()
    assert explained.returncode == 0
    assert "eu.7" in explained.stdout
    reader.env |= free_address()
    async with reader.starts() as router:
        await router.has_printed(r"nats-server: pid \d+\n")
        await eventually(lambda: router.logged("ROUTER_STARTED"), 20.0)
        router.send(signal.SIGINT)
        assert await router.ended() == 0
