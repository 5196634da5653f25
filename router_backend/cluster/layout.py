"""Layout: how many replicas, what each gets, and the two files that say so: Serve's configuration and KubeRay's."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, select_autoescape
from pydantic import SecretStr

from router_backend.errors import InvalidRequest
from router_backend.settings import Settings

NAME, DEPLOYMENT, PORT = "router", "Router", 8000
# What Ray's proxies read when they start; `proxy.py` says what it is for.
PROXY_VARIABLE = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "router_backend.cluster.proxy:middlewares"}
_BEYOND_THE_QUEUE = 64  # probes, metrics and pages that a replica answers while its queue is full
_REPLICAS = re.compile(r"([1-9][0-9]{0,4})(?::([1-9][0-9]{0,4}))?")
_PLACES = ("host", "port")  # the proxies listen, not the replicas


@dataclass(frozen=True)
class Layout:
    """What is started.

    Attributes:
        least, most: replicas.
        cpus, gpus: what each replica gets; of a GPU it may be a part.
        grow_after, shrink_after: seconds that more or less load lasts before replicas start or stop.
    """

    least: int = 1
    most: int = 1
    cpus: float = 1
    gpus: float = 0
    grow_after: float = 10
    shrink_after: float = 300


def parse_replicas(text: str) -> tuple[int, int]:
    """`2` or `1:4` as the least and the most. Raises InvalidRequest."""
    found = _REPLICAS.fullmatch(text)
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if most < least:
        raise InvalidRequest(f"--replicas {text} is wrong: write MIN:MAX like 1:4, MIN at least 1, or one number")
    return least, most


def options(layout: Layout, settings: Settings) -> dict[str, Any]:
    """Serve's options of the deployment. A replica is busy when all its slots are; Serve's own queue stays empty,
    since ours answers a request that finds no place."""
    return {
        "autoscaling_config": {
            "min_replicas": layout.least,
            "initial_replicas": layout.least,
            "max_replicas": layout.most,
            "target_ongoing_requests": settings.slots,
            "upscale_delay_s": layout.grow_after,
            "downscale_delay_s": layout.shrink_after,
        },
        "max_ongoing_requests": settings.slots + settings.queue_limit + _BEYOND_THE_QUEUE,
        "graceful_shutdown_timeout_s": settings.drain_timeout + 5,
        "health_check_period_s": 5,
        "health_check_timeout_s": 30,
        "max_surge_percent": 25,  # an update starts a new replica before it stops an old one
        "ray_actor_options": {"num_cpus": layout.cpus, "num_gpus": layout.gpus},
        "request_router_config": {
            "request_router_class": "router_backend.cluster.replica:Sessions",
            "request_router_kwargs": {"num_fallback_replicas": 0},
        },
        "logging_config": {"enable_access_log": False},  # the app writes its own
    }


def configuration(layout: Layout, settings: Settings, host: str, port: int) -> dict[str, Any]:
    """What `serve deploy` takes, and `RayService` as `serveConfigV2`."""
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": host, "port": port},
        "applications": [
            {
                "name": NAME,
                "route_prefix": "/",
                "import_path": "router_backend.cluster.replica:from_environment",
                "deployments": [{"name": DEPLOYMENT, **options(layout, settings)}],
            }
        ],
    }


def manifest(layout: Layout, settings: Settings, image: str) -> str:
    """`rayservice.yaml.jinja` for a layout, with what the settings are.

    Secrets are read from a Secret named `router`, whose keys are the variables' names.
    """
    resources = {"cpu": f"{max(1.0, layout.cpus):g}", "memory": "8Gi"}
    if layout.gpus:
        resources["nvidia.com/gpu"] = f"{max(1, round(layout.gpus))}"
    pages = Environment(
        loader=PackageLoader("router_backend.cluster", ""), autoescape=select_autoescape(), trim_blocks=True
    )
    return pages.get_template("rayservice.yaml.jinja").render(
        serve=as_yaml(configuration(layout, settings, "0.0.0.0", PORT)),  # noqa: S104 - in a pod
        layout=layout,
        image=image,
        port=PORT,
        environment=_environment(settings),
        resources=resources,
        drain=round(settings.drain_timeout),
    )


def as_yaml(data: dict[str, Any]) -> str:
    return str(yaml.safe_dump(data, sort_keys=False, width=120)).rstrip()


def _environment(settings: Settings) -> list[dict[str, Any]]:
    """For a container: the settings that were set; of a secret the place where its value is."""
    found: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in PROXY_VARIABLE.items()]
    for name in sorted(settings.model_fields_set.difference(_PLACES)):
        value, variable = getattr(settings, name), name.upper()
        if isinstance(value, SecretStr):
            found.append({"name": variable, "valueFrom": {"secretKeyRef": {"name": NAME, "key": variable}}})
        elif value is not None:
            found.append({"name": variable, "value": f"{value:d}" if isinstance(value, bool) else str(value)})
    return found
