"""`/metrics`, the dashboard and the alerts that read it, traces, and what lines of the log say of a request."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from router_backend.logs import LineFormatter
from router_backend.service import tracing
from router_backend.service.metrics import merged
from router_backend.settings import load_settings
from tests.fakes.running import App, app, echo_model, says_plans

ROOT = Path(__file__).parents[2]
KEY = "k-NEVERSHOWN"
BEARER = {"authorization": f"Bearer {KEY}"}
TRACE = "0af7651916cd43dd8448eb211c80319c"
_NAME = re.compile(r"\b(?:vllm:|router_)[a-z0-9_:]+")
VLLM = {
    *("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:prompt_tokens", "vllm:generation_tokens"),
    *("vllm:request_success", "vllm:time_to_first_token_seconds", "vllm:inter_token_latency_seconds"),
    *("vllm:e2e_request_latency_seconds", "vllm:request_queue_time_seconds"),
}


@pytest.fixture
def echo() -> Iterator[App]:
    with app() as running:
        yield running


def families(echo: App, **headers: str) -> dict[str, Any]:
    response = echo.client.get("/metrics", headers=headers)
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/plain; version=")
    return {each.name: each for each in text_string_to_metric_families(response.text)}


def value(echo: App, name: str, **labels: str) -> float:
    return echo.service.metrics.registry.get_sample_value(name, labels) or 0.0


def test_the_names_that_dashboards_of_vllm_read(echo: App) -> None:
    echo.generate()
    found = families(echo)
    assert found.keys() >= VLLM
    for family in found.values():
        assert family.documentation and family.type in ("counter", "gauge", "histogram", "info")
        assert re.fullmatch(r"(vllm:|router_)[a-z0-9_]+", family.name)
        names = {sample.name for sample in family.samples}
        assert len({(each.name, *sorted(each.labels.items())) for each in family.samples}) == len(family.samples)
        if family.type == "counter":
            assert all(name.endswith(("_total", "_created")) for name in names)
        if family.name in VLLM:
            assert all("model_name" in sample.labels for sample in family.samples)


def test_every_alert_and_every_query_of_the_dashboard_names_a_metric_that_is_there(echo: App) -> None:
    echo.generate()
    known = {sample.name for family in families(echo).values() for sample in family.samples}
    known |= {f"{name}_total" for name in families(echo)}  # counters with labels that have not counted yet
    dashboard = json.loads((ROOT / "dashboards" / "router-backend.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    alerts = re.findall(r"^\s*expr: (.+)$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    assert len(queries) > 20 and len(alerts) >= 8
    for query in (*queries, *alerts):
        names = _NAME.findall(query)
        assert names and set(names) <= known, query


def test_the_sums_are_those_of_the_answers(echo: App) -> None:
    details = [echo.generate(details=True).json()["details"] for _ in range(3)]
    texts = [echo.generate("a b c", output="text", details=True).json()["details"] for _ in range(2)]
    both = [*details, *texts]
    tokens = sum(each["usage"]["completion_tokens"] for each in both)
    assert value(echo, "vllm:generation_tokens_total", model_name="echo") == tokens
    assert value(echo, "vllm:prompt_tokens_total", model_name="echo") == sum(
        each["usage"]["prompt_tokens"] for each in both
    )
    assert value(echo, "router_forward_passes_total") == sum(each["timings"]["forward_passes"] for each in both)
    assert value(echo, "vllm:request_success_total", model_name="echo", finished_reason="stop") == 5
    assert value(echo, "router_plans_total", outcome="valid") == 3
    assert value(echo, "router_plans_clipped_total") == sum(bool(each["budget"]["clipped"]) for each in details)
    assert value(echo, "router_budget_used_ratio_count") == 3
    for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds"):
        assert value(echo, f"vllm:{name}_count", model_name="echo") == 5


def test_a_refusal_is_counted_by_its_code(echo: App) -> None:
    echo.generate(max_new_tokens=1)
    assert value(echo, "router_requests_total", key="", outcome="budget_too_small") == 1
    echo.model.script = lambda request: "-" if request.grammar else "x"
    echo.generate()
    assert value(echo, "router_plans_total", outcome="invalid") == 1
    echo.model.script = says_plans


def test_row_24_no_label_has_what_a_client_wrote(echo: App) -> None:
    for index in range(20):
        echo.client.get(f"/no-such-{index}")
        echo.client.request(f"VERB{index}", "/health")
        echo.generate(f"prompt-{index}", output="text")
    text = echo.client.get("/metrics").text
    for word in ("no-such", "VERB", "prompt-"):
        assert word not in text
    assert value(echo, "router_http_requests_total", method="GET", route="other", status="404") == 20
    assert value(echo, "router_http_requests_total", method="POST", route="/v1/generate", status="200") == 20


def test_gauges_say_what_health_says() -> None:
    with app(echo_model(slots=3)) as echo:
        found = families(echo)
        assert value(echo, "router_slots", model_name="echo") == 3
        assert {each.labels["state"]: each.value for each in found["router_state"].samples}["ok"] == 1
        assert value(echo, "router_alive", model_name="echo") == 1


def test_row_27_a_key_is_needed_and_is_shown_by_its_name() -> None:
    with app(router_api_keys=f"alice:{KEY}") as echo:
        assert echo.client.get("/metrics").status_code == 401
        echo.generate(output="text", headers=BEARER)
        text = echo.client.get("/metrics", headers=BEARER).text
        assert 'key="alice"' in text and "NEVERSHOWN" not in text
    with app(router_api_keys=f"alice:{KEY}", public_paths="/metrics") as echo:
        assert echo.client.get("/metrics").status_code == 200


# Traces


@pytest.fixture
def spans() -> Iterator[Any]:
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    exporter = memory.InMemorySpanExporter()
    tracing.configure(load_settings(), exporter)
    yield exporter
    tracing.configure(load_settings())


def test_one_span_for_each_stage(echo: App, spans: Any) -> None:  # noqa: ANN401
    traceparent = f"00-{TRACE}-b7ad6b7169203331-01"
    echo.generate(headers={"traceparent": traceparent})
    found = {span.name: span for span in spans.get_finished_spans()}
    assert list(found) == ["queue", "prefill", "decode", "generate", "POST /v1/generate"]
    request = found["POST /v1/generate"]
    assert {f"{span.context.trace_id:032x}" for span in found.values()} == {TRACE}
    assert f"{request.parent.span_id:016x}" == "b7ad6b7169203331"
    for name, parent in {
        "queue": request,
        "generate": request,
        "prefill": found["generate"],
        "decode": found["generate"],
    }.items():
        assert found[name].parent.span_id == parent.context.span_id
        assert found[name].start_time <= found[name].end_time
    assert request.attributes["http.response.status_code"] == 200
    assert found["decode"].attributes["gen_ai.usage.output_tokens"] > 0


def test_row_27_a_span_of_a_failure_says_its_class_alone(echo: App, spans: Any) -> None:  # noqa: ANN401
    def script(request: Any) -> str:  # noqa: ANN401
        raise ValueError("NEVERSHOWN")

    echo.model.script = script
    assert echo.generate("NEVERSHOWN", output="text").status_code == 500
    found = spans.get_finished_spans()
    assert {span.name: span.status.description for span in found}["generate"] == "ValueError"
    assert "NEVERSHOWN" not in "".join(span.to_json() for span in found)


def test_nothing_is_imported_where_traces_are_off(echo: App) -> None:
    assert tracing.begin_request("GET", "") == (None, "")
    with tracing.span("queue") as span:
        assert span is None


# Lines


def test_every_line_of_a_request_says_whose_it_is(echo: App, caplog: pytest.LogCaptureFixture) -> None:
    formatter = LineFormatter(as_json=True)
    lines: list[dict[str, Any]] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(formatter.format(record)))

    def script(request: Any) -> str:  # noqa: ANN401
        logging.getLogger("router_backend.engines").warning("from the slot's thread")
        return "x"

    echo.model.script = script
    listener, logger = Listener(), logging.getLogger("router_backend")
    logger.addHandler(listener)
    caplog.set_level(logging.INFO, "router_backend")
    try:
        headers = {"x-request-id": "r-1", "traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
        echo.generate(output="text", headers=headers)
    finally:
        logger.removeHandler(listener)
    assert {line["message"] for line in lines} == {"from the slot's thread", "request"}
    for line in lines:
        assert (line["request_id"], line["trace_id"]) == ("r-1", TRACE)


# Several replicas


def test_figures_of_replicas_add_up(echo: App) -> None:
    echo.generate("one two three", output="text")
    registry = echo.service.metrics.registry
    text = merged(dict.fromkeys(("a", "b"), generate_latest(registry))).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert text.count("# TYPE vllm:generation_tokens_total counter") == 1
    tokens = {each.labels["replica"]: each.value for each in families["vllm:generation_tokens"].samples}
    assert tokens == {"a": 3.0, "b": 3.0}
    plain = list(text_string_to_metric_families(generate_latest(registry).decode()))
    assert {family.name: (family.type, 2 * len(family.samples)) for family in plain} == {
        name: (family.type, len(family.samples)) for name, family in families.items()
    }
