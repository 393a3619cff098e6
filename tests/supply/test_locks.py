"""All packages are installed from locks: exact versions, with hashes, without an address, as pyproject.toml requires.

No index is queried here: a lock is compared with pyproject.toml and with the installed packages.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.supply.locks import LOCKS, REQUIREMENTS, ROOT, Pin, asked, lock, project

PLATFORMS = [("linux", "Linux", "x86_64"), ("linux", "Linux", "aarch64"), ("darwin", "Darwin", "arm64")]
VERSIONS = ["3.11.0", "3.11.9", "3.12.5", "3.13.0", "3.14.0"]


def current() -> dict[str, str]:
    """Return the environment with which the markers of a lock are evaluated here."""
    return {name: str(value) for name, value in default_environment().items()}


def environments() -> list[dict[str, str]]:
    """Return all environments of the markers of a lock: every supported platform and Python."""
    found = []
    for sys_platform, system, machine in PLATFORMS:
        for version in VERSIONS:
            one = current()
            one.update(sys_platform=sys_platform, platform_system=system, platform_machine=machine, os_name="posix")
            one.update(python_full_version=version, python_version=version.rsplit(".", 1)[0])
            one.update(platform_python_implementation="CPython", implementation_name="cpython")
            found.append(one)
    return found


def applies(requirement: Requirement, environment: dict[str, str], extra: str = "") -> bool:
    """Return True if a requirement applies in an environment."""
    return requirement.marker is None or requirement.marker.evaluate({**environment, "extra": extra})


def installed(name: str, environment: dict[str, str]) -> dict[str, Pin]:
    """Return what a lock installs there, by name. Raise `AssertionError` if a package has two versions."""
    pins = [pin for pin in lock(name) if applies(pin.requirement, environment)]
    by_name = {pin.name: pin for pin in pins}
    assert len(by_name) == len(pins), f"{name}: a package has two versions in {environment}"
    return by_name


def version(name: str) -> str | None:
    """Return the version of a package that is installed here, or None."""
    try:
        return distribution(name).version
    except PackageNotFoundError:
        return None


def test_every_lock_is_checked() -> None:
    assert sorted(path.stem for path in REQUIREMENTS.glob("*.txt")) == sorted(LOCKS)


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_has_what_pyproject_requires(name: str) -> None:
    for environment in environments():
        pins = installed(name, environment)
        for requirement in asked(name):
            if not applies(requirement, environment):
                continue
            pin = pins.get(canonicalize_name(requirement.name))
            assert pin is not None, f"{name}: {requirement} is missing: run `make lock`"
            assert requirement.specifier.contains(pin.version, prereleases=True), (
                f"{name}: {requirement} does not allow {pin.version}: run `make lock`"
            )


@pytest.mark.parametrize("name", LOCKS)
def test_every_version_has_hashes(name: str) -> None:
    for pin in lock(name):
        assert pin.hashes, f"{name}: {pin.requirement}"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", one) for one in pin.hashes), f"{name}: {pin.requirement}"


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_names_no_address_and_no_path(name: str) -> None:
    text = (REQUIREMENTS / f"{name}.txt").read_text(encoding="utf-8")
    assert not re.search(r"://|file:", text)
    assert not re.search(r"^\s*(-i|-f|--(extra-)?index-url|--find-links|--trusted-host)\b", text, re.MULTILINE)
    assert not re.search(r"(^|[\s\"'])/[a-z]", text), "a path of the machine that wrote it"


@pytest.mark.parametrize("name", ["build", "compile", "demo", "runtime"])
def test_a_smaller_lock_is_a_part_of_the_one_for_development(name: str) -> None:
    everything = {(pin.name, pin.version): set(pin.hashes) for pin in lock("dev")}
    for pin in lock(name):
        assert everything.get((pin.name, pin.version)) == set(pin.hashes), f"{name}: {pin.requirement}"


@pytest.mark.parametrize("name", ["build", "compile", "demo", "dev", "runtime"])
def test_a_lock_is_complete(name: str) -> None:
    """Installed without resolving dependencies, no package lacks one."""
    environment = current()
    pins = installed(name, environment)
    wanted = [(requirement, "pyproject.toml") for requirement in asked(name)]
    seen: set[tuple[str, frozenset[str]]] = set()
    while wanted:
        requirement, by = wanted.pop()
        package, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        assert package in pins, f"{name}: {by} needs {requirement}"
        assert requirement.specifier.contains(pins[package].version, prereleases=True), f"{name}: {by}: {requirement}"
        if (package, extras) in seen:
            continue
        seen.add((package, extras))
        for text in distribution(package).requires or ():
            further = Requirement(text)
            if any(applies(further, environment, extra) for extra in ("", *extras)):
                wanted.append((further, package))


def test_the_installed_versions_are_the_locked_ones() -> None:
    pins = installed("dev", current())
    different = [pin.name for pin in pins.values() if pin.version != version(pin.name)]
    assert not different, "run `make lint`: it installs requirements/dev.txt where that is newer than .venv"


def test_the_build_dependencies_are_locked() -> None:
    backend = {Requirement(text) for text in project()["build-system"]["requires"]}
    assert backend <= set(asked("build"))
    compiled = {Requirement(text).name for text in project()["dependency-groups"]["compile"]}
    assert compiled <= {pin.name for pin in lock("dev")}


def test_pip_installs_only_locked_packages() -> None:
    """Every `pip install` of the Makefile has hashes, or is of the project itself without its dependencies.

    The environments of `test-oldest`, `test-newest` and `test-servers` are not locked; they are kept apart from all
    else.
    """
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    [command] = re.findall(r"^.*-m pip install.*$", makefile, re.MULTILINE)
    assert command.startswith("INSTALL = ")
    assert {"--no-deps", "--no-build-isolation"} <= set(command.split())
    assert re.search(r"^LOCKED = \$\(INSTALL\) --require-hashes --requirement$", makefile, re.MULTILINE)
    installs = re.findall(r"\$\(INSTALL\)(.*)$", makefile, re.MULTILINE)
    itself = [line for line in installs if "--require-hashes" not in line]
    assert itself
    wheel = " --no-index --force-reinstall .$*/wheel/*.whl"  # of the project itself, built just before
    assert all(line.endswith(" .") or line == wheel for line in itself), itself
    by_uv = re.findall(r"\bpip install(.*)$", makefile.replace(command, ""), re.MULTILINE)
    assert all("--python $(@D) " in line or "--target $(SERVER)/" in line for line in by_uv), by_uv
    assert re.findall(r"^(\S+)/.*\n\t\$\(call resolved", makefile, re.MULTILINE) == ["$(OLDEST)", "$(NEWEST)"]
