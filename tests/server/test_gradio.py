"""The boundary around Gradio: who may ask, for what, how much, and what is left of it."""

from __future__ import annotations

import asyncio
import gc
import json
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr
import httpx
import pytest
from gradio_client import Client

from router_backend.server.gradio import calls, mount
from tests.fakes.running import Served, echo_model, process, served, until

ALICE, BOB = "k-alice-1234", "k-bob-5678"
KEYS = f"alice:{ALICE},bob:{BOB}"
ROOTS = ("/gradio/gradio_api", "/gradio_api")
EVIL = "https://evil.example"


def bearer(key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}


@pytest.fixture(scope="module")
def running() -> Iterator[Served]:
    with served(echo_model(), ui=True) as server:
        httpx.get(f"{server.url}/gradio/config", timeout=60).raise_for_status()
        yield server


@pytest.fixture
def server(running: Served) -> Served:
    running.model.seconds_per_token = 0.0
    running.model.fail_after = None
    until(lambda: running.idle)
    return running


def call(url: str, *data: object, name: str = "generate", key: str | None = None) -> httpx.Response:
    """The events of a call, read to its end."""
    with httpx.Client(base_url=f"{url}/gradio_api/call", headers=bearer(key), timeout=60) as client:
        begun = client.post(f"/{name}", json={"data": data})
        return client.get(f"/{name}/{begun.json()['event_id']}") if begun.status_code == 200 else begun


def functions(url: str, key: str | None = None) -> dict[str, int]:
    """Gradio's number of each function, by its name."""
    config = httpx.get(f"{url}/config", headers=bearer(key), timeout=60).json()
    return {each["api_name"]: each["id"] for each in config["dependencies"]}


# Row 2: origins


@pytest.mark.parametrize("origin", [EVIL, "null", "http://x.localhost:7860", "http://127.0.0.1:1", "http://localhost"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio/"),
        ("GET", "/gradio/config"),
        ("GET", "/config"),
        *((method, root + path) for root in ROOTS for method, path in (("POST", "/call/generate"), ("GET", "/info"))),
        ("POST", "/gradio_api/queue/join"),
        ("OPTIONS", "/gradio_api/queue/join"),
        ("OPTIONS", "/gradio/gradio_api/call/generate"),
        ("OPTIONS", "/v1/generate"),
    ],
)
def test_row_2_no_page_of_another_origin_may_read(server: Served, method: str, path: str, origin: str) -> None:
    headers = {"origin": origin, "host": f"localhost:{server.port}", "access-control-request-method": "POST"}
    answer = httpx.request(method, server.url + path, headers=headers, timeout=30)
    assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("host", ["x.localhost", "10.0.0.7", "evil.example", "127.0.0.1.evil.example"])
@pytest.mark.parametrize("path", ["/gradio/", "/config", "/gradio_api/info", "/gradio/gradio_api/queue/data"])
def test_row_2_the_ui_goes_by_its_own_name_alone(server: Served, path: str, host: str) -> None:
    assert httpx.get(server.url + path, headers={"host": f"{host}:{server.port}"}).status_code == 421


def test_row_2_the_origins_of_the_setting_and_no_others() -> None:
    with served(echo_model(), ui=True, cors_origins="https://app.example") as server:
        for path in ("/gradio/config", "/config", "/gradio_api/info", "/health"):
            for origin, allowed in (("https://app.example", "https://app.example"), (EVIL, None)):
                answer = httpx.get(server.url + path, headers={"origin": origin}, timeout=60)
                assert answer.headers.get("access-control-allow-origin") == allowed
                assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
@pytest.mark.parametrize("path", ["/call/generate", "/queue/join", "/cancel"])
def test_row_2_a_form_of_another_page_is_not_taken(server: Served, path: str, kind: str) -> None:
    """What a page may send without asking first."""
    body = json.dumps({"data": ["x", "text"], "fn_index": 1, "session_hash": "s", "event_id": "e"})
    answer = httpx.post(f"{server.url}/gradio_api{path}", content=body, headers={"content-type": kind, "origin": EVIL})
    assert answer.status_code == 415


# Row 3: sizes, closed routes, nothing kept


@pytest.mark.parametrize("path", ["/call/generate", "/queue/join", "/cancel"])
@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
def test_row_3_a_large_body_is_not_read(server: Served, root: str, path: str, declared: bool) -> None:
    large = json.dumps({"data": ["x" * 2_000_000]}).encode()
    content: Any = large if declared else iter([large[at : at + 65_536] for at in range(0, len(large), 65_536)])
    answer = httpx.post(server.url + root + path, content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload_too_large")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/upload"),
        ("GET", "/upload_progress?upload_id=x"),
        ("GET", "/dev/reload"),
        ("GET", "/file=/etc/passwd"),
        ("GET", "/file/etc/passwd"),
        ("GET", "/proxy=https://evil.example/"),
        ("POST", "/component_server"),
        ("POST", "/process_recording"),
        ("POST", "/run/predict"),
        ("POST", "/api/predict"),
        ("POST", "/stream/x"),
        ("GET", "/startup-events"),
        ("GET", "/token"),
        ("GET", "/app_id"),
        ("GET", "/queue/status"),
        ("POST", "/vibe-code"),
        ("GET", "/runs"),
        ("GET", "/custom_component/x/y/z/w"),
        ("GET", "/deep_link"),
        ("GET", "/openapi.json"),
    ],
)
@pytest.mark.parametrize("root", ROOTS)
def test_row_3_what_the_page_does_not_need_is_not_there(server: Served, root: str, method: str, path: str) -> None:
    answer = httpx.request(method, server.url + root + path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize("path", ["/login", "/monitoring", "/monitoring/summary", "/svelte/x", "/pwa_icon", "/logout"])
def test_row_3_nor_beside_its_api(server: Served, path: str) -> None:
    assert httpx.get(f"{server.url}/gradio{path}").status_code == 404


@pytest.mark.parametrize(
    "data",
    [
        ["x" * 500_000, "nothing"],
        ["\x00" + "x" * 500_000],
        ["x" * 500_000, "text", 1_000_000],
        ["x" * 500_000, "text", 10, 3.5],
        ["x" * 500_000, *["y"] * 9],
        [" " * 500_000],
    ],
    ids=["output", "nul", "budget", "temperature", "too many", "blank"],
)
def test_row_3_nothing_is_kept_of_a_refused_call(server: Served, data: list[object]) -> None:
    call(server.url, *data)
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(10):
            answer = call(server.url, *data)
            assert answer.status_code == 400 or "event: error" in answer.text
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 2_000_000, "of five million characters"
    finally:
        tracemalloc.stop()
    assert not server.model.seen


def test_row_3_nothing_is_kept_of_an_answered_call_either(server: Served) -> None:
    for index in range(20):
        assert "event: complete" in call(server.url, f"say {index}", "text").text
    assert not sessions(server)
    server.model.seen.clear()


def test_row_3_a_call_that_nobody_reads_ends(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "_UNREAD_SECONDS", 0.2)
    server.model.seconds_per_token = 0.05
    begun = httpx.post(f"{server.url}/gradio_api/call/generate", json={"data": ["word " * 2000, "text", 2000]})
    assert begun.status_code == 200
    until(lambda: not sessions(server) and server.idle)  # a hundred seconds before its end
    assert httpx.get(f"{server.url}/gradio_api/call/generate/{begun.json()['event_id']}").status_code == 404


def test_row_3_a_key_has_so_many_calls_open_and_no_more(server: Served) -> None:
    most = 2 * (server.service.settings.slots + server.service.settings.queue_limit)
    with httpx.Client(base_url=f"{server.url}/gradio_api/call", timeout=60) as client:
        answers = [client.post("/generate", json={"data": [" "]}).status_code for _ in range(most + 2)]
        assert answers == [200] * most + [429] * 2
        for _, number in list(sessions(server)):
            assert "write a request first" in client.get(f"/generate/{number}").text
    assert not sessions(server)


def sessions(server: Served) -> dict[tuple[str, str], object]:
    """What the UI of this server holds of calls, by key and session."""
    pages = [each for each in gc.get_objects() if type(each) is mount.LazyUI]
    held = next(page._calls for page in pages if page._backend.service is server.service)  # type: ignore[union-attr]
    assert held is not None
    return held._sessions  # type: ignore[return-value] # what is in them is nobody's business


# Row 4: each request counts for its key


def counted(server: Served, key: str) -> float:
    samples = [sample for family in server.service.metrics.requests.collect() for sample in family.samples]
    return sum(each.value for each in samples if each.name.endswith("_total") and each.labels["key"] == key)


def test_row_4_each_call_counts_for_the_key_that_sent_it() -> None:
    with served(echo_model(), ui=True, router_api_keys=KEYS) as server:
        assert httpx.get(f"{server.url}/gradio/", headers=bearer(ALICE), timeout=60).status_code == 200
        for key in (BOB, ALICE, BOB, BOB):
            assert "complete" in call(server.url, "hello", "text", key=key).text
        assert (counted(server, "alice"), counted(server, "bob"), counted(server, "")) == (1, 3, 0)

        def through_the_queue(key: str) -> None:
            client = Client(server.url, headers=bearer(key), verbose=False, httpx_kwargs={"timeout": 60})
            for _ in range(5):
                assert client.predict("hello", "text", api_name="/generate") == "hello"
            client.close()

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(through_the_queue, (ALICE, BOB, ALICE, BOB)))
        assert (counted(server, "alice"), counted(server, "bob"), counted(server, "")) == (11, 13, 0)


def test_row_4_one_keys_rate_limit_is_not_the_others() -> None:
    with served(echo_model(), ui=True, router_api_keys=KEYS, key_requests_per_minute=2) as server:
        said = [call(server.url, "hello", "text", key=ALICE).text for _ in range(3)]
        assert ["complete" in text for text in said] == [True, True, False]
        assert "this key may send 2 requests a minute" in said[2]
        assert "complete" in call(server.url, "hello", "text", key=BOB).text
        body = {"prompt": "hello", "output": "text"}
        assert httpx.post(f"{server.url}/v1/generate", json=body, headers=bearer(ALICE)).status_code == 429
        assert httpx.post(f"{server.url}/v1/generate", json=body, headers=bearer(BOB)).status_code == 200


@pytest.mark.parametrize("wrong", [["", "text"], ["hello", "nothing"], ["hello", "text", -1], [[]], [{}] * 9])
def test_row_4_a_call_that_is_refused_counts_as_well(wrong: list[object]) -> None:
    with served(echo_model(), ui=True, router_api_keys=KEYS, key_requests_per_minute=2) as server:
        for _ in range(2):
            answer = httpx.post(f"{server.url}/gradio_api/call/generate", json={"data": wrong}, headers=bearer(ALICE))
            if answer.status_code == 200:
                event = answer.json()["event_id"]
                said = httpx.get(f"{server.url}/gradio_api/call/generate/{event}", headers=bearer(ALICE), timeout=60)
                assert "event: error" in said.text
        body = {"prompt": "hello", "output": "text"}
        assert httpx.post(f"{server.url}/v1/generate", json=body, headers=bearer(ALICE)).status_code == 429
        assert httpx.post(f"{server.url}/v1/generate", json=body, headers=bearer(BOB)).status_code == 200
        assert httpx.get(f"{server.url}/gradio/", headers=bearer(ALICE), timeout=60).status_code == 200, (
            "the page comes"
        )


def test_row_4_no_key_reads_or_ends_what_another_asked() -> None:
    with served(echo_model(), ui=True, router_api_keys=KEYS) as server:
        server.model.seconds_per_token = 0.05
        number = functions(server.url, ALICE)["generate"]
        api = f"{server.url}/gradio_api"
        body = {"data": ["word " * 400, "text", 400], "fn_index": number, "session_hash": "shared"}
        event = httpx.post(f"{api}/queue/join", json=body, headers=bearer(ALICE)).json()["event_id"]
        for path in ("/queue/data?session_hash=shared", f"/call/generate/{event}", "/call/generate/shared"):
            assert httpx.get(api + path, headers=bearer(BOB)).status_code == 404, path
        cancel = {"session_hash": "shared", "event_id": event, "fn_index": number}
        assert httpx.post(f"{api}/cancel", json=cancel, headers=bearer(BOB)).status_code == 200
        assert server.engine.free_slots == 3, "it goes on"
        assert httpx.post(f"{api}/cancel", json=cancel, headers=bearer(ALICE)).status_code == 200
        until(lambda: server.idle)
        said = httpx.get(f"{api}/queue/data?session_hash=shared", headers=bearer(ALICE)).text
        assert "process_completed" in said and "close_stream" in said
        assert httpx.get(f"{api}/info").status_code == httpx.get(f"{server.url}/config").status_code == 401


# Row 5: the log, and errors

FORGED = (
    'secret words\n{"time": "2026-01-01T00:00:00Z", "level": "info", "message": "all is well"}\r\n\x1b[31mred\x9b31m'
)


@pytest.mark.parametrize(
    "data",
    [
        [FORGED, FORGED],
        [FORGED, "text", FORGED],
        [{"path": FORGED, "meta": {"_type": "gradio.FileData"}}, "text"],
        [FORGED] * 12,
        [[FORGED]],
        [FORGED, "text", 1e308, float("nan")],
    ],
)
def test_row_5_wrong_arguments_come_back_as_our_error_without_their_text(server: Served, data: list[object]) -> None:
    answer = httpx.post(
        f"{server.url}/gradio_api/call/generate",
        content=json.dumps({"data": data}),
        headers={"content-type": "application/json"},
    )
    if answer.status_code == 200:
        answer = httpx.get(f"{server.url}/gradio_api/call/generate/{answer.json()['event_id']}")
        assert "event: error" in answer.text
    else:
        assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"
    for word in ("secret", "all is well", "red", "Traceback", "gradio.exceptions"):
        assert word not in answer.text


def test_row_5_every_line_of_the_process_is_ours(tmp_path: Path) -> None:
    with process(folder=tmp_path, ENGINE="echo", PORT="0", LOG_FORMAT="json") as running:
        url = running.ready()
        numbers = functions(url)
        for number in numbers.values():
            for data in ([FORGED], [FORGED] * 5, [FORGED, "text", 3, FORGED, 1], [], [1, 2, 3, 4, 5], [None] * 10):
                body = {"data": data, "fn_index": number, "session_hash": "s"}
                httpx.post(f"{url}/gradio_api/queue/join", json=body)
        read = httpx.get(f"{url}/gradio_api/queue/data?session_hash=s", timeout=60)
        assert "process_completed" in read.text
        for path in ("/gradio_api/call/", "/gradio/assets/", "/config/", "/config?"):
            httpx.get(url + path + quote(FORGED), timeout=60)
        httpx.post(f"{url}/gradio_api/queue/join", content=FORGED * 3, headers={"content-type": "application/json"})
        assert running.stop() == 0
    lines = [json.loads(line) for line in running.lines]
    assert {"request", "ready"} <= {line["message"] for line in lines}
    assert {"time", "level", "logger", "message"} <= set.intersection(*(set(line) for line in lines))
    assert all(line["time"] > "2026-01-01T00:00:01" for line in lines)
    assert "secret words" not in "".join(line for line in running.lines if '"path"' not in line)
    assert "\x1b" not in running.output and "\x9b" not in running.output


def test_row_5_a_bug_is_told_by_no_word_of_it(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **rest: object) -> object:
        raise ZeroDivisionError("the inside of it")

    monkeypatch.setattr(server.service, "generate", broken)
    said = call(server.url, "hello", "text").text
    assert "internal error; the server's log says more" in said
    assert "inside" not in said and "ZeroDivisionError" not in said


# The scripts around a router Space

TASK = {
    "user_task": "Prove that it is even.",
    "context": "",
    "acceptance": "A proof.",
    "extra_guidance": "",
    "difficulty": "advanced",
    "tags": "a, b",
    "model_choice": "Router-Qwen3-32B",
    "max_new_tokens": 640,
    "temperature": 0.2,
    "top_p": 0.9,
}


def test_the_first_connection_waits_while_gradio_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the client's own time-outs, of which the first is five seconds."""
    build = mount._build

    def slow(service: Any) -> Any:  # noqa: ANN401
        time.sleep(8)
        return build(service)

    monkeypatch.setattr(mount, "_build", slow)
    with served(echo_model(), ui=True) as server:
        client = Client(server.url, verbose=False)
        assert client.predict("hello", "text", api_name="/generate") == "hello"
        client.close()


@pytest.mark.parametrize("path", ["", "/", "/gradio", "/gradio/"])
def test_scripts_find_their_endpoints(server: Served, path: str) -> None:
    client = Client(server.url + path, verbose=False, httpx_kwargs={"timeout": 60})
    for name in ("/generate_router_plan_streaming", "//generate_router_plan_streaming"):
        for given, named in (((), TASK), (tuple(TASK.values()), {}), (("Prove it.",), {"max_new_tokens": 500.0})):
            text, plan, verdict, prompt = client.predict(*given, **named, api_name=name)
            assert json.loads(text) == plan and verdict == "✅ The plan is valid."
            assert f"User query:\n{given[0] if given else TASK['user_task']}" in prompt
    assert (
        "Acceptance criteria:\nA proof.\n\nDifficulty:\nadvanced\n\nTags:\na, b\n"
        in client.predict(**TASK, api_name="/generate_router_plan_streaming")[3]
    )
    for name in ("/clear_outputs", "//clear_outputs"):
        assert client.predict(api_name=name) == ("", {}, "", "")
    with pytest.raises(Exception, match="the smallest budget for a whole plan"):
        client.predict(**{**TASK, "max_new_tokens": 20}, api_name="/generate_router_plan_streaming")
    with pytest.raises(Exception, match="difficulty: Input should be 'introductory', 'intermediate' or 'advanced'"):
        client.predict(**{**TASK, "difficulty": "hard"}, api_name="/generate_router_plan_streaming")
    client.close()


def test_a_stream_gives_the_text_as_it_comes(server: Served) -> None:
    server.model.seconds_per_token = 0.02
    client = Client(server.url, verbose=False, httpx_kwargs={"timeout": 60})
    job = client.submit(*TASK.values(), api_name="/generate_router_plan_streaming")
    job.result(60)
    texts = [each[0] for each in job.outputs()]
    assert len(texts) > 2 and all(texts[-1].startswith(text) for text in texts)
    assert {each[1] == {} for each in job.outputs()[:-2]} == {True}
    client.close()


def test_many_calls_of_one_client_at_once(server: Served) -> None:
    client = Client(server.url, verbose=False, httpx_kwargs={"timeout": 60})
    for _ in range(3):
        jobs = [client.submit(f"word {index}", "text", api_name="/generate") for index in range(20)]
        assert [job.result(60) for job in jobs] == [f"word {index}" for index in range(20)]
    client.close()
    until(lambda: not sessions(server))


def test_a_call_waits_until_the_page_knows_that_its_stream_was_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told of the call before that, it would wait on the closed stream for the answer."""
    monkeypatch.setattr(calls, "_SETTLES", 600.0)
    blocks = gr.Blocks()
    with blocks:
        gr.Button().click(lambda: "said", outputs=[gr.Textbox()])

    async def run() -> None:
        ours = calls.Calls(blocks, 4)
        ours.begin("alice", "tab", blocks.fns[0], [])
        assert [each["msg"] async for each in ours.read("alice", "tab")][-1] == "close_stream"
        again = asyncio.create_task(ours.settled("alice", "tab"))
        await ours.settled("alice", "another tab")
        await ours.settled("bob", "tab")
        assert not again.done()
        again.cancel()
        await ours.close()

    asyncio.run(run())


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize("path", ["/login", "/login/", "/gradio_api/login", "/login/callback", "/logout"])
def test_row_2_a_form_of_another_page_logs_nobody_in(server: Served, method: str, path: str) -> None:
    form = {"username": "a", "password": "b"}
    answer = httpx.request(method, f"{server.url}/gradio{path}", data=form, headers={"origin": EVIL})
    assert answer.status_code in (404, 405) and "set-cookie" not in answer.headers
