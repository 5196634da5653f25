"""The contract, the same through every door: uvicorn with the UI mounted, and Gradio as ZeroGPU launches it.

`DOORS` names others that take minutes: `make doors` takes all of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import httpx
import pytest

from router_backend.plan.rules import validate
from tests.fakes.cluster import ClusterDoor, cluster_door
from tests.fakes.running import in_threads, until
from tests.fakes.space import (
    PATIENCE,
    Door,
    client,
    embedded_door,
    llama_server_door,
    plain_door,
    space_door,
    vllm_door,
)

pytestmark = pytest.mark.slow  # each door is a process with Gradio in it
DOORS = {
    "plain": plain_door,
    "zerogpu": space_door,
    "embedded": embedded_door,
    "llama-server": llama_server_door,
    "vllm": vllm_door,
    "cluster": cluster_door,
}
CHOSEN = os.environ.get("DOORS", "plain,zerogpu").split(",")
TOOLS = ("/general-search", "/math", "/code")


@pytest.fixture(scope="module", params=CHOSEN)
def door(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """GRADIO_SSR_MODE is what a Space may have set: Node would then answer every path with a page."""
    with DOORS[request.param](tmp_path_factory.mktemp("door"), GRADIO_SSR_MODE="true") as opened:
        yield opened


def test_answers_with_a_whole_plan_and_nothing_else(door: Door) -> None:
    response = door.generate("Prove it.", output="plan")
    assert response.status_code == 200 and response.json().keys() == {"text"}
    assert validate(json.loads(response.json()["text"]), TOOLS)[1] == []


def test_details_say_what_it_took(door: Door) -> None:
    details = door.generate("one two three", details=True, seed=7, max_new_tokens=20).json()["details"]
    assert details["usage"]["completion_tokens"] in ([3] if door.echoes else range(1, 21)) and details["seed"] == 7
    assert (details["timings"]["gpu_seconds"] > 0) is door.lends


def test_plan_is_parsed_for_the_client(door: Door) -> None:
    answer = httpx.post(f"{door.url}/v1/plan", json={"query": "Prove it."}, timeout=PATIENCE).json()
    assert answer["plan"] == json.loads(answer["text"])
    assert answer["report"]["budget"]["used"] <= answer["report"]["budget"]["limit"]


def test_a_stream_says_the_same_in_pieces(door: Door) -> None:
    with httpx.stream(
        "POST", f"{door.url}/v1/generate", json={"prompt": "Prove it.", "stream": True}, timeout=PATIENCE
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert events[-1] == "[DONE]" and len(events) > 5
    said = "".join(json.loads(event)["text"] for event in events[:-1])
    assert validate(json.loads(said), TOOLS)[1] == []


def test_a_stream_over_http_1_0_ends(door: Door) -> None:
    if isinstance(door, ClusterDoor):
        pytest.skip("Ray's proxies answer HTTP/1.0 in chunks: docs/scale-out.md says what to do")
    with door.connect("1.0", prompt="one two three", output="text", stream=True) as connection:
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    assert received.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/v1/generate", {"prompt": "x", "promt": "y"}, 400, "unknown_field"),
        ("POST", "/v1/generate", {"prompt": ""}, 400, "invalid_value"),
        ("POST", "/v1/generate", {"prompt": "x", "max_new_tokens": 20}, 400, "budget_too_small"),
        ("POST", "/v1/generate", {"prompt": "x " * 5000, "output": "text"}, 400, "context_length_exceeded"),
        ("POST", "/v1/nothing", {}, 404, "not_found"),
        ("GET", "/v1/generate", None, 405, "method_not_allowed"),
    ],
)
def test_errors_have_one_shape(
    door: Door, method: str, path: str, body: dict[str, object] | None, status: int, code: str
) -> None:
    asked = len(door.api.of("/schedule"))
    response = httpx.request(method, f"{door.url}{path}", json=body, headers={"x-request-id": "mine"}, timeout=PATIENCE)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert response.headers["x-request-id"] == "mine"
    assert len(door.api.of("/schedule")) == asked, "what cannot be answered costs no GPU seconds"


def test_the_root_leads_to_the_ui_with_its_query(door: Door) -> None:
    for method in ("GET", "HEAD"):
        response = httpx.request(method, f"{door.url}/?__theme=dark", timeout=PATIENCE)
        assert (response.status_code, response.headers["location"]) == (307, "/gradio?__theme=dark")
    page = httpx.get(f"{door.url}/", follow_redirects=True, timeout=PATIENCE)
    assert page.status_code == 200 and "gradio" in page.text and page.url.path == "/gradio/"


@pytest.mark.parametrize("path", ["/health", "/livez", "/readyz", "/startupz", "/openapi.json"])
def test_json_is_json_whatever_renders_the_pages(door: Door, path: str) -> None:
    response = httpx.get(f"{door.url}{path}", timeout=PATIENCE)
    assert response.status_code == 200 and response.headers["content-type"] == "application/json"


@pytest.mark.parametrize("path", ["/console", "/docs"])
def test_pages_are_ours(door: Door, path: str) -> None:
    response = httpx.get(f"{door.url}{path}", timeout=PATIENCE)
    assert response.status_code == 200 and "gradio_config" not in response.text


def test_health_says_what_is_served_and_borrows_nothing(door: Door) -> None:
    asked = len(door.api.calls)
    health = httpx.get(f"{door.url}/health", timeout=PATIENCE).json()
    engine, strategy, model = door.serves
    assert (health["status"], health["engine"], health["strategy"]) == ("ok", engine, strategy)
    assert model in health["model"]
    assert (health["gpu"] is not None) is door.lends
    assert len(door.api.calls) == asked


@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "plain"])
def test_a_client_that_leaves_frees_the_slot(door: Door, streamed: bool) -> None:
    with door.connect(prompt="slow " * 1200, output="text", stream=streamed, max_new_tokens=1200) as connection:
        if streamed:
            connection.recv(65536)
        else:
            until(lambda: not door.idle)
    until(lambda: door.idle, 50)  # long before it would have ended
    assert door.generate("and on", max_new_tokens=8).status_code == 200


def test_five_calls_of_the_ui_at_once_are_all_answered(door: Door) -> None:
    clients = [client(door) for _ in range(5)]
    said = in_threads(5, lambda index: clients[index].predict(f"slow {index} it is", "text", 20, api_name="/generate"))
    expected = [f"slow {index} it is" for index in range(5)]
    assert said == expected if door.echoes else all(isinstance(each, str) for each in said)
    for each in clients:
        each.close()


def test_a_call_of_the_ui_that_is_cancelled_frees_the_slot(door: Door) -> None:
    visitor = client(door)
    job = visitor.submit("slow " * 1200, "text", 1200, api_name="/generate")
    until(lambda: bool(job.outputs()))
    job.cancel()
    until(lambda: door.idle, 50)  # long before it would have ended
    said = door.generate("and on", max_new_tokens=8).json()["text"]
    assert said == "and on" or not door.echoes
    visitor.close()


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://x.localhost"])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_row_2_no_page_of_another_origin_may_read(door: Door, method: str, origin: str) -> None:
    for path in ("/gradio/", "/config", "/gradio_api/info", "/gradio/gradio_api/call/generate", "/v1/models"):
        asked = {"origin": origin, "access-control-request-method": "POST"}
        answer = httpx.request(method, f"{door.url}{path}", headers=asked, timeout=PATIENCE)
        assert not [name for name in answer.headers if name.startswith("access-control-")], path


def test_row_3_the_limits_hold_for_gradios_routes(door: Door) -> None:
    api = f"{door.url}/gradio_api"
    large = httpx.post(f"{api}/call/generate", json={"data": ["x" * 2_000_000]}, timeout=PATIENCE)
    assert large.status_code == 413
    for method, path in (("POST", "upload"), ("GET", "dev/reload"), ("GET", "file=/etc/passwd"), ("POST", "run/x")):
        assert httpx.request(method, f"{api}/{path}").status_code == 404, path


@pytest.mark.parametrize("path", ["", "/gradio"])
def test_scripts_around_a_router_space_find_their_endpoints(door: Door, path: str) -> None:
    script = client(door, path=path)
    named: dict[str, object] = {"user_task": "Prove it.", "context": "", "acceptance": "", "extra_guidance": ""}
    named |= {"difficulty": "advanced", "tags": "a, b", "model_choice": "x"}
    named |= {"max_new_tokens": 640, "temperature": 0.2, "top_p": 0.9}
    for name in ("/generate_router_plan_streaming", "//generate_router_plan_streaming"):
        for answer in (script.predict(**named, api_name=name), script.predict(*named.values(), api_name=name)):
            text, plan, verdict, prompt = answer
            assert json.loads(text) == plan and validate(plan, TOOLS)[1] == []
            assert verdict == "✅ The plan is valid." and "Prove it." in prompt
        assert script.predict(api_name=name.replace("generate_router_plan_streaming", "clear_outputs"))[0] == ""
    script.close()
