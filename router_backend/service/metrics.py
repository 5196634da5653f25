"""What Prometheus reads: the names that vLLM's dashboards know, and ours. Every label has few values."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import InfoMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from router_backend import __version__
from router_backend.errors import RouterError
from router_backend.service.health import Health, State
from router_backend.types import Chunk, ModelInfo, Upstream

SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
SHARES = (0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
_RECENT = 20  # requests that are remembered
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class Recent:
    """A request that has ended. `at`: seconds since 1970; `prompt`: only where the operator lets prompts be kept."""

    at: float
    key: str
    outcome: str
    seconds: float
    tokens: int
    prompt: str | None


class Metrics:
    """The figures of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(name, what, labels, registry=registry)

        def histogram(name: str, what: str, buckets: Iterable[float]) -> Histogram:
            return Histogram(name, what, ("model_name",), registry=registry, buckets=tuple(buckets))

        self.prompt_tokens = counter("vllm:prompt_tokens", "Tokens of prompts.", "model_name")
        self.generation_tokens = counter("vllm:generation_tokens", "Tokens of answers.", "model_name")
        self.success = counter("vllm:request_success", "Whole answers.", "model_name", "finished_reason")
        self.first_token = histogram("vllm:time_to_first_token_seconds", "From arrival to the first text.", SECONDS)
        self.inter_token = histogram(
            "vllm:inter_token_latency_seconds", "Decoding seconds a token, one value a request.", TOKEN_SECONDS
        )
        self.e2e = histogram("vllm:e2e_request_latency_seconds", "From arrival to the end of a whole answer.", SECONDS)
        self.queue = histogram("vllm:request_queue_time_seconds", "From arrival to a slot.", SECONDS)
        self.cached_tokens = counter("router_prompt_cached_tokens", "Prompt tokens from the prefix cache.")
        self.passes = counter("router_forward_passes", "Forward passes of the model.")
        self.drafted = counter("router_drafted_tokens", "Tokens that were guessed ahead.")
        self.accepted = counter("router_accepted_tokens", "Guessed tokens that were right.")
        self.forced = counter("router_forced_tokens", "Tokens that the grammar dictated.")
        self.plans = counter(
            "router_plans", "Plans asked for, valid ones and those that could not be written.", "outcome"
        )
        self.repaired = counter("router_plans_repaired", "Valid plans with a stage that was asked again.")
        self.clipped = counter("router_plans_clipped", "Valid plans with a text that its limit stopped.")
        self.budget_used = Histogram(
            "router_budget_used_ratio", "Share of its token budget that a plan used.", registry=registry, buckets=SHARES
        )
        self.requests = counter(
            "router_requests", "Requests for an answer, by key and what became of them.", "key", "outcome"
        )
        self.attempts = counter("router_ladder_attempts", "Attempts to load a checkpoint.", "strategy", "outcome")
        self.restarts = counter("router_engine_restarts", "Engines that the watchdog gave up.", "cause")
        self.reloads = counter("router_reloads", "Reloads of a checkpoint.", "outcome")
        self.http = counter("router_http_requests", "HTTP requests.", "method", "route", "status")

        ProcessCollector("router", registry=registry)
        self.recent: deque[Recent] = deque(maxlen=_RECENT)
        # A counter or histogram for its labels, looked up once: that costs more than a count.
        self.of = cache(lambda family, *labels: family.labels(*labels))

    def watch(self, health: Callable[[], Health]) -> None:
        """Reads the gauges from `/health`'s own source, when somebody asks."""
        self.registry.register(_Collected(lambda: _gauges(health())))

    @contextmanager
    def request(self, key: str, prompt: str | None = None) -> Iterator[Seen]:
        """Around one request for an answer; counts and remembers what became of it, and its `prompt` where given."""
        seen, began = Seen(self), time.monotonic()
        try:
            yield seen
        except RouterError as error:
            seen.outcome = error.code
            if error.code == "invalid_plan":
                self.plans.labels("invalid").inc()
            raise
        except (asyncio.CancelledError, GeneratorExit):
            seen.outcome = seen.outcome or "cancelled"
            raise
        except Exception:
            seen.outcome = "internal_error"
            raise
        finally:
            outcome = seen.outcome or "cancelled"
            self.requests.labels(key, outcome).inc()
            self.recent.append(Recent(time.time(), key, outcome, time.monotonic() - began, seen.tokens, prompt))

    def http_request(self, method: str, route: str, status: int) -> None:
        self.of(self.http, method if method in METHODS else "other", route, status).inc()


class Seen:
    """One request, as far as it has come."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._arrived = time.monotonic()
        self._first = False
        self._model = ""
        self.outcome: str | None = None
        self.tokens = 0

    def begins(self, info: ModelInfo, waited: float) -> None:
        self._model = info.model
        self._metrics.of(self._metrics.queue, info.model).observe(waited)

    def chunk(self, chunk: Chunk) -> None:
        if chunk.text and not self._first:
            self._first = True
            self._metrics.of(self._metrics.first_token, self._model).observe(time.monotonic() - self._arrived)
        if chunk.finish_reason is not None:
            self.outcome = chunk.finish_reason
            self.tokens = chunk.usage.completion_tokens
            if chunk.finish_reason != "cancelled":
                self._end(chunk)

    def _end(self, last: Chunk) -> None:
        metrics, model, usage, timings = self._metrics, self._model, last.usage, last.timings
        metrics.of(metrics.success, model, last.finish_reason).inc()
        metrics.of(metrics.e2e, model).observe(time.monotonic() - self._arrived)
        metrics.of(metrics.prompt_tokens, model).inc(usage.prompt_tokens)
        metrics.of(metrics.generation_tokens, model).inc(usage.completion_tokens)
        metrics.cached_tokens.inc(usage.cached_tokens)
        if usage.completion_tokens > 1:
            pace = timings.decode_seconds / (usage.completion_tokens - 1)
            metrics.of(metrics.inter_token, model).observe(pace)
        metrics.passes.inc(timings.forward_passes)
        metrics.drafted.inc(timings.drafted)
        metrics.accepted.inc(timings.accepted)
        metrics.forced.inc(timings.forced)
        if last.budget is not None:
            metrics.of(metrics.plans, "valid").inc()
            metrics.repaired.inc(bool(last.budget.retries))
            metrics.clipped.inc(bool(last.budget.clipped))
            metrics.budget_used.observe(last.budget.used / last.budget.limit)


class _Collected(Collector):
    """Figures that are made when somebody asks."""

    def __init__(self, figures: Callable[[], Iterable[Metric]]) -> None:
        self._figures = figures

    def collect(self) -> Iterable[Metric]:
        return self._figures()


def _gauges(now: Health) -> Iterator[Metric]:
    here = {"model_name": now.model or ""}
    slots = now.info.slots if now.info else 0
    yield _figure("gauge", "vllm:num_requests_running", "Requests that have a slot.", (here, now.running))
    yield _figure("gauge", "vllm:num_requests_waiting", "Requests that wait for a slot.", (here, now.waiting))
    yield _figure("gauge", "router_slots", "Requests that can run at once.", (here, slots))
    yield _figure("gauge", "router_alive", "1, or 0 where only a new process can help.", (here, now.alive))
    states = (({"state": each}, now.status == each) for each in get_args(State))
    yield _figure("gauge", "router_state", "1 for the state that holds.", *states)
    labels = {"version": __version__, "strategy": now.strategy, "engine": now.engine or "", **here}
    yield InfoMetricFamily("router_build", "What runs.", value=labels)
    if now.info and now.info.upstream:
        yield from _upstream(now.info.upstream)


def _upstream(now: Upstream) -> Iterator[Metric]:
    """The figures of a server upstream. They begin anew when another is taken, as counters may."""
    here = {"upstream": now.url}
    failures = (({**here, "code": code}, times) for code, times in now.failures.items())
    yield _figure("counter", "router_upstream_calls", "Calls of the server upstream.", (here, now.calls))
    yield _figure("counter", "router_upstream_retries", "Calls that were sent again.", (here, now.retries))
    yield _figure("counter", "router_upstream_failures", "Calls given up.", *failures)
    yield _figure("gauge", "router_upstream_down", "1 while it is left alone.", (here, now.down))


def _figure(kind: str, name: str, what: str, *samples: tuple[dict[str, str], float]) -> Metric:
    """A counter or a gauge; a sample is labels and a value."""
    family = Metric(name, what, kind)
    for labels, value in samples:
        family.add_sample(f"{name}_total" if kind == "counter" else name, labels, value)
    return family


def merged(texts: Mapping[str, bytes]) -> bytes:
    """Figures of several replicas as one text; each figure has the name of its replica as a label."""
    families: dict[str, Metric] = {}
    for replica, text in texts.items():
        for family in text_string_to_metric_families(text.decode()):
            whole = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                whole.add_sample(sample.name, {**sample.labels, "replica": replica}, sample.value)
    return generate_latest(_Collected(families.values))
