"""The Helm chart, with the real helm: it is accepted, renders the plain manifests, and refuses impossible values.

`helm lint` and `helm template` need no cluster. The rendered manifests are checked against the schemas of the API
servers.
"""

from __future__ import annotations

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from router_trio import Settings
from tests.deploy.test_kubernetes import MANIFESTS, VERSIONS, check_valid
from tests.docs.pages import DOCS
from tests.supply.locks import project
from tests.support.tools import tool

CHART = DOCS / "deploy" / "helm" / "router-trio"
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
EVERYTHING: dict[str, Any] = {
    "image": {"digest": "sha256:" + 64 * "a"},
    "imagePullSecrets": ["registry"],
    "env": [{"name": "ROUTER_TRIO_TELEMETRY__LOG_LEVEL", "value": "debug"}],
    "volumes": [{"name": "ca", "secret": {"secretName": "ca", "defaultMode": 0o440}}],
    "volumeMounts": [{"name": "ca", "mountPath": "/var/run/ca", "readOnly": True}],
    "podAnnotations": {"example.com/team": "orders"},
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {"nodeAffinity": {}},
    "podDisruptionBudget": {"maxUnavailable": "50%"},
    "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
}
NOTHING: dict[str, Any] = {
    "credentials": {"secret": ""},
    "networkPolicy": {"enabled": False},
    "podDisruptionBudget": {"enabled": False},
}


def helm(*arguments: str | Path, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run helm without a user's configuration."""
    homes = {f"HELM_{name}_HOME": str(tmp_path / name) for name in ("CONFIG", "CACHE", "DATA")}
    command = [str(tool("helm")), *map(str, arguments)]
    return subprocess.run(
        command, env={"PATH": "", **homes}, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )


def written(values: dict[str, Any], tmp_path: Path) -> Path:
    file = tmp_path / "values.yaml"
    file.write_text(json.dumps(values), encoding="utf-8")
    return file


def template(values: dict[str, Any], tmp_path: Path, release: str) -> subprocess.CompletedProcess[str]:
    """Render the chart for the newest cluster: a helm built like ours takes every cluster for an old one."""
    options = ["--kube-version", VERSIONS[-1], "--values", str(written(values, tmp_path))]
    return helm("template", release, CHART, *options, tmp_path=tmp_path)


def rendered(values: dict[str, Any], tmp_path: Path, release: str = "router-trio") -> dict[str, dict[str, Any]]:
    """Return the manifests rendered with these values, by kind."""
    done = template(values, tmp_path, release)
    assert done.returncode == 0, done.stderr
    return {one["kind"]: one for one in yaml.safe_load_all(done.stdout) if one is not None}


def without_labels(manifest: Any) -> Any:
    """Return a copy without the labels that only select pods, and without the checksum of the configuration."""
    if isinstance(manifest, list):
        return [without_labels(one) for one in manifest]
    if not isinstance(manifest, dict):
        return manifest
    own = ("app", "app.kubernetes.io/", "helm.sh/", "checksum/")
    kept = {key: without_labels(value) for key, value in manifest.items() if not key.startswith(own)}
    return {key: value for key, value in kept.items() if value != {}}


@pytest.mark.parametrize("values", [{}, EVERYTHING, NOTHING], ids=["defaults", "everything", "nothing"])
def test_helm_lint_finds_no_fault(values: dict[str, Any], tmp_path: Path) -> None:
    done = helm("lint", "--strict", CHART, "--values", written(values, tmp_path), tmp_path=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 chart(s) failed" in done.stdout


def test_a_mistake_in_a_template_would_be_found(tmp_path: Path) -> None:
    chart = tmp_path / "router-trio"
    for file in CHART.rglob("*"):
        if file.is_file():
            copied = chart / file.relative_to(CHART)
            copied.parent.mkdir(parents=True, exist_ok=True)
            copied.write_text(file.read_text().replace(".Values.replicas }}", ".Values.replicas"), encoding="utf-8")
    done = helm("lint", "--strict", chart, tmp_path=tmp_path)
    assert done.returncode == 1
    assert "deployment.yaml" in done.stdout + done.stderr


def test_the_defaults_are_the_plain_manifests(tmp_path: Path) -> None:
    assert without_labels(rendered({}, tmp_path)) == without_labels(MANIFESTS)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("values", [{}, EVERYTHING, NOTHING], ids=["defaults", "everything", "nothing"])
def test_the_rendered_manifests_are_valid(values: dict[str, Any], version: str, tmp_path: Path) -> None:
    made = rendered(values, tmp_path, "orders")
    monitor = made.pop("PodMonitor", None)  # of the Prometheus Operator: its schema is not part of Kubernetes
    assert (monitor is not None) == (values is EVERYTHING)
    for manifest in made.values():
        check_valid(manifest, version)
    expected = {"ConfigMap", "Deployment", "ServiceAccount"}
    assert set(made) == expected | (set() if values is NOTHING else {"NetworkPolicy", "PodDisruptionBudget"})


def test_all_selectors_match_the_pods_of_one_release(tmp_path: Path) -> None:
    made = rendered(EVERYTHING, tmp_path, "orders")
    labels = made["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert labels == {"app.kubernetes.io/name": "router-trio", "app.kubernetes.io/instance": "orders"}
    selectors = [made[kind]["spec"]["selector"] for kind in ("Deployment", "PodDisruptionBudget", "PodMonitor")]
    selectors.append(made["NetworkPolicy"]["spec"]["podSelector"])
    [spread] = made["Deployment"]["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert all(one == {"matchLabels": labels} for one in [*selectors, spread["labelSelector"]])
    assert {one["metadata"]["name"] for one in made.values()} == {"orders-router-trio"}


def test_every_referenced_object_exists(tmp_path: Path) -> None:
    pods = rendered(EVERYTHING, tmp_path)["Deployment"]["spec"]["template"]
    pod = pods["spec"]
    [container] = pod["containers"]
    assert container["image"] == "registry.example.com/router-trio@sha256:" + 64 * "a"
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert [one["name"] for one in pod["volumes"]] == ["config", "nats", "ca"]
    assert [one["mountPath"] for one in container["volumeMounts"]][-1] == "/var/run/ca"
    assert [one["name"] for one in container["env"]] == [
        "ROUTER_TRIO_CONNECTIONS__MAIN__CREDENTIALS_FILE",
        "ROUTER_TRIO_TELEMETRY__LOG_LEVEL",
    ]
    assert (pod["nodeSelector"], pod["tolerations"]) == (EVERYTHING["nodeSelector"], EVERYTHING["tolerations"])
    assert pods["metadata"]["annotations"]["example.com/team"] == "orders"
    assert "prometheus.io/scrape" not in pods["metadata"]["annotations"], "a PodMonitor scrapes them already"


def test_without_a_secret_no_pod_waits_for_one(tmp_path: Path) -> None:
    pod = rendered(NOTHING, tmp_path)["Deployment"]["spec"]["template"]["spec"]
    assert [one["name"] for one in pod["volumes"]] == ["config"]
    assert "env" not in pod["containers"][0]


def test_a_router_accepts_the_configuration_of_the_pods(tmp_path: Path) -> None:
    made = rendered({}, tmp_path)
    config = tmp_path / "router.toml"
    config.write_text(made["ConfigMap"]["data"]["router.toml"])
    assert made["ConfigMap"]["data"]["router.toml"].strip() == VALUES["config"].strip(), "it goes as it is"
    settings = Settings.load(config, environ={})
    address = settings.telemetry.listen_address
    assert address is not None
    assert address[1] == VALUES["port"]
    assert VALUES["terminationGracePeriodSeconds"] >= settings.router.shutdown_timeout + 5


def test_another_configuration_replaces_the_pods(tmp_path: Path) -> None:
    def annotations(config: str) -> dict[str, str]:
        deployment = rendered({"config": config}, tmp_path)["Deployment"]
        found: dict[str, str] = deployment["spec"]["template"]["metadata"]["annotations"]
        return found

    assert annotations("a = 1") == annotations("a = 1")
    assert annotations("a = 1") != annotations("a = 2")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["replica"], 3),
        (["image", "tag"], "latest"),
        (["image", "digest"], "sha256:short"),
        (["credentials", "connection"], "a-b"),
        (["networkPolicy", "egress"], [{"namespace": "nats"}]),
        (["port"], "9001"),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, list) and isinstance(value[0], str) else None,
)
def test_an_invalid_value_is_refused(path: list[str], value: Any, tmp_path: Path) -> None:
    values = copy.deepcopy(VALUES)
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    done = template(values, tmp_path, "x")
    assert done.returncode == 1
    assert path[-1] in done.stderr


def test_the_chart_and_its_image_have_the_version_of_the_package() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["version"] == chart["appVersion"] == project()["project"]["version"]


def test_the_schema_knows_every_value() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    assert set(schema["properties"]) == {*VALUES, "global"}
