"""Compile the data plane while the wheel is built, where that is possible; else the wheel is pure Python.

`ROUTER_TRIO_PURE=1` asks for the pure wheel, `ROUTER_TRIO_PURE=0` for a compiled one or an error. The file name of the
wheel, and a line that `pip install --verbose` and `python -m build` show, report which one was made.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SETTING = "ROUTER_TRIO_PURE"

SETUP = """
from mypyc.build import mypycify
from setuptools import setup

modules = mypycify(["--ignore-missing-imports", *{sources!r}], opt_level="2", debug_level="0", target_dir="build")
setup(name="router_trio", packages=[], ext_modules=modules)
"""


def why_pure() -> str | None:
    """Return why the wheel is pure, as far as that is known before anything is installed; None if it is not."""
    if os.environ.get(SETTING) == "1":
        return f"{SETTING}=1"
    if platform.python_implementation() != "CPython":
        return f"{platform.python_implementation()} runs no extension modules of mypyc"
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    if shutil.which(compiler) is None:
        return f"there is no C compiler ({compiler})"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return f"there are no headers of Python ({sysconfig.get_path('include')}/Python.h)"
    return None


class CompileHook(BuildHookInterface[Any]):
    """Builds extension modules from the modules that `include` lists in pyproject.toml."""

    def dependencies(self) -> list[str]:
        """Return what compiling needs, which a pure wheel does not. Types of the dependencies are checked as well."""
        if why_pure() is not None:
            return []
        project = tomllib.loads(Path(self.root, "pyproject.toml").read_text(encoding="utf-8"))
        return [*project["dependency-groups"]["compile"], *self.metadata.core.dependencies]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the extension modules to the wheel."""
        if version == "editable":
            return
        why = why_pure() or self._what_is_missing()
        if why is None:
            self._folder = tempfile.TemporaryDirectory(prefix="router-trio-")
            why = self._compile(Path(self._folder.name), build_data)
        if why is None:
            self.app.display_info("The data plane of router-trio is compiled.")
        elif os.environ.get(SETTING) == "0":
            raise RuntimeError(f"{SETTING}=0 asks for a compiled wheel: {why}")
        else:
            self.app.display_warning(f"router-trio is built as pure Python: {why}")

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the folder of the extension modules, which are in the wheel now."""
        if hasattr(self, "_folder"):
            self._folder.cleanup()

    def _what_is_missing(self) -> str | None:
        if find_spec("mypyc") is None or find_spec("setuptools") is None:
            return "mypy and setuptools are not installed, which build isolation would do"
        return None

    def _compile(self, folder: Path, build_data: dict[str, Any]) -> str | None:
        """Compile a copy of the package in `folder`, so that the source tree stays as it is. Return why it failed."""
        package = Path(self.root, "router_trio")
        shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        sources = sorted(str(path.relative_to(folder)) for one in self.config["include"] for path in folder.glob(one))
        (folder / "setup.py").write_text(SETUP.format(sources=sources), encoding="utf-8")
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", "built", "--build-temp", "build"]
        done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            return f"mypyc or the C compiler failed:\n{done.stdout[-5000:]}"
        built = folder / "built"
        build_data["force_include"].update({str(one): str(one.relative_to(built)) for one in built.rglob("*.so")})
        build_data["pure_python"], build_data["infer_tag"] = False, True
        return None


if __name__ == "__main__":  # for the Makefile
    print(why_pure() or "", end="")
