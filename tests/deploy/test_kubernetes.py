"""The manifests: valid and consistent, and a server with their options answers their probes."""

import os
import re
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from kwise.engine.server.metrics.table import METRICS
from tests.certificates import Authority
from tests.deploy.tools import DEPLOY, lint, parsed
from tests.http_client import http_port
from tests.servers import PATIENCE_S, Server, running_server

KUBERNETES = DEPLOY / "kubernetes"
# Overlay and components. `sleep` of preStop came with 1.30.
VARIANTS = [("cpu",), ("gpu", "podmonitor"), ("cpu", "podmonitor", "plaintext")]
VERSIONS = ("1.30", "1.37")
LINT_RULES = (
    "{extends: default, rules: {line-length: {max: 100}, "
    "comments: {min-spaces-from-content: 1}, octal-values: disable}}"
)


@pytest.fixture(scope="module", params=VARIANTS, ids="+".join)
def rendered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that `kubectl kustomize` makes of an overlay and components."""
    overlay, *components = request.param
    directory = tmp_path_factory.mktemp("overlay")
    base = os.path.relpath(KUBERNETES, directory)
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"{base}/overlays/{overlay}"],
        "components": [f"{base}/components/{name}" for name in components],
    }
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    file = directory / "rendered.yaml"
    file.write_text(lint("kubectl", "kustomize", directory))
    return file


@pytest.fixture(scope="module")
def objects(rendered: Path) -> dict[str, dict[str, Any]]:
    """The objects of a variant by `Kind/name`."""
    documents = yaml.safe_load_all(rendered.read_text(encoding="utf-8"))
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in documents}


def pod_of(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    pod: dict[str, Any] = objects["Deployment/kwise"]["spec"]["template"]
    return pod


def arguments_of(objects: dict[str, dict[str, Any]]) -> list[str]:
    """Return the container's arguments with the values of the ConfigMap."""
    (container,) = pod_of(objects)["spec"]["containers"]
    (source,) = container["envFrom"]
    values = objects[f"ConfigMap/{source['configMapRef']['name']}"]["data"]
    return [re.sub(r"\$\((\w+)\)", lambda m: values[m[1]], each) for each in container["args"]]


def test_yamllint_finds_nothing() -> None:
    assert lint("yamllint", "--strict", "-d", LINT_RULES, KUBERNETES) == ""


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_fits_the_schema_of_kubernetes(rendered: Path, version: str) -> None:
    output = lint("kubernetes-validate", "--strict", "-k", version, rendered)
    lines = [line for line in output.splitlines() if "PodMonitor" not in line]
    assert len(lines) >= 8 and all(" passed for resource " in line for line in lines), output


def test_options_ports_and_files_fit_each_other(objects: dict[str, dict[str, Any]]) -> None:
    config = parsed(arguments_of(objects))
    pod = pod_of(objects)["spec"]
    (container,) = pod["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": config.port, "http": config.http_port}
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert arguments_of(objects)[1] in mounts
    (credentials,) = (v["projected"] for v in pod["volumes"] if "projected" in v)
    secrets = [source["secret"] for source in credentials["sources"]]
    mounted = {item["path"] for secret in secrets for item in secret["items"]}
    used = {path for path in (config.token_file, config.tls_cert, config.tls_key) if path}
    assert {str(path.parent) for path in used} <= set(mounts)
    assert {path.name for path in used} == mounted
    for name in ("kwise", "kwise-pods"):
        for port in objects[f"Service/{name}"]["spec"]["ports"]:
            assert port["port"] == ports[port["targetPort"]]
    rules = objects["NetworkPolicy/kwise"]["spec"]["ingress"]
    assert {port["port"] for rule in rules for port in rule["ports"]} == set(ports)


def test_all_that_asks_the_http_port_does_so_with_tls_if_the_server_has_it(
    objects: dict[str, dict[str, Any]],
) -> None:
    (container,) = pod_of(objects)["spec"]["containers"]
    probes = [container[name] for name in ("startupProbe", "livenessProbe", "readinessProbe")]
    gets = [spec["httpGet"] for spec in probes if "httpGet" in spec]
    if monitor := objects.get("PodMonitor/kwise"):
        gets += monitor["spec"]["podMetricsEndpoints"]
    scheme = "http" if parsed(arguments_of(objects)).tls_cert is None else "https"
    assert len(gets) >= 2
    assert {(get["port"], get["scheme"].lower()) for get in gets} == {("http", scheme)}


def test_every_selector_selects_the_pods(objects: dict[str, dict[str, Any]]) -> None:
    """kustomize can add a label to the selector of a network policy's clients as well."""
    labels = pod_of(objects)["metadata"]["labels"]
    selectors = [
        objects["Service/kwise"]["spec"]["selector"],
        objects["Service/kwise-pods"]["spec"]["selector"],
        objects["Deployment/kwise"]["spec"]["selector"]["matchLabels"],
        objects["PodDisruptionBudget/kwise"]["spec"]["selector"]["matchLabels"],
        objects["NetworkPolicy/kwise"]["spec"]["podSelector"]["matchLabels"],
    ]
    if monitor := objects.get("PodMonitor/kwise"):
        selectors.append(monitor["spec"]["selector"]["matchLabels"])
        # The alerts ask for this job. Without jobLabel it is NAMESPACE/kwise.
        assert labels[monitor["spec"]["jobLabel"]] == "kwise"
    assert all(selector and selector.items() <= labels.items() for selector in selectors)
    target = objects["HorizontalPodAutoscaler/kwise"]["spec"]["scaleTargetRef"]
    assert f"{target['kind']}/{target['name']}" in objects
    clients = objects["NetworkPolicy/kwise"]["spec"]["ingress"][0]["from"]
    assert clients == [{"podSelector": {"matchLabels": {"kwise.client": "true"}}}]


def test_a_pod_has_the_time_to_answer_what_it_has_accepted(
    objects: dict[str, dict[str, Any]],
) -> None:
    pod = pod_of(objects)["spec"]
    (container,) = pod["containers"]
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    grace_s = parsed(arguments_of(objects)).grace_s
    assert pod["terminationGracePeriodSeconds"] >= before + grace_s + 5


def test_a_pod_is_restricted(objects: dict[str, dict[str, Any]]) -> None:
    """The rules of Kubernetes' Pod Security Standard `restricted`, and a read-only root."""
    pod = pod_of(objects)["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "privileged": False,
        "readOnlyRootFilesystem": True,
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert pod["automountServiceAccountToken"] is False
    resources = container["resources"]
    assert resources["limits"] == resources["requests"]


@pytest.fixture(scope="module")
def server(
    objects: dict[str, dict[str, Any]],
    tiny_artifact: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """A server with the options of a variant, on free ports of this machine."""
    arguments = arguments_of(objects)
    if "cuda" in arguments:
        pytest.skip("this variant needs a GPU")
    directory = tmp_path_factory.mktemp("secrets")
    pair = Authority(directory).sign("server")
    (directory / "tokens").write_text("job:0123456789abcdef\n")
    files = {"tokens": directory / "tokens", "tls.crt": pair.cert, "tls.key": pair.key}
    options = [str(files.get(Path(each).name, each)) for each in arguments[2:]]
    options += ["--port", "0", "--http-port", "0", "--host", "127.0.0.1"]
    with running_server(tiny_artifact, *options) as running:
        yield running


def test_the_probes_are_answered(objects: dict[str, dict[str, Any]], server: Server) -> None:
    (container,) = pod_of(objects)["spec"]["containers"]
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert probe(container[name], server), name


def test_the_images_health_check_is_answered(
    objects: dict[str, dict[str, Any]], server: Server
) -> None:
    (container,) = pod_of(objects)["spec"]["containers"]
    scheme = container["livenessProbe"]["httpGet"]["scheme"].lower()
    url = f"{scheme}://127.0.0.1:{http_port(server)}"
    assert health_check(f"{url}/readyz") == (0, "")
    code, line = health_check(f"{url}/missing")
    assert code == 1 and line == f"{url}/missing: HTTP Error 401: Unauthorized\n"


def probe(spec: dict[str, Any], server: Server) -> bool:
    """Ask as the kubelet does: without a token, and without verifying certificates."""
    if "grpc" in spec:
        request = health_pb2.HealthCheckRequest(service=spec["grpc"].get("service", ""))
        with grpc.insecure_channel(server.address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            reply = stub.Check(request, timeout=PATIENCE_S)
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)
    get = spec["httpGet"]
    assert get["port"] == "http"
    url = f"{get['scheme'].lower()}://127.0.0.1:{http_port(server)}{get['path']}"
    unverified = ssl.create_default_context()
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    with urllib.request.urlopen(url, timeout=PATIENCE_S, context=unverified) as reply:
        return bool(200 <= reply.status < 400)


def health_check(url: str) -> tuple[int, str]:
    """Return the exit code of the image's health check, and what it prints.

    The environment has a proxy, as Docker sets one in each container if it is told to.
    """
    proxy = dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, DEPLOY / "docker" / "healthcheck.py"],
        env={**os.environ, **proxy, "KWISE_HEALTH_URL": url},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_autoscaler_and_the_adapter_name_a_metric_of_the_server(
    objects: dict[str, dict[str, Any]],
) -> None:
    (scaled_by,) = objects["HorizontalPodAutoscaler/kwise"]["spec"]["metrics"]
    name = scaled_by["pods"]["metric"]["name"]
    assert name in {metric.name for metric in METRICS}
    adapter = yaml.safe_load((KUBERNETES / "prometheus-adapter.yaml").read_text(encoding="utf-8"))
    (rule,) = adapter["rules"]["custom"]
    assert rule["seriesQuery"].startswith(f"{name}{{")
    assert f"sum({name}{{" in rule["metricsQuery"]
