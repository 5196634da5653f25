"""Replica: the whole app with its engine, as a Serve deployment. Imported where Ray is."""

from __future__ import annotations

import os
import random
from typing import Any

import ray
from prometheus_client import generate_latest
from ray import serve
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from starlette.types import ASGIApp

from router_backend import logs
from router_backend.cluster.layout import DEPLOYMENT, NAME, Layout, options
from router_backend.server.app import create_app
from router_backend.service import tracing
from router_backend.service.loader import Loader
from router_backend.service.metrics import merged
from router_backend.service.service import GenerationService
from router_backend.settings import Settings, load_settings


class Sessions(ConsistentHashRouter):  # type: ignore[misc] # Ray has no types
    """Requests of a session go to one replica. Of two others the less busy one gets any other request."""

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:  # noqa: ANN401
        if pending_request is None or pending_request.metadata.session_id:
            ranks: list[list[Any]] = await super().choose_replicas(candidate_replicas, pending_request)
            return ranks
        pending_request.routing_context.should_backoff = True
        return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))] if candidate_replicas else []


class Router:
    """A replica takes requests when its checkpoint has answered; one whose checkpoint does not load never does."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc] # Serve awaits it
        self.settings = settings = _here(settings)
        logs.configure(settings)
        tracing.configure(settings)
        self.service = GenerationService(settings, Loader(settings).load)
        await self.service.host.ready()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return create_app(self.service, figures=self._figures_of_all)

    async def check_health(self) -> None:
        """As `/livez`: Serve replaces a replica that only a new process can help."""
        health = self.service.health()
        if not health.alive:
            raise RuntimeError(health.reason)

    async def figures(self) -> tuple[str, bytes]:
        """This replica's name and metrics."""
        return serve.get_replica_context().replica_id.unique_id, generate_latest(self.service.metrics.registry)

    async def _figures_of_all(self) -> bytes:
        """Those of each replica that answers."""
        everyone = serve.get_deployment_handle(DEPLOYMENT, NAME).broadcast("figures")
        told = await everyone.results_async(timeout_s=5, return_exceptions=True)
        return merged(dict(each for each in told if isinstance(each, tuple)))


_deployment: Any = serve.deployment(name=DEPLOYMENT)(serve.ingress()(Router))


def application(settings: Settings, layout: Layout) -> Any:  # noqa: ANN401 - Serve's Application
    return _deployment.options(**options(layout, settings)).bind(settings)


def from_environment(arguments: dict[str, str]) -> Any:  # noqa: ANN401
    """For Serve's configuration files, which say the layout: the settings are those of the node's environment."""
    return _deployment.bind(load_settings())


def _here(settings: Settings) -> Settings:
    """The settings for a replica: what it was given of this machine, loaded before it is asked.

    `/admin/reload` would change one replica of many; a new deployment changes all.
    """
    cpus = int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))
    return settings.model_copy(
        update={
            "admin_key": None,
            "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "skip_warm_start": True,
            "threads": settings.threads or max(1, cpus),
        }
    )
