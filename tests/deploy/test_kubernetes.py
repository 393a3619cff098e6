"""The Kubernetes manifests: valid in every field, hardened, and consistent with the configuration.

No cluster is involved: the schemas are those of the API servers, strict, so that an unknown field is an error.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from router_trio import Settings
from router_trio.telemetry.http import application
from tests.docs.pages import DOCS, page
from tests.supply.locks import project
from tests.support.credentials import create_operator

FILES = sorted((DOCS / "deploy" / "kubernetes").iterdir())
MANIFESTS: dict[str, dict[str, Any]] = {one["kind"]: one for one in map(yaml.safe_load, map(Path.read_text, FILES))}
PAGE = page(DOCS / "how-to" / "kubernetes.md")
AUTOSCALER: dict[str, Any] = yaml.safe_load([one.text for one in PAGE.blocks if one.language == "yaml"][1])
# The oldest version that has each field, and the newest whose schemas exist.
VERSIONS = ("1.27", "1.31", "1.34", "1.37")
TEMPLATE: dict[str, Any] = MANIFESTS["Deployment"]["spec"]["template"]
POD: dict[str, Any] = TEMPLATE["spec"]
[CONTAINER] = POD["containers"]
POLICY: dict[str, Any] = MANIFESTS["NetworkPolicy"]["spec"]


def unknown_field(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return a copy with an unknown field at the deepest level."""
    changed = copy.deepcopy(manifest)
    changed["spec"]["template"]["spec"]["containers"][0]["securityContext"]["readOnlyRootFileSystem"] = True
    return changed


def check_valid(manifest: dict[str, Any], version: str) -> None:
    """Raise `ValidationError` unless the API servers of that version would accept it."""
    import kubernetes_validate  # type: ignore[import-untyped]  # two seconds, which every run would pay

    kubernetes_validate.validate(manifest, version, strict=True)


@pytest.fixture
def configured(tmp_path: Path) -> Settings:
    """Return the configuration of the pods, with their variables and files."""
    config = tmp_path / "router.toml"
    config.write_text(MANIFESTS["ConfigMap"]["data"]["router.toml"])
    [secret] = [mount["mountPath"] for mount in CONTAINER["volumeMounts"] if mount["name"] == "nats"]
    create_operator().credentials(tmp_path / "nats.creds")
    environ = {one["name"]: one["value"].replace(secret, str(tmp_path)) for one in CONTAINER["env"]}
    return Settings.load(config, environ=environ)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_manifest_is_valid(kind: str, version: str) -> None:
    check_valid(MANIFESTS[kind], version)


def test_an_unknown_field_would_be_found() -> None:
    from kubernetes_validate import ValidationError

    with pytest.raises(ValidationError, match="readOnlyRootFileSystem"):
        check_valid(unknown_field(MANIFESTS["Deployment"]), VERSIONS[-1])


def test_there_is_one_manifest_of_each_kind_in_a_file_of_its_name() -> None:
    kinds = ["ConfigMap", "Deployment", "NetworkPolicy", "PodDisruptionBudget", "ServiceAccount"]
    assert list(MANIFESTS) == kinds
    assert [path.name for path in FILES] == [f"{kind.lower()}.yaml" for kind in kinds]


def test_the_page_shows_the_manifests_verbatim() -> None:
    [shown, _] = [block.text for block in PAGE.blocks if block.language == "yaml"]
    assert shown == "---\n".join(path.read_text(encoding="utf-8") for path in FILES)


# --- its number of pods ---


@pytest.mark.parametrize("version", VERSIONS)
def test_the_autoscaler_is_valid(version: str) -> None:
    check_valid(AUTOSCALER, version)


def test_the_autoscaler_is_for_the_deployment_and_adds_no_pod_without_a_partition() -> None:
    deployment, target = MANIFESTS["Deployment"], AUTOSCALER["spec"]["scaleTargetRef"]
    assert target == {
        "apiVersion": deployment["apiVersion"],
        "kind": "Deployment",
        "name": deployment["metadata"]["name"],
    }
    [shared] = [block.text for block in PAGE.blocks if block.language == "toml"]
    [route] = Settings.parse(shared.encode()).routes
    assert AUTOSCALER["spec"]["maxReplicas"] == route.source.partitions


# --- what a pod may do ---


def test_a_pod_has_no_rights_in_the_cluster() -> None:
    assert MANIFESTS["ServiceAccount"]["automountServiceAccountToken"] is False
    assert POD["serviceAccountName"] == MANIFESTS["ServiceAccount"]["metadata"]["name"]
    assert POD["automountServiceAccountToken"] is False
    assert POD["enableServiceLinks"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(POD)
    assert not [volume for volume in POD["volumes"] if "hostPath" in volume]


def test_a_pod_passes_the_restricted_standard() -> None:
    """The standard is https://kubernetes.io/docs/concepts/security/pod-security-standards/."""
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["securityContext"]["runAsUser"] > 0
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_a_pod_runs_as_the_user_of_the_image() -> None:
    [user] = re.findall(r"^USER (.*)$", (DOCS / "deploy" / "Dockerfile").read_text(), re.MULTILINE)
    given = POD["securityContext"]
    assert f"{given['runAsUser']}:{given['runAsGroup']}" == user


def test_a_pod_has_resource_limits() -> None:
    assert {"cpu", "memory"} <= set(CONTAINER["resources"]["requests"])
    assert {"cpu", "memory"} <= set(CONTAINER["resources"]["limits"])


def test_the_image_has_an_exact_tag() -> None:
    assert CONTAINER["image"].rpartition(":")[2] == project()["project"]["version"]


def test_secrets_are_files_that_only_the_pod_can_read() -> None:
    assert not [one for one in CONTAINER["env"] if "valueFrom" in one]
    for volume in POD["volumes"]:
        if "secret" in volume:
            assert volume["secret"]["defaultMode"] & 0o007 == 0
    assert POD["securityContext"]["fsGroup"] == POD["securityContext"]["runAsGroup"]
    assert all(mount["readOnly"] for mount in CONTAINER["volumeMounts"])
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == {volume["name"] for volume in POD["volumes"]}


# --- its network ---


def reaches(namespace: str, port: int) -> bool:
    """Return True if the policy lets a pod reach this port of that namespace."""
    for rule in POLICY["egress"]:
        names = [to["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] for to in rule["to"]]
        if namespace in names and port in [one["port"] for one in rule["ports"]]:
            return True
    return False


def test_the_network_policy_covers_the_pods_and_both_directions() -> None:
    assert POLICY["podSelector"]["matchLabels"] == TEMPLATE["metadata"]["labels"]
    assert POLICY["policyTypes"] == ["Ingress", "Egress"]
    rules = [*POLICY["ingress"], *POLICY["egress"]]
    assert all(rule.get("from") or rule.get("to") for rule in rules), "a rule without peers is one for everybody"
    assert all(rule.get("ports") for rule in rules)


def test_only_monitoring_may_connect_and_only_to_the_telemetry() -> None:
    [rule] = POLICY["ingress"]
    assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    assert [one["port"] for one in rule["ports"]] == [port["name"] for port in CONTAINER["ports"]]


def test_only_the_configured_servers_can_be_reached(configured: Settings) -> None:
    named = [*map(str, configured.connections["main"].servers), str(configured.telemetry.otlp_endpoint)]
    wanted = set()
    for address in map(urlsplit, named):
        assert address.hostname is not None
        assert address.port is not None
        wanted.add((address.hostname.split(".")[1], address.port))
    wanted.add(("kube-system", 53))
    assert all(reaches(*one) for one in wanted)
    assert sum(len(rule["to"]) for rule in POLICY["egress"]) == len(wanted)


# --- its life cycle ---


def test_the_telemetry_is_reached_from_outside_of_the_pod(configured: Settings) -> None:
    address = configured.telemetry.listen_address
    assert address is not None
    assert address[0] == "0.0.0.0"
    assert [port["containerPort"] for port in CONTAINER["ports"]] == [address[1]]
    assert TEMPLATE["metadata"]["annotations"]["prometheus.io/port"] == str(address[1])


def test_the_credentials_are_where_the_router_reads_them(configured: Settings) -> None:
    assert configured.connections["main"].credentials_file is not None
    assert "credentials" not in MANIFESTS["ConfigMap"]["data"]["router.toml"]


def test_a_pod_is_not_killed_before_the_router_has_drained(configured: Settings) -> None:
    assert POD["terminationGracePeriodSeconds"] >= configured.router.shutdown_timeout + 5


def test_probes_request_existing_pages() -> None:
    source = Path(application.__file__).read_text(encoding="utf-8")
    probes = {name: CONTAINER[name]["httpGet"]["path"] for name in CONTAINER if name.endswith("Probe")}
    assert probes == {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
    assert all(f'"{path}"' in source for path in probes.values())


def test_a_slow_router_is_not_killed_for_it() -> None:
    startup, liveness = CONTAINER["startupProbe"], CONTAINER["livenessProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 30
    assert liveness["timeoutSeconds"] >= 5
    assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 30


def test_all_selectors_match_the_same_pods() -> None:
    labels = TEMPLATE["metadata"]["labels"]
    assert MANIFESTS["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert MANIFESTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    [spread] = POD["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"] == labels
