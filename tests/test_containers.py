"""The containers: valid by their schemas, and true to the server. No image is built here, and no cluster runs."""

from __future__ import annotations

import contextlib
import copy
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import pytest
import yaml
from prometheus_client import generate_latest

from router_backend.server.serve import bind
from router_backend.settings import Settings, load_settings
from tests.fakes.running import app, served, until

ROOT = Path(__file__).parents[1]
CONTAINERS = ROOT / "containers"
VERSIONS = ("1.32", "1.37")
PATHS = {"startupProbe": "/startupz", "livenessProbe": "/livez", "readinessProbe": "/readyz"}
# A setting of the engine for checkpoints that are served elsewhere.
OF_THE_UPSTREAM = {"UPSTREAM_API_KEY"}


@lru_cache
def manifests() -> list[dict[str, Any]]:
    documents = yaml.safe_load_all((CONTAINERS / "kubernetes.yaml").read_text("utf-8"))
    return [document for document in documents if document]


def named(kind: str, name: str) -> dict[str, Any]:
    return next(each for each in manifests() if each["kind"] == kind and each["metadata"]["name"] == name)


def pod(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = named("Deployment", name)["spec"]["template"]["spec"]
    return spec


def composed(name: str) -> dict[str, Any]:
    service: dict[str, Any] = yaml.safe_load((CONTAINERS / "compose.yaml").read_text("utf-8"))["services"][name]
    return service


def option(arguments: list[str], name: str) -> str:
    return next(each.partition("=")[2] for each in arguments if each.startswith(f"{name}="))


def front_environments() -> list[dict[str, str]]:
    """The front end's variables, in Kubernetes and in compose. A secret is a key that would do."""
    pairs = pod("router")["containers"][0]["env"]
    cluster = {each["name"]: each.get("value", "me:0123456789abcdef") for each in pairs}
    own = {
        name: re.sub(r"^\$\{.*", "me:0123456789abcdef", each)
        for name, each in composed("router")["environment"].items()
    }
    return [cluster, own]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_keeps_its_schema(version: str) -> None:
    kinds = [each["kind"] for each in manifests()]
    assert {"Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler", "NetworkPolicy"} <= set(kinds)
    for each in manifests():
        kubernetes_validate.validate(each, version, strict=True)


def test_the_schemas_see_a_slip() -> None:
    wrong = copy.deepcopy(named("Deployment", "router"))
    wrong["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenessProb"):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_compose_keeps_its_schema(tmp_path: Path) -> None:
    wrong = tmp_path / "compose.yaml"
    wrong.write_text((CONTAINERS / "compose.yaml").read_text("utf-8").replace("healthcheck:", "health_check:"), "utf-8")
    for path, code in ((CONTAINERS / "compose.yaml", 0), (wrong, 1)):
        command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
        ran = subprocess.run(command, capture_output=True, text=True)
        assert ran.returncode == code, ran.stdout + ran.stderr


@pytest.mark.parametrize("environment", front_environments(), ids=["kubernetes", "compose"])
def test_the_variables_are_settings(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.keys() - {name.upper() for name in Settings.model_fields} <= OF_THE_UPSTREAM
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.model_repo == "http://vllm:8000/v1" and settings.api_keys
    assert settings.slots == settings.queue_limit == 64


def test_the_probes_are_routes_of_ours() -> None:
    container = pod("router")["containers"][0]
    assert {probe: container[probe]["httpGet"]["path"] for probe in PATHS} == PATHS
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert {container[probe]["httpGet"]["port"] for probe in PATHS} == {"http"} and ports[
        "http"
    ] == load_settings().port
    with app(router_api_keys="me:0123456789abcdef") as started:
        assert [started.client.get(path).status_code for path in PATHS.values()] == [200, 200, 200]


def test_a_drain_ends_before_the_kill() -> None:
    container = pod("router")["containers"][0]
    drain, cards = (float(each["DRAIN_TIMEOUT"]) for each in front_environments()), pod("vllm-pool")
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    cluster, own = drain
    assert pod("router")["terminationGracePeriodSeconds"] >= pause + cluster + 10
    assert float(composed("router")["stop_grace_period"].removesuffix("s")) >= own + 10
    waits = float(option(cards["containers"][0]["args"], "--shutdown-timeout"))
    assert cards["terminationGracePeriodSeconds"] >= pause + waits + 10
    assert float(composed("vllm")["stop_grace_period"].removesuffix("s")) >= waits + 10


def test_a_card_has_room_for_what_its_front_end_sends() -> None:
    for arguments, environment in zip(
        (pod("vllm-pool")["containers"][0]["args"], composed("vllm")["command"]), front_environments(), strict=True
    ):
        assert int(option(arguments, "--max-num-seqs")) >= int(environment["SLOTS"])
        assert int(option(arguments, "--max-model-len")) >= load_settings().context_length
        assert option(arguments, "--structured-outputs-config") == '{"backend":"guidance"}'


def test_what_is_named_is_there() -> None:
    """Selectors find pods, and budgets, autoscalers, volumes and the balancer what they are about."""
    labels = {
        each["metadata"]["name"]: each["spec"]["template"]["metadata"]["labels"]
        for each in manifests()
        if each["kind"] == "Deployment"
    }
    assert set(labels) == {"router", "vllm", "vllm-pool"}
    for each in manifests():
        spec, kind = each.get("spec", {}), each["kind"]
        assert each["metadata"]["namespace"] == "router"
        if kind == "Service":
            assert spec["selector"] in labels.values()
        if kind in ("PodDisruptionBudget", "Deployment"):
            assert spec["selector"]["matchLabels"] == labels[each["metadata"]["name"]]
        if kind == "NetworkPolicy":
            peers = [peer["podSelector"]["matchLabels"] for rule in spec["ingress"] for peer in rule["from"]]
            assert all(peer in labels.values() for peer in (*peers, spec["podSelector"]["matchLabels"]))
        if kind == "HorizontalPodAutoscaler":
            assert spec["scaleTargetRef"]["name"] in labels
            assert "replicas" not in named("Deployment", spec["scaleTargetRef"]["name"])["spec"], "the autoscaler's"
    assert "vllm-pool.router.svc.cluster.local:8000" in balancer()
    assert named("Service", "vllm")["spec"]["ports"][0]["port"] == 8000


def test_the_autoscalers_metric_is_what_we_measure() -> None:
    page = (ROOT / "docs" / "scale-out.md").read_text("utf-8")
    rule = yaml.safe_load(re.findall(r"```yaml\n(rules:.*?)```", page, re.DOTALL)[0])["rules"][0]
    with app() as started:
        exposed = generate_latest(started.service.metrics.registry).decode()
    asked = set(re.findall(r"vllm:\w+", rule["metricsQuery"] + rule["seriesQuery"]))
    assert asked == {"vllm:num_requests_running", "vllm:num_requests_waiting"}
    assert all(f"\n{name}{{" in exposed for name in asked)
    for name in ("router", "vllm-pool"):
        about = named("HorizontalPodAutoscaler", name)["spec"]["metrics"][0]["object"]
        assert about["metric"]["name"] == rule["name"]["as"] and about["describedObject"]["name"] == "router"
        slots = int(front_environments()[0]["SLOTS"])
        assert slots / 2 < int(about["target"]["averageValue"]) < slots


def test_the_image_is_made_of_what_is_there() -> None:
    page = (CONTAINERS / "Dockerfile").read_text("utf-8")
    copied = [each for line in re.findall(r"^COPY (.*) \S+$", page, re.MULTILINE) for each in line.split()]
    assert copied and all((ROOT / each).exists() for each in copied)
    assert {"pyproject.toml", "router_backend/", "router_tools/", "requirements/"} <= set(copied)
    for lock in re.findall(r"\S+\.txt", page):
        assert (ROOT / "requirements" / lock).is_file()
    assert pod("router")["securityContext"]["runAsUser"] == int(re.findall(r"USER (\d+)", page)[0])


# The balancer


def balancer() -> str:
    return str(named("ConfigMap", "vllm")["data"]["nginx.conf"])


@contextlib.contextmanager
def balanced(urls: list[str], folder: Path) -> Iterator[str]:
    """nginx with the manifest's configuration before these servers, which stand for the pods that it would resolve."""
    with bind("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    page = re.sub(r"\n *resolver .*", "", balancer())
    line = re.search(r"server vllm-pool\S+ resolve (.*)", page)
    assert line
    page = page.replace(line[0], "\n".join(f"server {url.removeprefix('http://')} {line[1]}" for url in urls))
    page = page.replace("listen 8000;", f"listen 127.0.0.1:{port};").replace("/tmp/", f"{folder}/")
    (folder / "nginx.conf").write_text(page, "utf-8")
    command = ["nginx", "-c", str(folder / "nginx.conf"), "-g", "daemon off; error_log stderr;"]
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        until(lambda: running.poll() is not None or _balances(port))
        yield f"http://127.0.0.1:{port}"
    finally:
        running.terminate()
        running.wait(60)


def _balances(port: int) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{port}/balance").status_code == 200
    return False


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
def test_the_calls_of_a_session_reach_one_card(tmp_path: Path) -> None:
    with served(allowed_hosts="*") as one, contextlib.ExitStack() as stack:
        other = stack.enter_context(served(allowed_hosts="*"))
        with balanced([one.url, other.url], tmp_path) as url, httpx.Client(base_url=url, timeout=60) as client:

            def ask(session: int) -> None:
                body = {"prompt": f"session {session}", "output": "text", "max_new_tokens": 4}
                headers = {"x-session-id": f"session-{session}"}
                client.post("/v1/generate", json=body, headers=headers).raise_for_status()

            for session in 3 * list(range(21)):  # odd: in turns, a session would meet both cards
                ask(session)
            there = [[request.prompt for request in server.model.seen] for server in (one, other)]
            assert [len(set(each)) * 3 for each in there] == [len(each) for each in there], "each session whole"
            assert set(there[0]).isdisjoint(there[1]) and all(there)
            stack.close()  # a card is gone: its sessions go on at the other
            for session in range(21):
                ask(session)
            assert len({request.prompt for request in one.model.seen}) == 21
