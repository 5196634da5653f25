"""`router-backend serve` as a process of its own: how it starts, what it says, and how it ends."""

from __future__ import annotations

import json
import re
import signal
import socket
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest

from router_backend.errors import SettingsError
from router_backend.server.serve import bind
from tests.fakes.hub import fake_hub, write_checkpoint
from tests.fakes.running import Process, in_threads, process, until

ECHO = {"ENGINE": "echo", "PORT": "0"}
GARBAGE = {"MODEL_REPO": "./x.gguf", "PORT": "0"}


@pytest.fixture
def garbage(tmp_path: Path) -> Path:
    """A folder with a file that is no checkpoint, whatever its name says."""
    (tmp_path / "x.gguf").write_bytes(b"no checkpoint at all")
    return tmp_path


def one_message(process: Process) -> str:
    """The only line of its output that is no log line; there is no traceback."""
    assert "Traceback" not in process.output
    (line,) = (line for line in process.lines if line.startswith("router-backend: "))
    return line


def logged(process: Process) -> list[dict[str, Any]]:
    return [json.loads(line) for line in process.lines if line.startswith("{")]


def test_it_says_where_it_serves_and_ends_well_when_told_to(tmp_path: Path) -> None:
    with process(folder=tmp_path, **ECHO) as running:
        url = running.ready()
        assert url.startswith("http://127.0.0.1:") and not url.endswith(":0")
        for word in ("/gradio", "/console", "/docs"):
            assert word in running.output
        assert httpx.post(f"{url}/v1/generate", json={"prompt": "x", "output": "text"}).json() == {"text": "x"}
        assert "server" not in httpx.get(f"{url}/livez").headers
        assert running.stop() == 0
        assert "Traceback" not in running.output
        requests = [line for line in logged(running) if line["message"] == "request"]
        assert [line["path"] for line in requests] == ["/v1/generate"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_requests_in_flight_finish(tmp_path: Path, number: signal.Signals) -> None:
    """A body that is still on its way when the signal comes is a request in flight too."""
    body = json.dumps({"prompt": "in flight", "output": "text"}).encode()
    with process(folder=tmp_path, **ECHO) as running:
        port = int(running.ready().rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), 10) as line:
            lines = ("POST /v1/generate HTTP/1.1", "Host: localhost", "Content-Type: application/json")
            line.sendall("\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body[:5])
            heard(port)
            running.popen.send_signal(number)
            until(lambda: drains(port))
            assert running.popen.poll() is None
            line.sendall(body[5:])
            said = b""
            while piece := line.recv(4096):
                said += piece
        assert said.startswith(b"HTTP/1.1 200 ") and said.endswith(b'{"text":"in flight"}')
        assert running.wait() == 0
        assert "Traceback" not in running.output


def test_what_does_not_finish_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    with process(folder=tmp_path, DRAIN_TIMEOUT="1", **ECHO) as running:
        port = int(running.ready().rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), 10) as line:
            line.sendall(b"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
            line.sendall(b"Content-Length: 100\r\n\r\n{")
            heard(port)
            assert running.stop() == 0
            assert b" 408 " not in line.recv(4096), "its body was not waited for"


def test_row_23_a_second_sigterm_ends_it_at_once(tmp_path: Path) -> None:
    with process(folder=tmp_path, DRAIN_TIMEOUT="1000", **ECHO) as running:
        port = int(running.ready().rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), 10) as line:
            line.sendall(b"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
            line.sendall(b"Content-Length: 100\r\n\r\n{")
            heard(port)
            running.popen.send_signal(signal.SIGTERM)
            until(lambda: drains(port))
            assert running.stop() == 128 + signal.SIGTERM, "a drained end would be 0"


def heard(port: int) -> None:
    """What was sent before this has been read: the server reads in turn."""
    for _ in range(2):
        httpx.get(f"http://127.0.0.1:{port}/livez", timeout=60).raise_for_status()


def drains(port: int) -> bool:
    """Whether the door is still open, and says that it closes."""
    return bool(httpx.get(f"http://127.0.0.1:{port}/readyz").json()["state"] == "stopping")


@pytest.mark.slow
def test_row_23_sigterm_under_load(tmp_path: Path) -> None:
    """Fifty requests are in flight, most of them queued: all end well, a later one gets a 503, the exit code is 0."""
    text = "word " * 2000
    body = json.dumps({"prompt": text, "output": "text", "max_new_tokens": 2048})
    with process(folder=tmp_path, **ECHO, SLOTS="4", QUEUE_LIMIT="64", DRAIN_TIMEOUT="60") as running:
        url = running.ready()
        with ExitStack() as lines:
            slow, *clients = [HTTPConnection(url.removeprefix("http://"), timeout=60) for _ in range(51)]
            for client in (slow, *clients):
                lines.callback(client.close)
                client.connect()
            # Until its body has come the server does not end, however fast the others are answered.
            slow.putrequest("POST", "/v1/generate")
            slow.putheader("Content-Type", "application/json")
            slow.putheader("Content-Length", str(len(body)))
            slow.endheaders()
            for client in clients:
                client.request("POST", "/v1/generate", body, {"Content-Type": "application/json"})
            until(lambda: taken(url) == 50)
            running.popen.send_signal(signal.SIGTERM)
            until(lambda: httpx.get(f"{url}/readyz").status_code == 503)
            late = httpx.post(f"{url}/v1/generate", json={"prompt": "late", "output": "text"})
            assert late.status_code == 503 and late.headers["retry-after"] == "5"
            slow.send(body.encode())
            for client in (slow, *clients):
                answer = client.getresponse()
                assert answer.status == 200 and json.loads(answer.read()) == {"text": text}
        assert running.wait() == 0
        assert "Traceback" not in running.output


def taken(url: str) -> int:
    """Requests that were let in: at work, waiting or answered."""
    queue = httpx.get(f"{url}/health").json()["queue"]
    counts = re.findall(r"^router_requests_total{.*} ([0-9.]+)", httpx.get(f"{url}/metrics").text, re.MULTILINE)
    return int(queue["running"] + queue["waiting"] + sum(map(float, counts)))


def test_sighup_reloads(tmp_path: Path) -> None:
    """Another checkpoint, named in `.env`, while a request runs."""
    (tmp_path / "other.gguf").write_bytes(b"no checkpoint at all")
    (tmp_path / ".env").write_text("ENGINE=echo\n")
    with process(folder=tmp_path, PORT="0", ADMIN_KEY="k-admin-90") as running:
        url = running.ready()
        (tmp_path / ".env").write_text("MODEL_REPO=./other.gguf\n")
        running.popen.send_signal(signal.SIGHUP)
        until(lambda: "reload failed, the old model goes on" in running.output)
        assert httpx.get(f"{url}/health").json()["model"] == "echo"
        (tmp_path / ".env").write_text("ENGINE=echo\n")
        headers = {"authorization": "Bearer k-admin-90"}
        said = httpx.post(f"{url}/admin/reload", headers=headers, timeout=60)
        assert said.json() == {"model": "echo", "strategy": "native", "engine": "echo"}
        assert httpx.get(f"{url}/health").json()["status"] == "ok"
        assert "reloading the checkpoint" in running.output and running.stop() == 0


def test_a_taken_port_is_one_readable_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with process("--port", port, folder=tmp_path, ENGINE="echo", PORT="1") as running:
            assert running.wait() == 1
            said = one_message(running)
            assert running.lines == [said]
            assert f"PORT={port}" in said and "in use" in said and "--port" in said


def test_options_win_over_variables(tmp_path: Path) -> None:
    with process("--port", "0", "--host", "127.0.0.1", folder=tmp_path, ENGINE="echo", PORT="1", HOST="x") as running:
        assert running.ready().startswith("http://127.0.0.1:")


def test_a_failed_warm_start_ends_it_with_every_attempt(garbage: Path) -> None:
    (garbage / "y.gguf").write_bytes(b"")
    with process(folder=garbage, **GARBAGE, MODEL_FALLBACKS="./y.gguf,owner/repo") as running:
        assert running.wait() == 1
        one_message(running)
        said = running.output.partition("router-backend: ")[2].splitlines()
        assert said[0] == "no checkpoint could be loaded:"
        for name, line in zip(("x.gguf", "y.gguf", "owner/repo"), said[1:], strict=False):
            assert name in line and ("failed: " in line or "skipped: " in line)


def test_a_failed_warm_start_that_is_allowed_stays_up(garbage: Path) -> None:
    with process(folder=garbage, **GARBAGE, ALLOW_WARM_START_FAILURE="1") as running:
        url = running.url()
        until(lambda: status(f"{url}/health") == "failed")
        health = httpx.get(f"{url}/health")
        assert health.status_code == 503
        assert "x.gguf is not a GGUF file" in health.json()["reason"]
        assert [attempt["outcome"] for attempt in health.json()["attempts"]] == ["failed"]
        assert httpx.get(f"{url}/livez").status_code == 200
        response = httpx.post(f"{url}/v1/generate", json={"prompt": "x"})
        assert response.status_code == 503 and int(response.headers["retry-after"]) >= 1
        assert running.popen.poll() is None
        assert running.stop() == 0


def status(url: str) -> str | None:
    try:
        return str(httpx.get(url).json()["status"])
    except httpx.TransportError:
        return None


WRONG = {
    "a strategy": ({"MODEL_LOAD_STRATEGY": "9bit"}, "MODEL_LOAD_STRATEGY='9bit'", "8bit, 4bit, bf16, fp16, cpu"),
    "a number": ({"PORT": "http"}, "PORT='http'", "integer"),
    "a file": ({"MODEL_REPO": "./missing.gguf"}, "MODEL_REPO='./missing.gguf'", "no such file"),
    "a port": ({"PORT": "70000"}, "PORT='70000'", "65535"),
    "keys": ({"ROUTER_API_KEYS": "NEVERSHOWN"}, "ROUTER_API_KEYS=(hidden)", "name:key"),
    "a host": ({"HOST": "a..b", "PORT": "0"}, "HOST=a..b", "cannot serve there"),
}


@pytest.mark.parametrize("what", sorted(WRONG))
def test_wrong_settings_are_one_message(tmp_path: Path, what: str) -> None:
    variables, *words = WRONG[what]
    with process(folder=tmp_path, **{"ENGINE": "echo"} | variables) as running:
        assert running.wait() == 1
        said = one_message(running)
        assert all(word in said for word in words), said
        assert "NEVERSHOWN" not in running.output and len(running.lines) == 1


def test_old_names_are_one_warning_each(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("WRITE_TIMEOUT=1\n", "utf-8")
    with process(folder=tmp_path, ENGINE="echo", PORT="0", PREFIX_CACHE="0", LOG_FORMAT="human") as server:
        server.ready()
        assert server.stop() == 0
    for name in ("PREFIX_CACHE", "WRITE_TIMEOUT"):
        assert len(re.findall(rf"warning +{name} is not a setting any more: .+", server.output)) == 1


def test_row_27_secrets_are_never_in_its_output(tmp_path: Path) -> None:
    secrets = {"HF_TOKEN": "hf_NEVERSHOWN", "ROUTER_API_KEYS": "alice:k-NEVERSHOWN"}
    with process(folder=tmp_path, **ECHO, **secrets) as running:
        url = running.ready()

        def ask(key: str) -> int:
            headers = {"authorization": f"Bearer {key}"}
            body = {"prompt": "k-NEVERSHOWN", "output": "text"}
            response = httpx.post(f"{url}/v1/generate?key={key}", json=body, headers=headers)
            return response.status_code

        assert [ask(key) for key in ("k-NEVERSHOWN", "k-NEVERSHOWN-wrong", "hf_NEVERSHOWN")] == [200, 401, 401]
        assert httpx.get(f"{url}/k-NEVERSHOWN").status_code == 401
        running.stop()
        assert [line["status"] for line in logged(running) if line["message"] == "request"] == [200, 401, 401, 401]
        assert "NEVERSHOWN" not in running.output


def test_the_log_of_many_requests_is_whole_lines(tmp_path: Path) -> None:
    with process(folder=tmp_path, **ECHO) as running:
        url = running.ready()

        def ask(index: int) -> int:
            body = {"prompt": "x", "output": "text"}
            headers = {"x-request-id": f"r{index}"}
            return httpx.post(f"{url}/v1/generate", json=body, headers=headers, timeout=60).status_code

        assert set(in_threads(20, ask)) == {200}
        running.stop()
        ids = [line["request_id"] for line in logged(running) if line["message"] == "request"]
        assert sorted(ids) == sorted(f"r{index}" for index in range(20))


# The socket


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1", "a..b", "x" * 300, "é..b"])
def test_an_address_that_cannot_be_bound_is_a_wrong_setting(host: str) -> None:
    with pytest.raises(SettingsError, match="cannot serve there"):
        bind(host, 0)


def test_a_port_is_free_again_at_once() -> None:
    """Though the system still remembers a connection that the server closed."""
    first = bind("127.0.0.1", 0)
    port = first.getsockname()[1]
    first.listen()
    with pytest.raises(SettingsError):
        bind("127.0.0.1", port)
    with socket.create_connection(("127.0.0.1", port)) as client:
        first.accept()[0].close()
        assert client.recv(1) == b""
    first.close()
    bind("127.0.0.1", port).close()


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 on this machine")
def test_the_address_of_ipv6_can_be_opened(tmp_path: Path) -> None:
    try:
        bind("::1", 0).close()
    except SettingsError:
        pytest.skip("no IPv6 loopback on this machine")
    with process(folder=tmp_path, **ECHO, HOST="::1") as running:
        assert running.url().startswith("http://[::1]:")


def test_a_signal_ends_a_load_that_hangs(tmp_path: Path) -> None:
    """A hub that says nothing is waited for by the load, not by who wants the server to end."""
    with fake_hub() as hub:
        hub.add("acme/router", write_checkpoint(tmp_path / "checkpoint"), hangs="")
        where = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "HUB_TIMEOUT": "1000"}
        with process(folder=tmp_path, PORT="0", MODEL_REPO="acme/router", MODEL_DEVICE="cpu", **where) as running:
            until(lambda: bool(hub.asked))
            assert httpx.get(f"{running.url()}/health").json()["status"] == "loading"
            assert running.stop() == 0
            assert "Traceback" not in running.output
