"""What Prometheus reads: the names that vLLM's dashboards know, and ours. Every label has few values."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from router_backend import __version__
from router_backend.errors import RouterError
from router_backend.service.health import Health
from router_backend.types import Chunk, ModelInfo, Upstream

SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
SHARES = (0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
STATES = ("idle", "loading", "ok", "failed", "stopping")
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
        self.of = cache(partial(_OfModel, self))  # of one model, looked up once: a label costs more than a count
        self._http: dict[tuple[str, str, int], Counter] = {}

    def watch(self, health: Callable[[], Health]) -> None:
        """Reads the gauges from `/health`'s own source, when somebody asks."""
        self.registry.register(_Gauges(health))

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
        key = method if method in METHODS else "other", route, status
        if key not in self._http:
            self._http[key] = self.http.labels(key[0], route, str(status))
        self._http[key].inc()


class _OfModel:
    def __init__(self, metrics: Metrics, model: str) -> None:
        self.queue = metrics.queue.labels(model)
        self.first_token = metrics.first_token.labels(model)
        self.inter_token = metrics.inter_token.labels(model)
        self.e2e = metrics.e2e.labels(model)
        self.prompt_tokens = metrics.prompt_tokens.labels(model)
        self.generation_tokens = metrics.generation_tokens.labels(model)
        self.success = {reason: metrics.success.labels(model, reason) for reason in ("stop", "length")}


class Seen:
    """One request, as far as it has come."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._arrived = time.monotonic()
        self._first = False
        self._of: _OfModel | None = None
        self.outcome: str | None = None
        self.tokens = 0

    def begins(self, info: ModelInfo, waited: float) -> None:
        self._of = self._metrics.of(info.model)
        self._of.queue.observe(waited)

    def chunk(self, chunk: Chunk) -> None:
        if self._of is None:
            return
        if chunk.text and not self._first:
            self._first = True
            self._of.first_token.observe(time.monotonic() - self._arrived)
        if chunk.finish_reason is not None:
            self.outcome = chunk.finish_reason
            self.tokens = chunk.usage.completion_tokens
            if chunk.finish_reason != "cancelled":
                self._end(self._of, chunk)

    def _end(self, of: _OfModel, last: Chunk) -> None:
        metrics, usage, timings = self._metrics, last.usage, last.timings
        of.success[str(last.finish_reason)].inc()
        of.e2e.observe(time.monotonic() - self._arrived)
        of.prompt_tokens.inc(usage.prompt_tokens)
        of.generation_tokens.inc(usage.completion_tokens)
        metrics.cached_tokens.inc(usage.cached_tokens)
        if usage.completion_tokens > 1:
            of.inter_token.observe(timings.decode_seconds / (usage.completion_tokens - 1))
        metrics.passes.inc(timings.forward_passes)
        if timings.drafted or timings.forced:
            metrics.drafted.inc(timings.drafted)
            metrics.accepted.inc(timings.accepted)
            metrics.forced.inc(timings.forced)
        if last.budget is not None:
            metrics.plans.labels("valid").inc()
            metrics.repaired.inc(bool(last.budget.retries))
            metrics.clipped.inc(bool(last.budget.clipped))
            metrics.budget_used.observe(last.budget.used / last.budget.limit)


class _Gauges(Collector):
    def __init__(self, health: Callable[[], Health]) -> None:
        self._health = health

    def collect(self) -> Iterator[Metric]:
        now = self._health()
        model = [now.model or ""]

        def gauge(name: str, what: str, value: float) -> Metric:
            family = GaugeMetricFamily(name, what, labels=["model_name"])
            family.add_metric(model, value)
            return family

        yield gauge("vllm:num_requests_running", "Requests that have a slot.", now.running)
        yield gauge("vllm:num_requests_waiting", "Requests that wait for a slot.", now.waiting)
        yield gauge("router_slots", "Requests that can run at once.", now.info.slots if now.info else 0)
        yield gauge("router_alive", "1, or 0 where only a new process can help.", now.alive)
        state = GaugeMetricFamily("router_state", "1 for the state that holds.", labels=["state"])
        for each in STATES:
            state.add_metric([each], now.status == each)
        yield state
        labels = {"version": __version__, "strategy": now.strategy, "engine": now.engine or "", "model_name": model[0]}
        yield InfoMetricFamily("router_build", "What runs.", value=labels)
        if now.info and now.info.upstream:
            yield from _upstream(now.info.upstream)


def labelled(registry: Collector, **labels: str) -> bytes:
    """The figures as text, each with further labels."""
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return generate_latest(_Families([_with_labels(family, labels) for family in families]))


def merged(texts: Iterable[bytes]) -> bytes:
    """Figures of several processes as one text. They differ in a label, or one hides the other."""
    families: dict[str, Metric] = {}
    for text in texts:
        for family in text_string_to_metric_families(text.decode()):
            families.setdefault(family.name, _with_labels(family, {}, empty=True)).samples += family.samples
    return generate_latest(_Families(list(families.values())))


def _with_labels(family: Metric, labels: dict[str, str], *, empty: bool = False) -> Metric:
    same = Metric(family.name, family.documentation, family.type)
    for sample in () if empty else family.samples:
        same.add_sample(sample.name, {**sample.labels, **labels}, sample.value)
    return same


class _Families(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def _upstream(now: Upstream) -> Iterator[Metric]:
    """The figures of a server upstream. They begin anew when another is taken, as counters may."""
    calls = CounterMetricFamily("router_upstream_calls", "Calls of the server upstream.", labels=["upstream"])
    calls.add_metric([now.url], now.calls)
    yield calls
    again = CounterMetricFamily("router_upstream_retries", "Calls that were sent again.", labels=["upstream"])
    again.add_metric([now.url], now.retries)
    yield again
    failed = CounterMetricFamily("router_upstream_failures", "Calls given up.", labels=["upstream", "code"])
    for code, times in now.failures.items():
        failed.add_metric([now.url, code], times)
    yield failed
    down = GaugeMetricFamily("router_upstream_down", "1 while it is left alone.", labels=["upstream"])
    down.add_metric([now.url], now.down)
    yield down
