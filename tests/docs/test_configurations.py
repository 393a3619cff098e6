"""Every configuration of the documentation is one that the router accepts, in TOML files and in Kubernetes' YAML."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from router_trio.settings import Settings
from router_trio.telemetry import application
from tests.docs.pages import DOCS, Block, blocks, page, pages

TOML = blocks("toml")
FOLDER = "/etc/router-trio/"
"""Where the pages say that files are."""

SAMPLE = '[connections.main]\nservers = ["nats://127.0.0.1:4222"]\n'
VARIABLE = re.compile(r"\b(ROUTER_TRIO_[A-Z0-9_]+)=('[^'\n]*'|[^\s`]+)")


def load(text: str, directory: Path, environ: dict[str, str] | None = None) -> Settings:
    """Load a configuration whose files all exist. Raises `ConfigurationError`."""
    text = text.replace(FOLDER, f"{directory}/")
    for section in tomllib.loads(text).get("connections", {}).values():
        for key, value in section.items():
            if key.endswith("_file"):
                (directory / value).touch()
    path = directory / "router.toml"
    path.write_text(text)
    return Settings.load(path, environ=environ or {})


@pytest.mark.parametrize("block", TOML, ids=str)
def test_a_configuration_is_accepted(block: Block, tmp_path: Path) -> None:
    load(block.text, tmp_path)


def test_there_are_configurations() -> None:
    assert len(TOML) >= 10


def variables() -> list[tuple[str, str, str]]:
    """Every variable that a page sets: the page, its name and its value."""
    return [(str(one), name, value.strip("'")) for one in pages() for name, value in VARIABLE.findall(one.text)]


@pytest.mark.parametrize(("where", "name", "value"), variables())
def test_a_variable_sets_something(where: str, name: str, value: str, tmp_path: Path) -> None:
    connections = [SAMPLE, *(f"[connections.{other}]\nservers = ['nats://127.0.0.1'] \n" for other in ("token",))]
    connections.append("[connections.password]\nservers = ['nats://127.0.0.1']\nuser = 'router'\npassword = 'x'\n")
    if value.startswith("%d/"):  # systemd's directory of credentials
        value = str(tmp_path / value.removeprefix("%d/"))
        Path(value).touch()
    load("\n".join(connections), tmp_path, {name: value})


# --- Kubernetes ---

KUBERNETES = page(DOCS / "how-to" / "kubernetes.md")


def manifests() -> dict[str, Any]:
    """The objects of the page, by kind."""
    (text,) = [block.text for block in KUBERNETES.blocks if block.language == "yaml"]
    return {one["kind"]: one for one in yaml.safe_load_all(text)}


def container() -> Any:
    (one,) = manifests()["Deployment"]["spec"]["template"]["spec"]["containers"]
    return one


def config_map(tmp_path: Path) -> Settings:
    return load(manifests()["ConfigMap"]["data"]["router.toml"], tmp_path)


def test_the_config_map_is_accepted_and_can_be_reached_from_outside(tmp_path: Path) -> None:
    address = config_map(tmp_path).telemetry.listen_address
    assert address is not None
    assert address[0] == "0.0.0.0"
    assert [port["containerPort"] for port in container()["ports"]] == [address[1]]


def test_the_variables_of_the_pod_set_something(tmp_path: Path) -> None:
    (tmp_path / "nats.creds").touch()
    for variable in container()["env"]:
        value = variable["value"].replace("/var/run/nats/", f"{tmp_path}/")
        load(manifests()["ConfigMap"]["data"]["router.toml"], tmp_path, {variable["name"]: value})


def test_probes_ask_pages_that_exist() -> None:
    source = Path(application.__file__).read_text(encoding="utf-8")
    probes = {name: container()[name]["httpGet"]["path"] for name in container() if name.endswith("Probe")}
    assert probes == {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
    assert all(f'"{path}"' in source for path in probes.values())


def test_the_pod_is_not_killed_before_the_router_has_drained(tmp_path: Path) -> None:
    pod = manifests()["Deployment"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= config_map(tmp_path).router.shutdown_timeout + 5


def test_the_budget_and_the_deployment_select_the_same_pods() -> None:
    deployment = manifests()["Deployment"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    assert manifests()["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels

