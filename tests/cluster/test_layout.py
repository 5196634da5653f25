"""What `router-backend cluster` prints. (What it runs: `make cluster-test`.)"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema_rs
import kubernetes_validate
import pytest
import yaml
from typer.testing import CliRunner, Result

from router_backend.cli import app
from router_backend.cluster.layout import Layout, manifest, parse_replicas
from router_backend.errors import InvalidRequest
from router_backend.settings import load_settings

# The parts of KubeRay's RayService that we write, with no room for any other name; pods have Kubernetes' own schema.
SCHEMA = json.loads(Path(__file__).with_name("rayservice.json").read_text("utf-8"))
ROOT = Path(__file__).parents[2]
KEY = "a-long-secret-42"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["cluster", *arguments])


def printed(*arguments: str) -> Any:  # noqa: ANN401 - YAML
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return yaml.safe_load(result.stdout)


def deployment(configuration: dict[str, Any]) -> dict[str, Any]:
    (application,) = configuration["applications"]
    assert application["import_path"] == "router_backend.cluster.replica:from_environment"
    (found,) = application["deployments"]
    return dict(found)


@pytest.mark.parametrize(("text", "meant"), [("2", (2, 2)), ("1:4", (1, 4)), ("3:3", (3, 3))])
def test_replicas(text: str, meant: tuple[int, int]) -> None:
    assert parse_replicas(text) == meant


@pytest.mark.parametrize("text", ["", "0", "0:2", "4:1", "1:2:3", "-1", "a:b", "1:", "١"])
def test_replicas_that_mean_nothing(text: str) -> None:
    with pytest.raises(InvalidRequest, match="write MIN:MAX"):
        parse_replicas(text)
    result = run("--replicas", text, "--dry-run")
    assert result.exit_code == 1 and "MIN:MAX" in result.stderr and not result.stdout


def test_a_dry_run_says_what_would_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLOTS": "3", "QUEUE_LIMIT": "7", "DRAIN_TIMEOUT": "12", "PORT": "9100"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ROUTER_API_KEYS", f"alice:{KEY}")
    said = printed("--replicas", "2:5", "--gpus", "0.5", "--cpus", "3", "--shrink-after", "60", "--dry-run")
    assert said["http_options"] == {"host": "127.0.0.1", "port": 9100}
    found = deployment(said)
    scaling = found["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"], scaling["target_ongoing_requests"]) == (2, 5, 3)
    assert (scaling["upscale_delay_s"], scaling["downscale_delay_s"]) == (10, 60)
    assert found["ray_actor_options"] == {"num_cpus": 3, "num_gpus": 0.5}
    assert found["max_ongoing_requests"] > 3 + 7, "our queue answers, not Serve's"
    assert found["graceful_shutdown_timeout_s"] > 12
    assert KEY not in run("--dry-run").stdout


def test_the_manifest_keeps_the_schema_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTER_API_KEYS", f"alice:{KEY}")
    monkeypatch.setenv("HF_TOKEN", KEY)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("MODEL_REPO", "owner/router")
    monkeypatch.setenv("PORT", "9100")
    result = run("--replicas", "2:8", "--gpus", "1", "--kuberay", "registry.example/router:7")
    assert result.exit_code == 0 and KEY not in result.output and "&id" not in result.output
    said = yaml.safe_load(result.stdout)
    jsonschema_rs.validate(SCHEMA, said)
    inner = yaml.safe_load(said["spec"]["serveConfigV2"])
    assert inner["http_options"] == {"host": "0.0.0.0", "port": 8000}
    assert deployment(inner)["ray_actor_options"]["num_gpus"] == 1
    cluster = said["spec"]["rayClusterConfig"]
    assert f"\nray=={cluster['rayVersion']} " in (ROOT / "requirements/cluster.txt").read_text("utf-8")
    (workers,) = cluster["workerGroupSpecs"]
    assert (workers["minReplicas"], workers["maxReplicas"]) == (2, 10), "an update starts a quarter beside the old"
    for group in (cluster["headGroupSpec"], workers):
        pods = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": group["template"]}
        kubernetes_validate.validate(pods, kubernetes_validate.latest_version(), strict=True)
        (container,) = group["template"]["spec"]["containers"]
        assert container["image"] == "registry.example/router:7"
        told = {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}
        assert told["MODEL_REPO"] == "owner/router" and told["HF_HUB_OFFLINE"] == "0" and "PORT" not in told
        for secret in ("ROUTER_API_KEYS", "HF_TOKEN"):
            assert told[secret] == {"secretKeyRef": {"name": "router", "key": secret}}
    assert workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_the_schema_refuses_what_is_no_manifest() -> None:
    said = yaml.safe_load(manifest(Layout(), load_settings(), "x"))
    jsonschema_rs.validate(SCHEMA, said)
    said["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["maxReplica"] = 2
    with pytest.raises(jsonschema_rs.ValidationError, match="maxReplica"):
        jsonschema_rs.validate(SCHEMA, said)


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed here")
def test_without_ray_the_command_says_what_to_install() -> None:
    result = run()
    assert result.exit_code == 1 and "pip install 'router-backend[cluster]'" in result.stderr
