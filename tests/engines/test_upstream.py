"""The engine for servers upstream, behind our own API, against one on loopback that can fail in every way."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from typing import Any

import pytest

from router_backend.checkpoints.ladder import candidates
from router_backend.engines.upstream.model import _cut, _logprob, _piece
from router_backend.engines.upstream.wire import Wire
from router_backend.errors import Overloaded, SettingsError, UpstreamError
from router_backend.settings import load_settings
from router_backend.types import GenerateRequest, SamplingParams
from tests.fakes.running import until
from tests.fakes.upstream import KEY, fake_upstream, model_of, plan, serving, valid

PLAN: dict[str, Any] = {
    "route_plan": ["/browse(no such tool)", "/math(prove that it converges)", "/code(check it in Python)"],
    "route_rationale": "The proof comes first, so that the code has something to check.",
    "expected_artifacts": ["A proof", "A script"],
    "thinking_outline": ["State the claim", "2) Prove it", "Check it"],
    "handoff_plan": "/math -> /code -> router QA. The router compares both.",
    "todo_list": ["- [ ] /math: write the proof down", "/general-search: look around"],
    "difficulty": "Advanced",
    "tags": ["Numerical Analysis", "proofs"],
    "acceptance_criteria": ["The proof has no gap", "The script ends without an error"],
    "metrics": {"primary": ["error below 1e-9"], "secondary": ["seconds it took"], "guidance": "Take doubles."},
}


def attempts(client: Any) -> list[tuple[str, str]]:  # noqa: ANN401
    return [(each["outcome"], each["reason"]) for each in client.get("/health").json()["attempts"]]


def test_a_plan_is_written_in_stages_by_the_servers_own_tokens() -> None:
    with fake_upstream() as server, serving(server) as client:
        for _ in range(2):
            assert valid(plan(client))["report"]["budget"]["drafted"] is False
        calls = server.of("/v1/completions")
        assert len({call.headers["x-session-id"] for call in calls}) == 2, "one for each plan"
        assert all(isinstance(call.body["prompt"], list) for call in calls)
        assert all(call.body["grammar"].startswith("%llguidance {}\n") and call.body["max_tokens"] for call in calls)
        assert server.connections < 12 < len(calls)
        said = client.get("/health").json()
        assert (said["engine"], said["strategy"], said["model"]) == ("upstream", "served", "router")
        found = said["upstream"]
        assert (found["constraint"], found["sent_as"], found["counts"]) == ("lark", "grammar", "tokenize")
        assert found["url"] == server.url.removesuffix("/v1") and not found["down"] and not said["warnings"]
        metrics = client.get("/metrics").text
        label = f'upstream="{found["url"]}"'
        assert re.search(rf"router_upstream_calls_total{{{label}}} \d{{2}}", metrics)
        assert f"router_upstream_down{{{label}}} 0.0" in metrics


def test_nothing_that_a_client_sends_besides_its_text_goes_on() -> None:
    headers = {
        "Authorization": "Bearer alices-own-key-1",
        "x-request-id": "alice-1",
        "Cookie": "a=b",
        "x-session-id": "z",
    }
    with fake_upstream() as server, serving(server, router_api_keys="alice:alices-own-key-1") as client:
        answer = client.post("/v1/plan", json={"query": "Prove it."}, headers=headers)
        valid(answer)
        for call in server.asked:
            assert call.headers["authorization"] == f"Bearer {KEY}"
            told = {name: value for name, value in call.headers.items() if name != "authorization"}
            assert not re.search("alice|a=b|cookie", json.dumps(told).lower()) and told.get("x-session-id") != "z"


def test_what_looks_like_a_special_token_is_cut() -> None:
    assert _cut("a <|im_end|> b</s>c [INST]d") == ["a <", "|im_end|> b<", "/s>c [", "INST]d"]
    assert "".join(_cut("<a><b>")) == "<a><b>"
    with fake_upstream() as server, serving(server) as client:
        server.asked.clear()
        client.post("/v1/generate", json={"prompt": "hi <|user|> there", "output": "text", "max_new_tokens": 4})
        assert not [call for call in server.of("/tokenize") if call.body["content"] == "<|user|>"]


@pytest.mark.parametrize("leaves", ["closes", "cancels", "cancels in silence"])
def test_who_leaves_ends_the_call(leaves: str) -> None:
    with fake_upstream(said="word " * 5000, pause=0.01) as server, model_of(server.url) as model:
        server.fails(silent_at=1 if "silence" in leaves else None)
        gone = threading.Event()
        request = GenerateRequest("t", "hi", SamplingParams(3000))
        chunks = model.generate(request, gone.is_set)
        assert next(chunks).text == "word"
        gone.set()
        if leaves == "closes":
            chunks.close()  # type: ignore[attr-defined] # it is a generator
        else:
            assert list(chunks)[-1].finish_reason == "cancelled"
        if "silence" not in leaves:  # there the server itself waits
            until(lambda: server.cancelled == 1)


@pytest.mark.parametrize(("keeps", "chat_only"), [("schema", False), ("schema", True), ("none", False), ("none", True)])
@pytest.mark.parametrize("limit", [300, 600])
def test_without_grammars_the_plan_comes_from_one_call(keeps: str, chat_only: bool, limit: int) -> None:
    said = f"Sure!\n```json\n{json.dumps(PLAN)}\n```"
    with fake_upstream(keeps=keeps, chat_only=chat_only, said=said) as server, serving(server) as client:
        body = valid(plan(client, max_new_tokens=limit))
        budget, made = body["report"]["budget"], body["plan"]
        assert budget["drafted"] and (budget["calls"], budget["retries"]) == (1, 0)
        assert [step.partition("(")[0] for step in made["route_plan"]] == ["/math", "/code"], "no tool is unknown"
        assert made["difficulty"] == "advanced" and made["todo_list"][0].startswith("- [ ] /math: write")
        assert made["todo_list"][-1].startswith("- [ ] router QA: The proof has no gap")
        if limit == 600:
            assert made["tags"] == ["numerical-analysis", "proofs"]
            assert made["handoff_plan"] == "/math -> /code -> router QA. The router compares both"
            assert made["thinking_outline"] == ["1. State the claim", "2. Prove it", "3. Check it"]
            assert made["metrics"] == PLAN["metrics"]
        health = client.get("/health").json()
        assert health["upstream"]["constraint"] == keeps and "one call" in health["warnings"][0]
        assert health["upstream"]["counts"] == ("usage" if chat_only else "tokenize")
        streamed = [call for call in server.asked if call.body.get("stream")]
        assert ["response_format" in call.body for call in streamed] == [keeps == "schema"]


def test_what_a_draft_lacks_is_asked_for_again_and_never_made_up() -> None:
    half = {key: value for key, value in PLAN.items() if key not in ("difficulty", "route_plan")}
    with fake_upstream(keeps="none", said=json.dumps(half)) as server, serving(server) as client:
        answer = plan(client)
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "invalid_plan")
        assert "route_plan" in answer.json()["error"]["message"]
        assert len([call for call in server.asked if call.body.get("stream")]) == 2
        spoken = iter([json.dumps(half), json.dumps(PLAN)])
        server.answer = lambda body, prompt: next(spoken) if body.get("stream") else "x"  # type: ignore[method-assign]
        budget = valid(plan(client))["report"]["budget"]
        assert (budget["calls"], budget["retries"]) == (2, 1)


@pytest.mark.parametrize(
    "said", ["", "no", "{}", "[1]", '{"route_plan": "x"}', json.dumps(PLAN)[:200], '{"a": {"b": 1}}']
)
def test_no_plan_is_a_502(said: str) -> None:
    with fake_upstream(keeps="none", said=said or " ") as server, serving(server) as client:
        answer = plan(client)
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "invalid_plan"), answer.text


def test_a_draft_of_odd_values_is_valid_or_an_error() -> None:
    odd: tuple[Any, ...] = (
        None,
        7,
        "",
        [],
        [None, 3, " "],
        ["x" * 4000],
        "y " * 3000,
        ['"\\', "\n\t\x00"],
        {"primary": 3},
    )
    valid_ones = 0
    with fake_upstream(keeps="none") as server, serving(server) as client:
        for key, value in itertools.product(PLAN, odd):
            server.said = json.dumps({**PLAN, key: value})
            answer = plan(client, max_new_tokens=400)
            if answer.status_code == 200:
                valid(answer)
                valid_ones += 1
            else:
                assert answer.json()["error"]["code"] == "invalid_plan", answer.text
    assert 20 < valid_ones < len(PLAN) * len(odd)


# Faults


@pytest.mark.parametrize(
    ("faults", "status", "code", "words"),
    [
        ({"silent_at": 1}, 503, "upstream_down", "said nothing for 3 seconds"),
        ({"silent_at": 0}, 503, "upstream_down", "said nothing for 3 seconds"),
        ({"lies": True}, 502, "upstream_failed", "what the grammar does not allow"),
        ({"html": True}, 502, "upstream_failed", "HTML"),
        ({"cut": 1}, 502, "upstream_failed", "broke off"),
        ({"error": True}, 502, "upstream_failed", "out of memory"),
        ({"status": 500}, 502, "upstream_failed", "answers 500: no, ***"),
        ({"status": 503}, 503, "upstream_down", "answers 503"),
        ({"status": 400}, 502, "upstream_failed", "answers 400"),
        ({"status": 401}, 502, "upstream_failed", "Set UPSTREAM_API_KEY"),
        ({"status": 302, "headers": {"Location": "/login"}}, 502, "upstream_failed", "redirects"),
        ({"status": 429, "headers": {"Retry-After": "90"}}, 429, "overloaded", "too much to do"),
        ({"model": "other"}, 502, "upstream_failed", "another model: 'other'"),
        ({"endless": True}, 502, "upstream_failed", "past the limit"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else None,
)
def test_faults_are_clear_answers_and_no_broken_plan(
    faults: dict[str, Any], status: int, code: str, words: str
) -> None:
    patience = 3 if "silent_at" in faults else 60
    with fake_upstream(said="word " * 200) as server, serving(server, upstream_timeout=patience) as client:
        server.fails(**faults)
        answer = plan(client)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
        assert words in answer.json()["error"]["message"] and KEY not in answer.text
        if status in (429, 503):
            assert int(answer.headers["retry-after"]) >= (90 if status == 429 else 1)
        failed = client.get("/health").json()["upstream"]
        assert sum(failed["failures"].values()) == 1


@pytest.mark.parametrize(
    "faults",
    [{"status": 429, "headers": {"Retry-After": "0.01"}}, {"status": 503}, {"status": 500}, {"cut": 0}],
    ids=str,
)
def test_before_the_first_token_a_call_is_sent_again(faults: dict[str, Any]) -> None:
    with fake_upstream() as server, serving(server) as client:
        server.fails(times=1, **faults)
        valid(plan(client))
        assert client.get("/health").json()["upstream"]["retries"] == 1


def test_after_it_none_is() -> None:
    with fake_upstream() as server, serving(server) as client:
        server.fails(times=1, cut=1)
        assert plan(client).status_code == 502
        assert client.get("/health").json()["upstream"]["retries"] == 0
        valid(plan(client))


@pytest.mark.parametrize(
    ("settings", "named", "words"),
    [
        ({"off": 3}, "", "is not its model's"),
        ({}, "#gone", "it does not serve gone: it has router"),
        ({"models": ["a", "b"]}, "", "it serves 2 models (a, b): write which after the URL"),
        ({"models": []}, "", "it serves 0 models (none)"),
        ({"faults": None}, "", "HTML"),
    ],
)
def test_what_is_not_what_it_should_be_leads_to_the_next_candidate(
    settings: dict[str, Any], named: str, words: str
) -> None:
    with fake_upstream(**{name: value for name, value in settings.items() if name != "faults"}) as wrong:
        if "faults" in settings:
            wrong.fails(html=True)
        with fake_upstream(models=["good", "b"]) as right, serving(wrong.url + named, f"{right.url}#good") as client:
            (first, reason), (second, _) = attempts(client)
            assert (first, second) == ("failed", "loaded") and words in reason
            assert client.get("/health").json()["model"] == "good"
            valid(plan(client))


def test_nobody_there_and_a_wrong_key_are_told() -> None:
    with fake_upstream() as gone:
        pass
    with fake_upstream() as server, serving(gone, server, upstream_api_key="wrong", ready=False) as client:
        until(lambda: client.get("/health").json()["status"] == "failed")
        (_, unreachable), (_, refused) = attempts(client)
        assert "cannot be reached" in unreachable and "Set UPSTREAM_API_KEY" in refused and "wrong" not in refused


def test_one_that_stays_down_is_left_alone_and_the_next_candidate_serves() -> None:
    with fake_upstream(models=["first"]) as first, fake_upstream() as second, serving(first, second) as client:
        valid(plan(client))
        first.close()
        codes = [plan(client).json().get("error", {}).get("code") for _ in range(3)]
        assert codes == ["upstream_down"] * 3
        until(lambda: client.get("/health").json()["model"] == "router")
        valid(plan(client))
        assert 'router_engine_restarts_total{cause="dead"} 1.0' in client.get("/metrics").text


def test_a_restart_is_one_failed_request_at_most() -> None:
    with fake_upstream() as before, serving(before) as client:
        valid(plan(client))
        before.close()
        with fake_upstream(before.port) as after:
            after.ids(" ".join(before.words))
            after.words, after._ids = before.words, before._ids
            valid(plan(client))


def test_a_server_that_comes_back_as_another_model_is_no_plan() -> None:
    with fake_upstream() as before, serving(before) as client:
        before.close()
        with fake_upstream(before.port) as after:
            after.words, after._ids = before.words, before._ids
            after.fails(model="impostor")
            answer = plan(client)
            assert answer.status_code == 502 and "impostor" in answer.json()["error"]["message"]


def test_several_at_once_share_what_is_open() -> None:
    with fake_upstream() as server, serving(server) as client:
        answers: list[Any] = []
        threads = [threading.Thread(target=lambda: answers.append(plan(client))) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len([valid(each) for each in answers]) == 6
        assert {call.body["id_slot"] for call in server.of("/v1/completions")} == {0, 1}


def test_urls_are_candidates_and_hold_no_password() -> None:
    found = candidates(load_settings(model_repo="http://a:1/v1#m,https://b/v1", model_fallbacks="embedded"))
    assert [(each.name, each.kind) for each in found][:2] == [
        ("http://a:1/v1#m", "upstream"),
        ("https://b/v1", "upstream"),
    ]
    with pytest.raises(SettingsError, match="UPSTREAM_API_KEY") as caught:
        load_settings(model_repo="http://user:hunter22@a/v1")  # pragma: allowlist secret
    assert "hunter22" not in str(caught.value)


# What a server may send that is not as it should be


def event(text: str | None, reason: str | None = None) -> bytes:
    return b"data: " + json.dumps({"choices": [{"text": text, "finish_reason": reason}]}).encode() + b"\n\n"


@contextlib.contextmanager
def wired(
    content: bytes, head: bytes = b"200 OK\r\nContent-Type: text/event-stream", *, whole: bool = True
) -> Iterator[Wire]:
    """A wire to who answers everything with this; without `whole`, its last chunk never comes."""
    listening = socket.create_server(("127.0.0.1", 0))
    end = b"0\r\n\r\n" if whole else b""
    said = b"HTTP/1.1 %s\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n%s" % (head, len(content), content, end)

    def answer() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(said)

    threading.Thread(target=answer, daemon=True).start()
    wire = Wire(f"http://127.0.0.1:{listening.getsockname()[1]}/v1", None, 3)
    try:
        yield wire
    finally:
        wire.close()
        listening.close()


def texts(wire: Wire) -> str:
    events = wire.stream("v1/completions", {}, {}, lambda: False)
    return "".join(each["choices"][0]["text"] for each in events if each)


def test_a_whole_answer_is_no_failure_however_its_connection_ends() -> None:
    with wired(event("a") + event("b", "stop") + b"data: [DONE]\n\n", whole=False) as wire:
        assert [texts(wire) for _ in range(6)] == ["ab"] * 6
        until(lambda: not asyncio.all_tasks(wire._loop))
        assert not wire.failures and not wire.breaker.failures


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + event("a") + event("b", "stop"),
        (event("a") + event("b", "stop")).rstrip(b"\n"),
        (b": hello\n\n" + event("a") + event("b", "stop")).replace(b"\n", b"\r\n"),
    ],
    ids=["a mark", "no end", "CRLF and a comment"],
)
def test_no_event_of_a_stream_is_lost(content: bytes) -> None:
    with wired(content) as wire:
        assert texts(wire) == "ab"


def test_what_is_no_stream_is_told_in_the_servers_words() -> None:
    with wired(b'{"error": {"message": "out of memory"}}') as wire, pytest.raises(UpstreamError, match="out of memory"):
        texts(wire)
    packed = b"200 OK\r\nContent-Encoding: gzip\r\nContent-Type: application/json"
    with wired(b"no gzip at all", packed) as wire, pytest.raises(UpstreamError, match="cannot be unpacked"):
        wire.ask("tokenize", {})
    with wired(b"[" * 100_000, b"400 No") as wire, pytest.raises(UpstreamError, match="answers 400"):
        wire.ask("tokenize", {})


def test_a_retry_after_may_be_a_date() -> None:
    date = formatdate(time.time() + 90, usegmt=True).encode()
    with wired(b"", b"429 No\r\nRetry-After: " + date) as wire, pytest.raises(Overloaded) as caught:
        wire.ask("tokenize", {})
    assert 80 < (caught.value.retry_after or 0) <= 90 and wire.retries == 0


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({"choices": []}, ""),
        ({"choices": [{"delta": {"content": None}, "finish_reason": ""}]}, ""),
        ({"choices": [{"text": "a", "finish_reason": "eos_token"}]}, "a"),
        ({"choices": [{"text": "a", "finish_reason": "stop_sequence"}]}, "a"),
        ({"choices": [{"text": "a", "finish_reason": ["stop"]}]}, None),
        ({"choices": [{"text": "a\ud83d", "finish_reason": None}]}, None),
        ({"choices": [{"delta": {"content": [{"text": "a"}]}}]}, None),
        ({"choices": None}, None),
    ],
)
def test_an_event_is_a_text_or_an_error(said: dict[str, Any], text: str | None) -> None:
    if text is None:
        with pytest.raises(UpstreamError):
            _piece(said)
    else:
        assert _piece(said)[0].text == text


def test_a_server_that_no_longer_counts_is_a_502(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_upstream() as server, serving(server) as client:
        answers = dict.fromkeys(("tokens", "error"), "is loading")
        handler: Any = server._server.RequestHandlerClass
        monkeypatch.setattr(handler, "_say", lambda self, *_, say=handler._say: say(self, answers))
        answer = plan(client)
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_failed"), answer.text
        assert client.get("/health").json()["upstream"]["failures"] == {"upstream_failed": 1}


@pytest.mark.parametrize(
    "usage", ["x", [1], {"prompt_tokens": None}, {"completion_tokens": "1"}, {"prompt_tokens": -3}]
)
def test_odd_usage_fails_no_answer(usage: object, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_upstream() as server, serving(server) as client:
        handler: Any = server._server.RequestHandlerClass
        streams = handler._stream
        monkeypatch.setattr(handler, "_stream", lambda self, a, b, _, *c, **d: streams(self, a, b, usage, *c, **d))
        valid(plan(client))


def test_a_server_that_falls_over_what_it_does_not_know_is_asked_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_upstream(keeps="schema", said=json.dumps(PLAN)) as server:
        handler: Any = server._server.RequestHandlerClass
        complete = handler._complete

        def falls(self: Any, body: dict[str, Any]) -> None:  # noqa: ANN401
            if body.keys() & {"structured_outputs", "grammar", "regex"}:
                self._say({"error": {"message": "unexpected keyword"}}, 500)
            else:
                complete(self, body)

        monkeypatch.setattr(handler, "_complete", falls)
        with serving(server) as client:
            assert client.get("/health").json()["upstream"]["constraint"] == "schema"
            valid(plan(client))


def test_who_restarts_processes_is_not_told_to_while_a_server_elsewhere_is_away() -> None:
    with fake_upstream() as server, serving(server) as client:
        server.close()
        for _ in range(3):
            plan(client)
        until(lambda: client.get("/health").json()["status"] == "failed")
        assert (client.get("/livez").status_code, client.get("/readyz").status_code) == (200, 503)


@pytest.mark.parametrize(("sent", "read"), [(None, -9999.0), (-20000.0, -9999.0), (-0.5, -0.5), (0.0, 0.0)])
def test_a_probability_of_nothing_is_not_read_as_certainty(sent: float | None, read: float) -> None:
    assert _logprob({"token": "a", "bytes": [97], "logprob": sent}).logprob == read
