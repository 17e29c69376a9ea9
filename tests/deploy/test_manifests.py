"""Image, compose file and Kubernetes manifests: no engine runs here, so what they promise is read out of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner

from gateway.cli import main
from gateway.cli.health import health

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BASE = DEPLOY / "kustomize" / "base"
NOBODY = 10001
REFERENCE = tomllib.loads((DEPLOY / "scanward.toml").read_text())
DOORS = REFERENCE["receivers"]
GRPC, DICOM, METRICS = (
    int(table["address"].rpartition(":")[2]) for table in (DOORS["grpc"], DOORS["dimse"], REFERENCE["metrics"])
)
DRAIN_S_MAX = DOORS["grpc"]["drain_s_max"] + DOORS["dimse"]["drain_s_max"] + DOORS["dimse"]["examine_s_max"]
"""The doors close one after the other, and what was acknowledged is examined to its end."""
HEALTH_VARIABLES = {option.envvar for option in health.params if option.envvar}


def instructions() -> list[tuple[str, str]]:
    """Of the Containerfile, in order, continued lines joined."""
    text = re.sub(r"\\\n", " ", (DEPLOY / "Containerfile").read_text())
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def manifests() -> Iterator[dict[str, Any]]:
    for name in yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]:
        yield from yaml.safe_load_all((BASE / name).read_text())


def manifest(kind: str) -> dict[str, Any]:
    (found,) = [each for each in manifests() if each["kind"] == kind]
    return found


def pod() -> dict[str, Any]:
    return dict(manifest("Deployment")["spec"]["template"]["spec"])


class TestImage:
    """deploy/Containerfile."""

    def test_bases_are_pinned_by_tag_and_chosen_by_argument(self) -> None:
        sources = [value.split() for word, value in instructions() if word == "FROM"]
        stages = {source[2] for source in sources}
        assert {"base-cpu", "base-cuda", "build", "gateway"} == stages
        outside = [source[0] for source in sources if not source[0].startswith("base-")]
        assert all(re.fullmatch(r"[\w./-]+:\d[\w.-]*", image) for image in outside), outside
        assert ("ARG", "VARIANT=cpu") in instructions()

    def test_it_runs_as_nobody_in_particular_and_writes_its_state_alone(self) -> None:
        last = instructions()[max(i for i, (word, _) in enumerate(instructions()) if word == "FROM") :]
        assert [value for word, value in last if word == "USER"] == [f"{NOBODY}:{NOBODY}"]
        assert [json.loads(value) for word, value in last if word == "VOLUME"] == [[REFERENCE["storage"]["directory"]]]
        assert [value for word, value in last if word == "EXPOSE"] == [f"{GRPC} {DICOM} {METRICS}"]
        assert not any(word == "ADD" for word, _ in instructions())

    def test_what_it_runs_are_commands_that_exist(self) -> None:
        (check,) = [value.partition("CMD ")[2] for word, value in instructions() if word == "HEALTHCHECK"]
        (command,) = [json.loads(value) for word, value in instructions() if word == "CMD"]
        for arguments in (json.loads(check)[1:], command[:1]):
            assert CliRunner().invoke(main, [*arguments, "--help"]).exit_code == 0

    def test_what_it_copies_is_there_and_reaches_the_builder(self) -> None:
        copied = {
            path
            for word, value in instructions()
            if word == "COPY" and not value.startswith("--from")
            for path in value.split()[:-1]
        }
        let_through = {
            line[1:] for line in (ROOT / ".containerignore").read_text().splitlines() if line.startswith("!")
        }
        assert copied == let_through
        assert all((ROOT / path).exists() for path in copied)


class TestCompose:
    """deploy/compose.yaml."""

    SERVICES: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]

    def test_the_four_services_run_pinned_images_with_no_more_rights_than_they_need(self) -> None:
        assert set(self.SERVICES) == {"gateway", "prometheus", "grafana", "orthanc"}
        for name, service in self.SERVICES.items():
            assert re.fullmatch(r"[\w/-]+:v?\d[\w.-]*", service["image"]), name
            assert service["cap_drop"] == ["ALL"], name
            assert "no-new-privileges:true" in service["security_opt"], name
            assert name == "orthanc" or service["read_only"], name

    def test_every_mounted_file_is_in_the_tree_or_the_sites_own(self) -> None:
        mounts = [mount.split(":")[0] for service in self.SERVICES.values() for mount in service.get("volumes", ())]
        files = [mount for mount in mounts if mount.startswith(".")]
        assert all((DEPLOY / file).exists() for file in files if not file.startswith("./site"))
        assert "./site" in files

    def test_prometheus_scrapes_the_service_and_grafana_asks_prometheus(self) -> None:
        scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
        assert scraped[0]["static_configs"][0]["targets"] == [f"gateway:{METRICS}"]
        assert scraped[0]["scheme"] == "https"
        shown = [Path(value) for key, value in scraped[0]["tls_config"].items() if key.endswith("_file")]
        mounts = [mount.split(":")[1] for mount in self.SERVICES["prometheus"]["volumes"]]
        assert len(shown) == 3
        assert all(str(file.parent) in mounts for file in shown)
        provisioning = DEPLOY / "grafana" / "provisioning"
        source = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"][0]
        assert source["url"] == "http://prometheus:9090"
        provider = yaml.safe_load((provisioning / "dashboards" / "scanward.yaml").read_text())["providers"][0]
        assert any(provider["options"]["path"] in mount for mount in self.SERVICES["grafana"]["volumes"])

    def test_what_the_healthcheck_needs_is_given(self) -> None:
        assert set(self.SERVICES["gateway"]["environment"]) == HEALTH_VARIABLES - {"SCANWARD_ADDRESS"}

    def test_orthancs_configuration_is_readable(self) -> None:
        settings = json.loads((DEPLOY / "orthanc" / "orthanc.json").read_text())
        assert settings["AuthenticationEnabled"]
        assert not settings["DicomAlwaysAllowStore"]


def kubectl_minor() -> int:
    """Of the version 1.x; 0 where there is none."""
    if shutil.which("kubectl") is None:
        return 0
    asked = ["kubectl", "version", "--client", "--output", "json"]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    return int(re.sub(r"\D.*", "", json.loads(done.stdout)["clientVersion"]["minor"]))


class TestKubernetes:
    """deploy/kustomize/base."""

    @pytest.mark.parametrize("document", list(manifests()), ids=lambda document: document["kind"])
    def test_each_manifest_is_valid(self, document: dict[str, Any]) -> None:
        kubernetes_validate.validate(document, "1.34", strict=True)

    def test_kustomize_builds_it(self) -> None:
        if kubectl_minor() < 22:
            pytest.skip("needs kubectl 1.22 or newer; the one of Debian 12 is 1.20, whose kustomize knows no labels")
        done = subprocess.run(["kubectl", "kustomize", BASE], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        built = list(yaml.safe_load_all(done.stdout))
        assert sorted(each["kind"] for each in built) == sorted(each["kind"] for each in manifests())
        assert all(each["metadata"].get("namespace") == "scanward" for each in built if each["kind"] != "Namespace")

    def test_the_pod_meets_the_restricted_standard(self) -> None:
        """Pod Security Standards, restricted; the namespace enforces it as well."""
        spec = pod()
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["runAsUser"] == spec["securityContext"]["fsGroup"] == NOBODY
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in (*spec["initContainers"], *spec["containers"]):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]
        assert {next(iter(set(volume) - {"name"})) for volume in spec["volumes"]} <= {
            "secret",
            "emptyDir",
            "persistentVolumeClaim",
        }
        assert not spec["automountServiceAccountToken"]
        assert manifest("Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"

    def test_probes_ask_the_health_service(self) -> None:
        """Kubernetes' own gRPC probe cannot: it speaks no TLS."""
        (container,) = pod()["containers"]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            program, *arguments = container[probe]["exec"]["command"]
            assert program == "scanward"
            assert CliRunner().invoke(main, [*arguments, "--help"]).exit_code == 0
        assert {variable["name"] for variable in container["env"]} == HEALTH_VARIABLES

    def test_ports_selectors_and_mounts_meet(self) -> None:
        (container,) = pod()["containers"]
        assert {port["name"]: port["containerPort"] for port in container["ports"]} == {
            "grpc": GRPC,
            "dicom": DICOM,
            "metrics": METRICS,
        }
        labels = manifest("Deployment")["spec"]["template"]["metadata"]["labels"].items()
        selectors = [
            each["spec"]["selector"] for each in manifests() if each["kind"] in {"Service", "PodDisruptionBudget"}
        ]
        for selector in (*selectors, manifest("Deployment")["spec"]["selector"]):
            assert selector.get("matchLabels", selector).items() <= labels
        served = [
            port["targetPort"] for each in manifests() if each["kind"] == "Service" for port in each["spec"]["ports"]
        ]
        assert sorted(served) == ["dicom", "grpc", "metrics"]
        assert REFERENCE["storage"]["directory"] in {mount["mountPath"] for mount in container["volumeMounts"]}
        for each in (container, *pod()["initContainers"]):
            assert {mount["name"] for mount in each["volumeMounts"]} <= {volume["name"] for volume in pod()["volumes"]}

    def test_a_stopping_pod_may_drain(self) -> None:
        assert pod()["terminationGracePeriodSeconds"] > DRAIN_S_MAX + 10
        assert float(TestCompose.SERVICES["gateway"]["stop_grace_period"].removesuffix("s")) > DRAIN_S_MAX + 10

    def test_nobody_comes_in_but_senders_and_monitoring_and_nothing_goes_out(self) -> None:
        policy = manifest("NetworkPolicy")["spec"]
        assert policy["egress"] == []
        assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
        let_in = [[port["port"] for port in rule["ports"]] for rule in policy["ingress"]]
        assert let_in == [["grpc", "dicom"], ["metrics"]]
        assert all(rule["from"] for rule in policy["ingress"])
