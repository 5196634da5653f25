"""Runs the application on the Ray cluster that is there, or on one of this machine's own."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from router_backend.cluster.layout import DEPLOYMENT, NAME, PROXY_VARIABLE, Layout, as_yaml, configuration, manifest
from router_backend.errors import LoadError, SettingsError
from router_backend.settings import Settings


def run(
    layout: Layout, settings: Settings, out: Callable[[str], object], *, dry_run: bool, image: str | None = None
) -> int:
    """Deploys, and returns 0 when every replica serves. Done again, it replaces them one after the other.

    On a Ray cluster of its own it serves until SIGTERM or SIGINT, and then drains. `dry_run` only prints Serve's
    configuration, and `image` KubeRay's manifest for pods of that image.

    Raises:
        LoadError: no new replica could load its checkpoint. Those from before go on.
        SettingsError: no Ray cluster is where RAY_ADDRESS says.
    """
    if image is not None or dry_run:
        plain = as_yaml(configuration(layout, settings, settings.host, settings.port))
        out(plain if image is None else manifest(layout, settings, image))
        return 0
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.update(PROXY_VARIABLE)
    import ray
    from ray import serve

    from router_backend.cluster.replica import application

    is_ours = _join(ray)
    serve.start(proxy_location="EveryNode", http_options={"host": settings.host, "port": settings.port})
    try:
        serve.run(application(settings, layout), name=NAME, route_prefix="/")
    except RuntimeError:
        said = serve.status().applications[NAME].deployments[DEPLOYMENT].message.strip() or "see Ray's logs"
        why = said.splitlines()[-1].strip()
        raise LoadError(f"no new replica starts, and those from before, if any, go on: {why}") from None
    out(f"{layout.least} to {layout.most} replicas serve at http://{settings.host}:{settings.port}")
    if is_ours:
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):  # Ray has set its own
            signal.signal(number, lambda *_: stop.set())
        stop.wait()
        serve.shutdown()
        ray.shutdown()
    return 0


def _join(ray: Any) -> bool:  # noqa: ANN401 - it has no types
    """Connects to the cluster that RAY_ADDRESS names or that runs here. Whether there was none, and one was started."""
    quiet = {"logging_level": logging.WARNING, "namespace": "serve"}
    try:
        ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), runtime_env={"env_vars": PROXY_VARIABLE}, **quiet)
        return False
    except ConnectionError:
        if "RAY_ADDRESS" in os.environ:
            raise SettingsError(f"RAY_ADDRESS={os.environ['RAY_ADDRESS']}: no Ray cluster answers there") from None
    ray.init(include_dashboard=False, **quiet)
    return True
