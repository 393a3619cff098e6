"""Files in the working directory of a command replace none of its modules: only handlers are imported from there."""

from __future__ import annotations

import os
import re
import signal
import site
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.command import ROOT, command, environment, running
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer

POISON = 'import sys\nsys.stderr.write("POISONED: " + __name__ + "\\n")\nraise SystemExit(99)\n'
CONFIG = """
[telemetry]
listen = "127.0.0.1:0"
otlp_endpoint = "http://127.0.0.1:9"
log_format = "console"
[connections.main]
servers = ["SERVER"]
[[routes]]
name = "loud"
handler = "own_handlers:loud"
from = { subject = "in" }
to = [ { subject = "out" } ]
"""
HANDLERS = """
import json, trio  # what a handler imports is what is installed, too

def loud(message):
    return message.replace(payload=message.payload.upper())
"""


@cache
def _modules_to_poison() -> frozenset[str]:
    """Return each module of the standard library and each installed package.

    Except those that `python -m` itself, or coverage, has imported before our code starts.
    """
    probe = "import runpy, sys; print(*sys.modules)"
    before = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout.split()
    names = set(sys.stdlib_module_names)
    # Debian's Python names folders of a virtual environment that it does not make.
    for folder in filter(Path.is_dir, map(Path, site.getsitepackages())):
        names |= {path.name.partition(".")[0] for path in folder.iterdir()}
    names -= {module.partition(".")[0] for module in before} | {"router_trio", "tests", "__pycache__"}
    return frozenset(filter(str.isidentifier, names))


def _poison(directory: Path) -> None:
    for name in _modules_to_poison():
        (directory / f"{name}.py").write_text(POISON)
    assert (directory / "trio.py").exists()
    assert (directory / "ssl.py").exists()


@cache
def _optional_imports() -> set[str]:
    """Return modules that the installed packages import if they exist, and that do not exist."""
    names = set()
    for folder in map(Path, site.getsitepackages()):
        for name in (
            "trio",
            "nats",
            "opentelemetry",
            "starlette",
            "h11",
            "pydantic",
            "argcomplete",
            "requests",
            "urllib3",
        ):
            for path in (folder / name).rglob("*.py"):
                names |= set(re.findall(r"^\s+(?:import|from)\s+([A-Za-z]\w*)", path.read_text(), re.MULTILINE))
    return {name for name in names | {"simplejson", "psutil", "brotli"} if find_spec(name) is None}


@pytest.fixture
def poisoned(tmp_path: Path) -> Path:
    _poison(tmp_path)
    (tmp_path / "own_handlers.py").write_text(HANDLERS)
    (tmp_path / "router.toml").write_text(CONFIG.replace("SERVER", "nats://127.0.0.1:4222"))
    return tmp_path


def console_script() -> list[str]:
    """Return the installed command, or its contents where there is none."""
    script = Path(sys.executable).with_name("router-trio")
    if script.exists():
        return [str(script)]
    return [sys.executable, "-P", "-c", "import sys; from router_trio.__main__ import main; sys.exit(main())"]


WAYS = {
    "module": [sys.executable, "-m", "router_trio"],
    "safe": [sys.executable, "-P", "-m", "router_trio"],
    "script": console_script(),
}


COMMANDS = [
    ["--help"],
    ["check", "router.toml"],
    ["contract", "--json"],
    ["nonsense"],
    ["run", "--help"],
    ["--version"],
    ["explain", "router.toml", "in", "--json"],
    ["schema"],
    ["check", "nowhere.toml"],
]
STARTS = [("module", arguments) for arguments in COMMANDS] + [
    (way, arguments) for way in ("safe", "script") for arguments in COMMANDS[:4]
]
"""All commands in the one way in which Python searches the working directory, and some in the others."""


@pytest.mark.parametrize(
    ("way", "arguments"), STARTS, ids=lambda part: part if isinstance(part, str) else " ".join(part)
)
def test_no_command_imports_a_file_of_the_working_directory(poisoned: Path, way: str, arguments: list[str]) -> None:
    done = command(*arguments, cwd=poisoned, python=WAYS[way])
    assert "POISONED" not in done.stderr
    assert done.returncode in (0, 2, 78)
    assert done.returncode == {"nonsense": 2, "nowhere.toml": 78}.get(arguments[-1], 0), done.stderr


@pytest.mark.parametrize("way", WAYS)
async def test_a_router_imports_only_its_handler_from_the_working_directory(
    poisoned: Path, way: str, core_server: NatsServer
) -> None:
    (poisoned / "router.toml").write_text(CONFIG.replace("SERVER", core_server.url).replace("console", "json"))
    variables = {"ROUTER_TRIO_TELEMETRY__TRACE_SAMPLE_RATIO": "1.0"}
    async with running("run", "router.toml", cwd=poisoned, env=variables, python=WAYS[way]) as run:
        await run.has_logged("ROUTER_STARTED")
        async with connect(core_server.url) as client:
            arrived = await client.subscribe("out")
            await client.ping()
            await client.publish("in", b"hello")
            assert (await arrived.next()).payload == b"HELLO"
        run.send(signal.SIGTERM)
        assert await run.ended() == 0
    assert "POISONED" not in run.errors


async def test_the_demo_and_an_embedded_server_import_nothing_from_the_working_directory(poisoned: Path) -> None:
    async with running("run", "router.toml", "--embedded-nats", cwd=poisoned, python=WAYS["module"]) as run:
        await run.has_printed(r"^nats://")
        run.send(signal.SIGTERM)
        await run.ended()
    async with running("demo", "--duration", "3s", cwd=poisoned, python=WAYS["script"]) as demo:
        assert await demo.ended() == 0
    assert "POISONED" not in run.errors + demo.errors


HANDLERS_WITH_A_LIBRARY = """
import library, shared

def loud(message):
    library.work()
    import later
    return message.replace(payload=message.payload.upper())
"""
LIBRARY = """
from importlib import import_module
from importlib.util import find_spec

def optional():
    try:
        import simplejson
    except ImportError:
        pass
    for name in ("psutil", "brotli"):
        assert find_spec(name) is None
        try:
            import_module(name)
        except ImportError:
            pass

optional()
work = optional
"""


@pytest.mark.parametrize(("way", "workers"), [("module", 1), ("module", 2), ("safe", 1), ("script", 2)])
async def test_optional_imports_of_a_dependency_are_not_searched_in_the_working_directory(
    tmp_path: Path, way: str, workers: int, core_server: NatsServer
) -> None:
    """Neither those of the router's own dependencies nor of a library that a handler imports, at any time."""
    here, installed = tmp_path / "here", tmp_path / "installed"
    here.mkdir()
    installed.mkdir()
    for name in _optional_imports():
        (here / f"{name}.py").write_text(POISON)
    assert (here / "simplejson.py").exists()
    (installed / "library.py").write_text(LIBRARY)
    (here / "own_handlers.py").write_text(HANDLERS_WITH_A_LIBRARY)
    for name in ("shared", "later"):
        (here / f"{name}.py").write_text("NAME = 1\n")
    config = CONFIG.replace("SERVER", core_server.url).replace("console", "json")
    (here / "router.toml").write_text(config.replace('subject = "in" }', 'subject = "in", queue = "routers" }'))
    variables = {
        "ROUTER_TRIO_TELEMETRY__TRACE_SAMPLE_RATIO": "1.0",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(installed)]),
    }
    arguments = ["run", "--workers", str(workers), "router.toml"]
    async with running(*arguments, cwd=here, env=variables, python=WAYS[way]) as run:
        await run.has_logged("ROUTER_STARTED")
        async with connect(core_server.url) as client:
            arrived = await client.subscribe("out")
            await client.ping()
            for _ in range(8):
                await client.publish("in", b"hello")
                assert (await arrived.next()).payload == b"HELLO"
        run.send(signal.SIGTERM)
        assert await run.ended() == 0
    assert "POISONED" not in run.errors


def test_an_installed_handler_takes_precedence(poisoned: Path) -> None:
    # The configuration may name one of a package; a file of that name in the working directory must not replace it.
    text = (poisoned / "router.toml").read_text().replace("own_handlers:loud", "json:dumps")
    (poisoned / "router.toml").write_text(text)
    assert command("check", "router.toml", cwd=poisoned).returncode == 0


def test_a_handler_in_a_package_may_import_its_neighbours_later(tmp_path: Path) -> None:
    _poison(tmp_path)
    for package in ("orders", "plain"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "names.py").write_text("import shared\nNAME = shared.NAME\n")
        (tmp_path / package / "handlers.py").write_text(f"from {package}.names import NAME\ndef loud(message): ...\n")
    (tmp_path / "orders" / "__init__.py").write_text("from . import names\n")
    (tmp_path / "shared.py").write_text("NAME = 1\n")
    for package in ("orders", "plain"):
        (tmp_path / "router.toml").write_text(CONFIG.replace("own_handlers", f"{package}.handlers"))
        (tmp_path / "router.toml").write_text(
            (tmp_path / "router.toml").read_text().replace("SERVER", "nats://127.0.0.1:4222")
        )
        for way in WAYS.values():
            done = command("check", "router.toml", cwd=tmp_path, python=way)
            assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_a_deleted_working_directory_gives_no_traceback(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    there = {**environment(), "GONE": str(gone)}
    script = f'cd "$GONE" && rmdir "$GONE" && exec "{sys.executable}" -m router_trio --help'
    done = subprocess.run(["sh", "-c", script], env=there, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
