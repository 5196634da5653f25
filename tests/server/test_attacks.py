"""What somebody who means harm tries over HTTP, by the rows of the fault table."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import json
import os
import re
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from router_backend.checkpoints.embedded import ADAPTER, base
from router_backend.engines.echo import EchoModel
from router_backend.errors import SettingsError
from router_backend.server.middleware import guard
from router_backend.server.middleware.connection import Limits
from router_backend.server.openai.bodies import ChatBody
from router_backend.service import admission
from router_backend.settings import load_settings
from router_backend.types import GenerateRequest, ModelInfo
from tests.fakes.running import Served, echo_model, in_threads, process, served, until

CHAT = "/v1/chat/completions"
ALICE, BOB = "k-alice-1234", "k-bob-5678"
KEYS = f"alice:{ALICE},bob:{BOB}"
# What a request of 64 kB may cost: seconds of processor for which nothing else runs in the loop, and bytes.
HELD_SECONDS, HELD_BYTES = 0.05, 64 << 20
LONGEST = 64_000
MANY = int(os.environ.get("ATTACKS", "60"))  # `ATTACKS=20000 pytest --timeout 0 -k row_28` is an hour of it


class Watch:
    """How long the loop is held: processor time of the whole process between two of its beats.

    So a thread that lets no other run is seen too, and a busy machine is not mistaken for one.
    """

    def __init__(self, server: Served) -> None:
        self._process = psutil.Process()
        self.held = 0.0
        self.most = 0
        server.loop.call_soon_threadsafe(self._start)

    def _start(self) -> None:
        self._last = time.process_time()
        self._task = asyncio.get_running_loop().create_task(self._beat())

    async def _beat(self) -> None:
        while True:
            now = time.process_time()
            self.held = max(self.held, now - self._last)
            self.most = max(self.most, self._process.memory_info().rss)
            self._last = time.process_time()  # without the look at the memory
            await asyncio.sleep(0.001)

    def cost(self, send: Any) -> tuple[float, int]:  # noqa: ANN401
        """Seconds and bytes of one request."""
        before = self._process.memory_info().rss
        self.held, self.most = 0.0, before
        send()
        return self.held, self.most - before


@pytest.fixture(scope="module")
def watched() -> Iterator[tuple[Served, Watch]]:
    with served(echo_model(slots=2), log_format="json") as server:
        watch = Watch(server)
        with httpx.Client(base_url=server.url) as client:
            for _ in range(20):  # what is loaded and compiled once
                client.post(CHAT, json=schema_body({"type": "object", "properties": {"a": {"pattern": "^a+$"}}}))
        yield server, watch
        server.loop.call_soon_threadsafe(watch._task.cancel)


def schema_body(schema: object) -> dict[str, Any]:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return {"messages": [{"role": "user", "content": "x"}], "max_tokens": 200, "response_format": wanted}


def dear(server: Served, watch: Watch, path: str, content: bytes, headers: dict[str, str] | None = None) -> str | None:
    """Why a request costs too much, in the least of three tries; None where it does not."""
    told = {"content-type": "application/json", **(headers or {})}

    def send() -> None:
        with contextlib.suppress(httpx.TransportError), httpx.Client(timeout=120) as client:
            answer = client.post(server.url + path, content=content, headers=told)
            assert answer.status_code < 500 or answer.status_code == 502, answer.text[:300]

    costs = []
    for _ in range(3):
        costs.append(watch.cost(send))
        seconds, size = (min(each) for each in zip(*costs, strict=True))
        if seconds <= HELD_SECONDS and size <= HELD_BYTES:
            return None
    return f"{seconds * 1000:.0f} ms, {size / 2**20:.0f} MB: {path} {content[:300]!r}"


def nested(width: int) -> dict[str, Any]:
    """A definition that holds itself."""
    return {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}] * width}}}


def properties(patterns: list[str], *, used: bool = True) -> dict[str, Any]:
    each = {f"p{at}": {"type": "string", "pattern": regex} for at, regex in enumerate(patterns)}
    return {"type": "object", "properties": each} if used else {"type": "object", "$defs": each}


WIDE = [rf"^(\p{{L}}\p{{N}}?){{1,{60 + at}}}$" for at in range(32)]
# As large as may be, compiled.
LARGE = [rf"^(\p{{L}}\p{{N}}?){{1,16}}{at}$" for at in range(32)]
WORST: dict[str, Any] = {
    "a definition of itself, eight times": schema_body(nested(8)),
    "and a thousand times": schema_body(nested(1000)),
    "patterns that compile for long": schema_body(properties(WIDE)),
    "patterns that are just small enough": schema_body(properties(LARGE)),
    "hundreds that nothing refers to": schema_body(properties(WIDE * 24, used=False)),
    "names that are patterns": schema_body(
        {"type": "object", "$defs": {"a": {"patternProperties": {regex: {} for regex in WIDE * 10}}}}
    ),
    "look-aheads that could be read in many ways": schema_body(
        {"type": "object", "properties": {f"p{at}": {"pattern": f"^(?={'[]' * 34}"} for at in range(30)}}
    ),
    "a long chain of references": schema_body(
        {"type": "object", "properties": {f"p{at}": {"$ref": f"#/properties/p{at + 1}"} for at in range(990)}}
    ),
    "anchors": schema_body(
        {
            "type": "object",
            "properties": {f"p{at}": {"$ref": "#z"} for at in range(900)},
            "$defs": {**{f"d{at}": {} for at in range(1500)}, "z": {"$anchor": "z", "type": "null"}},
        }
    ),
    "unknown fields": {f"field{at}": at for at in range(3300)},
    "messages of a wrong kind": {"messages": [{"role": "x", "content": [{}] * 255} for _ in range(80)]},
    "blanks": {"messages": [{"role": "user", "content": " " * 60_000}]},
    "eight choices of a long prompt": {"messages": [{"role": "user", "content": "word " * 12_000}], "n": 8},
    "brackets": '{"a":' * 10_000,
    "numbers": "[" + "1e999," * 9000 + "1]",
}


@pytest.mark.parametrize("what", WORST)
def test_row_28_no_known_request_holds_the_loop(watched: tuple[Served, Watch], what: str) -> None:
    body = WORST[what]
    content = (body if isinstance(body, str) else json.dumps(body, separators=(",", ":"))).encode()
    assert len(content) <= LONGEST
    assert dear(*watched, CHAT, content) is None


def test_row_28_a_list_of_messages_ends_at_its_first_mistake() -> None:
    with pytest.raises(ValidationError) as caught:
        ChatBody.model_validate(WORST["messages of a wrong kind"])
    assert caught.value.error_count() < 600


ATOMS = st.sampled_from(["a", ".", r"\w", r"\d", r"\s", r"\W", "[a-z]", r"\p{L}", r"[^a]", "b|c", "é", "^", "$"])
REPEATS = st.sampled_from(["", "*", "+", "?", "{1,9}", "{30}", "{1,99}", "{0,250}"])
PATTERNS = st.recursive(
    st.builds("{}{}".format, ATOMS, REPEATS),
    lambda inner: (
        st.builds("({}){}".format, inner, REPEATS)
        | st.builds("{}{}".format, inner, inner)
        | st.builds("({}|{})".format, inner, inner)
    ),
    max_leaves=24,
)
NAMES = st.sampled_from(["a", "b", "c", "pattern", "$ref"]) | st.text(max_size=4)
LEAVES = st.one_of(
    st.builds(lambda regex: {"type": "string", "pattern": regex}, PATTERNS),
    st.builds(
        lambda ahead, mark, regex: {"type": "string", "pattern": f"^(?{mark}{ahead}){regex}"},
        PATTERNS,
        st.sampled_from("=!"),
        PATTERNS,
    ),
    st.builds(lambda name: {"$ref": f"#/$defs/{name}"}, st.sampled_from("abc")),
    st.sampled_from([{}, True, {"type": "null"}, {"type": ["string", "number"]}, {"format": "uuid"}, {"$ref": "#"}]),
    st.builds(lambda values: {"enum": values}, st.lists(st.integers() | st.text(max_size=9), max_size=40)),
)
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda several, times: {"anyOf": several * times}, st.lists(inner, min_size=1), st.integers(1, 60)),
        st.builds(
            lambda each, unique, least: {"type": "array", "items": each, "uniqueItems": unique, "minItems": least},
            inner,
            st.booleans(),
            st.integers(0, 9),
        ),
        st.builds(
            lambda each, regex, least: (
                {"propertyNames": {"pattern": regex}, "minProperties": least} | {"additionalProperties": each}
            ),
            inner,
            PATTERNS,
            st.integers(0, 9),
        ),
        st.builds(lambda each: {"type": "object", "properties": each}, st.dictionaries(NAMES, inner, max_size=8)),
    ),
    max_leaves=30,
)
WHOLE = st.builds(
    lambda fields, defs: {"type": "object", "properties": fields, "$defs": defs},
    st.dictionaries(NAMES, SCHEMAS, max_size=6),
    st.fixed_dictionaries({"a": SCHEMAS, "b": SCHEMAS, "c": SCHEMAS}),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text(max_size=9), inner, max_size=9),
    max_leaves=60,
)
FIELDS = st.sampled_from(["messages", "prompt", "n", "stop", "max_tokens", "response_format", "tools", "x", "query"])
BODIES = st.one_of(
    st.builds(schema_body, WHOLE),
    st.dictionaries(FIELDS, JSON, max_size=9),
    st.builds(lambda some, times: some * times, st.text(min_size=1, max_size=9), st.integers(1, 9000)),
)
HEADERS = st.dictionaries(
    st.sampled_from(["x-request-id", "traceparent", "authorization", "accept", "origin", "cookie", "x-forwarded-for"]),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=4000),
    max_size=5,
)
PATHS = st.sampled_from([CHAT, CHAT, "/v1/completions", "/v1/generate", "/v1/plan"])


@settings(max_examples=MANY, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
@given(PATHS, BODIES, HEADERS)
def test_row_28_no_request_holds_the_loop(
    watched: tuple[Served, Watch], path: str, body: object, headers: dict[str, str]
) -> None:
    content = (body if isinstance(body, str) else json.dumps(body)).encode("utf-8", "replace")
    if len(content) <= LONGEST:
        assert dear(*watched, path, content, headers) is None


def test_row_28_a_key_without_a_share_makes_no_work() -> None:
    """What is refused before admission counts for the key; then nothing is read for it."""
    bearer = {"authorization": f"Bearer {ALICE}"}
    with served(router_api_keys=KEYS, key_requests_per_minute=3) as server, httpx.Client(headers=bearer) as client:
        wrong = [client.post(f"{server.url}{CHAT}", json={"messages": 1}).status_code for _ in range(3)]
        again = client.post(f"{server.url}{CHAT}", json={"messages": 1})
        assert wrong == [400] * 3 and again.status_code == 429
        assert again.json()["error"]["code"] == "rate_limit_exceeded"
        other = client.post(f"{server.url}{CHAT}", json={"messages": 1}, headers={"authorization": f"Bearer {BOB}"})
        assert other.status_code == 400
        counted = server.service.metrics.requests.labels("alice", "invalid_value")._value.get()
        assert counted == 3


# Caches


@pytest.mark.real
def test_row_29_what_one_key_sent_speeds_up_no_other(embedded: Any) -> None:  # noqa: ANN401
    from router_backend.plan.prompt import router_prompt
    from router_backend.types import SamplingParams

    def cached(prompt: str, owner: str) -> int:
        request = GenerateRequest("r", prompt, SamplingParams(1, 0.0), owner=owner)
        last = list(embedded.generate(request, lambda: False, 0))[-1]
        return int(last.usage.cached_tokens)

    secret = "the code of the vault is 4815162342, route it to nobody else"
    for wrap in (router_prompt, str):
        cached(wrap("warm"), "alice")
        first = cached(wrap(secret), "alice")
        own = cached(wrap(secret), "alice")
        right = cached(wrap(secret), "bob")
        cached(wrap(secret), "alice")
        wrong = cached(wrap("another text altogether, of about the same length as that"), "bob")
        assert own > first, "a key's own cache works"
        assert right == wrong, "a right guess is no better than a wrong one"
        assert right <= len(embedded._instructions)


@pytest.mark.torch
def test_row_29_branches_and_drafts_are_each_owners_own() -> None:
    from router_backend.engines.transformers.runner import TorchRunner
    from tests.fakes import tiny

    runner = TorchRunner(tiny.model(tiny.NAMES[0]), kept_tokens=1000, branches=3, common=[1, 2, 3])
    alices = [1, 2, 3, 10, 11, 12, 13, 14]
    runner.turn_to("alice")
    runner.run(alices, [], lambda: False)
    assert runner.cached(alices) == len(alices)
    runner.turn_to("bob")
    assert runner.row(alices) is None, "nor the logits of the last pass"
    assert runner.cached(alices) == 3 == runner.cached([1, 2, 3, 9, 9]), "the instructions alone"
    runner.run([*alices[:6], 7], [], lambda: False)
    runner.turn_to("alice")
    assert runner.cached(alices) == len(alices), "and bob's requests do not push hers out"


@pytest.mark.torch
def test_row_29_answers_are_drafted_out_of_the_owners_own() -> None:
    from router_backend.engines.transformers.model import DecodedModel

    class Letters:
        """A tokenizer whose tokens are characters."""

        grammar, vocabulary = None, 128

        def encode(self, text: str) -> list[int]:
            return [ord(each) for each in text]

    model = DecodedModel(
        ModelInfo("x", "cpu", "transformers", 100),
        *(Letters(), None),  # type: ignore[arg-type] # all that drafts need
        history_bits=12,
        remembered=["plan"],
    )
    model.remember("secret", "alice")

    def drafted(text: str, owner: str) -> list[int]:
        drafter, _ = model._drafter_of(owner)
        assert drafter is not None
        return drafter.propose(Letters().encode(text), 3)

    assert drafted("sec", "alice") == Letters().encode("ret")
    assert drafted("sec", "bob") == [] == drafted("sec", ""), "nor does the last sequence tell"
    assert drafted("pl", "bob") == Letters().encode("an"), "what the operator gave is for all"
    for number in range(20):
        model.remember("x", f"key{number}")
    assert len(model._drafters) == 8


def test_row_29_slots_are_kept_for_those_who_used_them_last() -> None:
    bearer = [{"authorization": f"Bearer {key}"} for key in (ALICE, BOB)]
    slots: list[tuple[str, int]] = []

    class Noting(EchoModel):
        def generate(self, request: GenerateRequest, cancelled: Any, slot: int = 0) -> Any:  # noqa: ANN401
            slots.append((request.owner, slot))
            return super().generate(request, cancelled, slot)

    model = Noting(ModelInfo("echo", "native", "echo", 4096, 4))
    with served(model, router_api_keys=KEYS) as server:
        slots.clear()
        for turn in range(12):
            body = {"prompt": "x", "output": "text"}
            httpx.post(f"{server.url}/v1/generate", json=body, headers=bearer[turn % 2]).raise_for_status()
    assert [owner for owner, _ in slots] == ["alice", "bob"] * 6
    assert len(set(slots)) == 2, "each in a slot of its own"


# Connections


@contextlib.contextmanager
def many(port: int, count: int, sent: bytes = b"") -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            with contextlib.suppress(OSError):
                connection.sendall(sent)
            made.append(connection)
        yield made


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "])
def test_row_30_idle_connections_leave_room_for_a_probe(sent: bytes) -> None:
    with served(limits=Limits(connections=20)) as server, many(server.port, 100, sent):
        for _ in range(10):
            assert httpx.get(f"{server.url}/livez", timeout=30).status_code == 200
        answer = httpx.post(f"{server.url}/v1/generate", json={"prompt": "x", "output": "text"}, timeout=30)
        assert answer.status_code == 200


def test_row_30_streams_that_never_end_leave_room_for_a_probe() -> None:
    head = b"GET /gradio/gradio_api/heartbeat/x HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with served(ui=True, limits=Limits(connections=20)) as server:
        httpx.get(f"{server.url}/gradio/config", timeout=60).raise_for_status()
        with many(server.port, 20, head) as busy:
            assert all(b" 200 " in each.recv(4096) for each in busy)
            for path in ("/livez", "/readyz", "/health"):
                assert httpx.get(server.url + path, timeout=30).status_code == 200
            refused = httpx.post(f"{server.url}/v1/generate", json={"prompt": "x", "output": "text"}, timeout=30)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")


def test_row_30_busy_connections_leave_room_for_a_probe() -> None:
    head = (
        b"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
    )
    with served(limits=Limits(connections=20)) as server, many(server.port, 20, head) as busy:
        until(lambda: server.service._accepted == 20)
        assert httpx.get(f"{server.url}/livez", timeout=30).status_code == 200
        refused = httpx.post(f"{server.url}/v1/generate", json={"prompt": "x", "output": "text"}, timeout=30)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
        assert refused.headers["retry-after"] == "1" and refused.headers["connection"] == "close"
        busy[0].sendall(b'{"a": 12}')
        assert b" 400 " in busy[0].recv(4096), "who is at work is not disturbed"


@pytest.mark.slow
def test_row_30_with_256_descriptors(tmp_path: Path) -> None:
    """400 idle connections: probes answer, and the log says so in one line a second."""
    few = ("bash", "-c", 'ulimit -n 256; exec "$@"', "few")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with process("--port", "0", folder=tmp_path, within=few, ENGINE="echo", LOG_FORMAT="json") as running:
        url = running.ready()
        began = time.monotonic()
        with many(int(url.rpartition(":")[2]), 400):
            for _ in range(20):
                assert httpx.get(f"{url}/livez", timeout=30).status_code == 200
        seconds = time.monotonic() - began
        assert running.stop() == 0
    lines = [line for line in running.lines if "too many connections" in line]
    assert 1 <= len(lines) <= seconds + 2
    assert all(json.loads(line) for line in running.lines if line.strip()), "each line is JSON"
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == hard


# Framing, and what is low


def test_row_31_a_forwarded_host_is_a_host() -> None:
    with served() as server:
        for name, status in (("evil.example", 421), ("localhost:1", 200)):
            assert httpx.get(f"{server.url}/health", headers={"x-forwarded-host": name}).status_code == status


def test_row_31_two_merges_of_one_pid_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what a merge left that was killed is removed."""
    from router_backend.checkpoints import gguf_merge

    written: list[Path] = []
    monkeypatch.setattr(gguf_merge, "Reader", lambda path: SimpleNamespace(tensors=[]))
    monkeypatch.setattr(gguf_merge, "_deltas", lambda adapter, reader: {})

    def write(reader: object, deltas: object, path: Path, *rest: object) -> None:
        written.append(path)
        path.write_bytes(b"GGUF")
        if len(written) == 1:
            gguf_merge.merge(base(), ADAPTER, tmp_path / "out.gguf")
            assert path.read_bytes() == b"GGUF", "the other one did not touch it"

    monkeypatch.setattr(gguf_merge, "_write", write)
    old, young = tmp_path / "out.gguf.1.new", tmp_path / "out.gguf.2.new"
    for each in (old, young):
        each.write_bytes(b"half")
    os.utime(old, (0, 0))
    gguf_merge.merge(base(), ADAPTER, tmp_path / "out.gguf")
    assert len(set(written)) == 2
    assert not old.exists() and young.exists()


def talk(server: Served, content: bytes) -> bytes:
    """All that comes back, until the connection is closed."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(content)
        said = b""
        while piece := connection.recv(65_536):
            said += piece
        return said


SMUGGLED = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /v1/generate HTTP/1.%d\r\nHost: localhost\r\nContent-Type: application/json\r\n%s\r\n\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    "head",
    [
        POST % (1, b"Content-Length: 5\r\nTransfer-Encoding: chunked"),
        POST % (1, b"Transfer-Encoding: chunked\r\nContent-Length: 5"),
        POST % (0, b"Transfer-Encoding: chunked"),
        POST % (1, b"Content-Length: 5\r\nContent-Length: 6"),
        b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000,
    ],
)
def test_row_31_doubtful_framing_is_refused_in_our_shape(head: bytes) -> None:
    with served() as server:
        said = talk(server, head + SMUGGLED)
    head, _, body = said.partition(b"\r\n\r\n")
    assert len(re.findall(rb"HTTP/1\.1 \d", said)) == 1, "nothing behind it is taken for a request"
    assert b" 400 " in head and b"connection: close" in head.lower()
    error = json.loads(body)["error"]
    assert error["type"] == "invalid_request_error" and error["message"]


def test_row_31_what_the_drain_cuts_off_has_our_shape() -> None:
    with served(drain_timeout=0) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        connection.putrequest("POST", "/v1/generate")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", "10")
        connection.endheaders(b"{")
        until(lambda: server.service._accepted == 1)
    answer = connection.getresponse()  # the server is gone by now
    assert answer.status == 503
    assert json.loads(answer.read())["error"]["code"] == "not_ready"
    connection.close()


def test_row_28_one_long_prompt_is_read_once_for_all_choices() -> None:
    from router_backend.remembered import Remembered

    calls: list[tuple[str, str]] = []

    def tokens(owner: str, text: str) -> tuple[int, ...]:
        calls.append((owner, text[:1]))
        time.sleep(0.05)
        return (len(text),)

    remembered = Remembered.of_texts(tokens)
    assert in_threads(8, lambda _: remembered("alice", "x" * 1_000_000)) == [(1_000_000,)] * 8
    assert calls == [("alice", "x")]
    assert remembered("bob", "x" * 1_000_000) == (1_000_000,) and len(calls) == 2
    for text in "abc":
        remembered("alice", text * 1_900_000)
    assert remembered._weight <= remembered._most and len(remembered._values) == 1


# Keys


def test_row_31_guesses_of_keys_are_throttled(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that guesses is not told any more whether it guessed right; who was right there before goes on."""
    now = 100.0
    monkeypatch.setattr(admission, "time", SimpleNamespace(monotonic=lambda: now))
    with served(router_api_keys=KEYS, admin_key="k-admin-90") as server:

        def status(key: str) -> int:
            return httpx.get(f"{server.url}/v1/models", headers={"authorization": f"Bearer {key}"}).status_code

        assert status(ALICE) == 200
        assert [status(f"guess-{number}") for number in range(30)] == [401] * 20 + [429] * 10
        assert status(BOB) == status("k-admin-90") == 429, "a right guess looks like a wrong one"
        assert status(ALICE) == 200
        refused = httpx.get(f"{server.url}/v1/models", headers={"authorization": "Bearer another"})
        assert refused.json()["error"]["code"] == "rate_limit_exceeded" and refused.headers["retry-after"] == "3"
        assert httpx.get(f"{server.url}/livez", headers={"authorization": "Bearer x"}).status_code == 200
        now += 3.1
        assert status(BOB) == 200 and status("guess") == 401 and status("guess") == 429


def test_row_31_guesses_with_a_name_are_throttled_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "time", SimpleNamespace(monotonic=lambda: 100.0))
    with served(router_api_keys=KEYS) as server:

        def status(key: str) -> int:
            sent = base64.b64encode(f"alice:{key}".encode()).decode()
            return httpx.get(f"{server.url}/docs", headers={"authorization": f"Basic {sent}"}).status_code

        assert [status(f"guess-{at}") for at in range(22)] == [401] * 20 + [429] * 2


def test_row_31_an_open_server_with_an_admin_takes_any_clients_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenAI's clients always send one. What is guessed at is the admin's alone."""
    monkeypatch.setattr(admission, "time", SimpleNamespace(monotonic=lambda: 100.0))
    with served(admin_key="k-admin-90") as server:

        def status(path: str, key: str) -> int:
            body = {"prompt": "x", "output": "text"}
            return httpx.post(server.url + path, json=body, headers={"authorization": f"Bearer {key}"}).status_code

        assert {status("/v1/generate", "sk-none") for _ in range(40)} == {200}
        assert [status("/admin/reload", f"guess-{at}") for at in range(22)] == [403] * 20 + [429] * 2
        assert status("/v1/generate", "sk-none") == 200


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2600:3c00::f03c:91ff:fe24:1", "2600:3c00::1:2:3:4", True),
        ("2001:db8:1:2::9", "2001:db8:1:2:3:4:5:6", True),
        ("2001:db8:1:2::9", "2001:db8:1:3::9", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("::ffff:1.2.3.4", "::ffff:1.2.3.5", False),
        ("1.2.3.4", "1.2.3.5", False),
        ("a.sock", "b.sock", False),
    ],
)
def test_row_31_a_network_of_ipv6_is_one_address(one: str, other: str, same: bool) -> None:
    first, second = (guard._address({"client": (each, 1)}) for each in (one, other))
    assert (first == second) is same


@pytest.mark.parametrize(
    "name", ["evil.example:443", "localhost, evil.example", "localhost.evil.example", "x.localhost", "evil.example/a"]
)
@pytest.mark.parametrize("settings", [{}, {"router_api_keys": KEYS, "allowed_hosts": "router.example"}])
def test_row_31_no_forwarded_host_stands_in_a_link(name: str, settings: dict[str, Any]) -> None:
    told = {"x-forwarded-host": name, "authorization": f"Bearer {ALICE}"}
    with served(ui=True, **settings) as server:
        for path in ("/gradio/config", "/docs", "/"):
            answer = httpx.get(server.url + path, headers=told, timeout=60)
            assert answer.status_code == 421 and "evil" not in answer.text


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"host": "evil.example"}, 421),
        ({"content-length": "1", "transfer-encoding": "chunked"}, 400),
        ({"x-long": "x" * 70_000}, 431),
    ],
    ids=["host", "two lengths", "long"],
)
def test_row_31_a_preflight_has_a_head_like_any_other(wrong: dict[str, str], status: int) -> None:
    from starlette.testclient import TestClient

    from router_backend.server.app import create_app
    from tests.fakes.running import echo_service

    told = {"origin": "https://app.example", "access-control-request-method": "POST"}
    service, _ = echo_service(echo_model(), load_settings(cors_origins="https://App.Example", engine="echo"))
    with TestClient(create_app(service, ui=False), "http://localhost") as client:
        assert client.options("/v1/generate", headers=told).status_code == 200
        assert client.options("/v1/generate", headers=told | wrong).status_code == status


@pytest.mark.parametrize("name", ["out[1].gguf", "out*.gguf", "out?.gguf"])
def test_row_31_a_name_with_signs_of_a_pattern_tidies_its_own_alone(tmp_path: Path, name: str) -> None:
    from router_backend.checkpoints import gguf_merge

    own, others = tmp_path / f"{name}.1.new", tmp_path / "out1.gguf.1.new"
    for each in (own, others):
        each.write_bytes(b"half")
        os.utime(each, (0, 0))
    gguf_merge._tidy(tmp_path / name)
    assert not own.exists() and others.exists()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("alice:k-NEVER", "at least 8 characters"),
        ("alice:NNNNNNNNNNNN", "5 of them different"),
        ("alice:k-NEVERSHOWN,bob:k-NEVERSHOWN", "the same key"),
    ],
)
def test_row_31_weak_or_repeated_keys_are_refused_at_the_start(keys: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        load_settings(router_api_keys=keys)
    assert "NEVER" not in caught.value.message and "NNNN" not in caught.value.message


def test_row_31_a_weak_admin_key_is_refused() -> None:
    with pytest.raises(SettingsError, match="at least 8 characters"):
        load_settings(admin_key="admin")
