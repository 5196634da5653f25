"""The Space under ZeroGPU: the real `spaces` and its real workers, with a fake device API."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.fakes.running import in_threads, until
from tests.fakes.space import Door, client, space_door

pytestmark = pytest.mark.slow  # processes with Gradio in them
TOKEN = "e30.e30.e30"  # a JSON Web Token that says nothing


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with space_door(tmp_path_factory.mktemp("space"), ZEROGPU_SIZE="xlarge", SLOTS="3", SKIP_WARM_START="1") as door:
        yield door


@pytest.fixture
def door(space: Door) -> Door:
    """The same process for all tests, with nothing left over from the test before."""
    space.api.answers.clear()
    until(lambda: space.idle)
    return space


def test_reports_once_and_before_it_can_be_reached(space: Door) -> None:
    (report,) = space.api.of("/startup-report")
    assert space.api.calls[0] is report
    assert report.at < space.answered_at
    assert "SKIP_WARM_START" in space.process.output, "it says that this has no meaning here"


def test_a_call_runs_in_a_worker_that_the_next_call_uses_again(door: Door) -> None:
    first, second = (int(door.generate("pid").json()["text"]) for _ in range(2))
    assert first == second != door.process.popen.pid
    assert psutil.Process(first).ppid() == door.process.popen.pid
    asked = door.api.of("/allow")
    assert sum(call.sent["pid"] == str(first) for call in asked) == 1


def test_asks_for_the_callers_quota_with_size_and_duration(door: Door) -> None:
    for tokens in (100, 1000):
        door.generate("hello", {"x-ip-token": TOKEN}, max_new_tokens=tokens)
    small, large = door.api.of("/schedule")[-2:]
    assert small.sent["token"] == large.sent["token"] == TOKEN
    assert small.sent["gpuSize"] == "xlarge"
    assert 5 <= int(small.sent["durationSeconds"]) <= int(large.sent["durationSeconds"]) <= 120
    door.generate("hello")
    assert "token" not in door.api.of("/schedule")[-1].sent, "nobody pays for somebody else"


def test_a_call_of_the_ui_uses_its_visitors_quota(door: Door) -> None:
    visitor = client(door, headers={"x-ip-token": TOKEN})
    assert visitor.predict("pid", "text", api_name="/generate") != str(door.process.popen.pid)
    assert door.api.of("/schedule")[-1].sent["token"] == TOKEN
    visitor.close()


def test_a_plan_for_an_agent_uses_its_callers_quota(door: Door) -> None:
    params = {"name": "plan", "arguments": {"query": "hello"}}
    headers = {"x-ip-token": TOKEN, "Accept": "application/json, text/event-stream"}
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    answer = httpx.post(f"{door.url}/mcp", json=call, headers=headers, timeout=60).json()
    assert "route_plan" in answer["result"]["structuredContent"]
    assert door.api.of("/schedule")[-1].sent["token"] == TOKEN


def test_clients_of_the_hub_find_the_ui_at_the_root(door: Door) -> None:
    visitor = client(door, path="")
    assert visitor.predict("hello", "text", api_name="/generate") == "hello"
    visitor.close()


@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "plain"])
def test_gives_the_gpu_back_when_the_client_leaves(door: Door, streamed: bool) -> None:
    with door.connect(prompt="slow please", stream=streamed):  # a plan, whose texts come whole
        until(lambda: bool(door.api.held))
        time.sleep(0.5)
        left = time.monotonic()
    door.released(left, 20)
    assert door.generate("and on").json() == {"text": "and on"}


def test_a_cancel_in_the_ui_gives_the_gpu_back(door: Door) -> None:
    visitor = client(door)
    job = visitor.submit("slow " * 1200, "text", 1200, api_name="/generate")
    until(lambda: bool(job.outputs()))
    left = time.monotonic()
    job.cancel()
    door.released(left, 20)  # forty seconds before it would have ended
    visitor.close()


@pytest.mark.parametrize(
    ("answer", "status", "code", "retry", "says"),
    [
        ("quota-exceeded 90", 429, "gpu_quota_exceeded", "90", "try again in 90 seconds, ask for fewer tokens"),
        ("quota-exceeded 90061", 429, "gpu_quota_exceeded", "90061", "a larger quota"),
        ("pending-overquota-exceeded 0", 429, "gpu_quota_exceeded", "5", "when one of them has ended"),
        ("illegal-duration -1", 400, "gpu_duration_too_long", None, "ask for fewer tokens"),
        ("503", 503, "no_gpu", "60", "try again in a minute"),
        ("401", 401, "gpu_token_expired", None, "load the page again"),
        ("500", 503, "no_gpu", "60", "try again in a minute"),
        ("queue -0.2", 503, "no_gpu", "60", "try again in a minute"),
    ],
)
def test_a_refusal_says_what_to_do(
    door: Door, answer: str, status: int, code: str, retry: str | None, says: str
) -> None:
    door.api.answers.append(answer)
    response = door.generate("hello", {"x-ip-token": TOKEN})
    error = response.json()["error"]
    assert (response.status_code, error["code"], response.headers.get("retry-after")) == (status, code, retry)
    assert says in error["message"]
    assert door.generate("and on").status_code == 200


def test_a_caller_without_a_token_is_told_to_send_one(door: Door) -> None:
    door.api.answers.append("quota-exceeded 90")
    response = door.generate("hello")
    assert response.status_code == 429 and "send a Hugging Face token" in response.json()["error"]["message"]


def test_health_knows_the_slice_and_the_quota_without_asking(door: Door) -> None:
    door.api.answers.append("quota-exceeded 90")
    door.generate("hello", {"x-ip-token": TOKEN})
    asked = len(door.api.calls)
    gpu = httpx.get(f"{door.url}/health").json()["gpu"]
    assert (gpu["size"], gpu["memory_gb"], gpu["quota"]) == ("xlarge", 96, "exceeded")
    assert 80 < gpu["retry_after"] <= 90 and gpu["duration"] >= 5
    assert len(door.api.calls) == asked
    door.generate("hello")
    assert httpx.get(f"{door.url}/health").json()["gpu"]["quota"] == "granted"


def test_waits_in_the_queue_for_a_gpu(door: Door) -> None:
    door.api.answers.append("queue 0.5")
    assert door.generate("hello").json() == {"text": "hello"}


def test_a_call_that_is_left_in_the_queue_is_not_run(door: Door) -> None:
    door.api.answers.append("queue 1")
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{door.url}/v1/generate", json={"prompt": "die", "output": "text"}, timeout=0.5)
    until(lambda: door.idle)
    assert door.api.of("/release")[-1].sent["fail"] == "false", "the worker lives: it was not told to die"


def test_calls_at_once_borrow_at_once_and_the_rest_waits(door: Door) -> None:
    before = len(door.api.of("/schedule"))
    said = in_threads(5, lambda index: door.generate(f"slow {index}").json()["text"])
    assert said == [f"slow {index}" for index in range(5)]
    assert len(door.api.of("/schedule")) == before + 5
    assert {call.sent["allowToken"].rpartition("-")[2] for call in door.api.of("/release")} <= {"0", "1", "2"}


@pytest.mark.parametrize(
    ("prompt", "status", "code", "says"),
    [("fail", 500, "engine_error", "ValueError"), ("die", 502, "gpu_aborted", "try again")],
)
def test_a_worker_that_fails_or_dies_costs_its_own_call_only(
    door: Door, prompt: str, status: int, code: str, says: str
) -> None:
    response = door.generate(prompt)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code) and says in error["message"]
    assert door.generate("and on").json() == {"text": "and on"}


def test_an_error_of_ours_comes_from_the_worker_as_it_is(door: Door) -> None:
    body = {"prompt": "nonsense", "output": "plan", "max_new_tokens": 250}
    pid = door.generate("pid").json()["text"]
    door.generate(**body)  # type: ignore[arg-type]
    assert door.generate("pid").json()["text"] == pid, "the worker lives on"


def test_keys_guard_all_and_sigterm_drains_and_leaves_no_worker(tmp_path: Path) -> None:
    with space_door(tmp_path, ROUTER_API_KEYS="alice:secret-1") as door:
        key = {"authorization": "Bearer secret-1"}
        assert len(door.api.of("/startup-report")) == 1
        assert [door.generate().status_code, httpx.get(f"{door.url}/gradio/").status_code] == [401, 401]
        assert [httpx.get(f"{door.url}{path}").status_code for path in ("/config", "/gradio_api/info")] == [401, 401]
        worker = psutil.Process(int(door.generate("pid", key).json()["text"]))
        until(lambda: not door.api.held)  # given back a moment after the answer

        def work(index: int) -> httpx.Response | None:
            if index:
                return door.generate("slow and slower", key)
            until(lambda: bool(door.api.held))
            door.process.popen.terminate()
            return None

        assert in_threads(2, work)[1].json() == {"text": "slow and slower"}
        assert door.process.wait() == 0
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.wait(5)
        assert not worker.is_running()
