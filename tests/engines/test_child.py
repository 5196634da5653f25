"""llama.cpp's process: what becomes of the requests, the server and the process when one of them is killed or hangs."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import httpx
import psutil
import pytest

from router_backend.checkpoints.embedded import checkpoint
from router_backend.checkpoints.ladder import Candidate, Rung
from router_backend.engines import llama_server
from router_backend.engines.child import Child
from router_backend.engines.llamacpp import LlamaCppModel, load
from router_backend.errors import EngineError, EngineLost, RungError
from router_backend.plan.prompt import BUDGET_KEY
from router_backend.service.loader import Loader
from router_backend.service.service import GenerationService
from router_backend.settings import load_settings
from router_backend.types import GenerateRequest, SamplingParams
from tests.fakes.faulty_gguf import faulty
from tests.fakes.running import Process, answers, become, process, until

pytestmark = [pytest.mark.real, pytest.mark.slow]
SMALL = {"slots": 2, "context_length": 512, "threads": 1}


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def children(pid: int | None = None) -> list[psutil.Process]:
    """The processes of llama.cpp below a process, this one by default."""
    return [each for each in psutil.Process(pid).children() if "llama_server" in " ".join(each.cmdline())]


def long_text(name: str = "r") -> GenerateRequest:
    return GenerateRequest(name, "Tell a long story.", SamplingParams(400, seed=1), grammar="start: /[a-z ]{900}/")


@asynccontextmanager
async def served(**settings: object) -> AsyncIterator[GenerationService]:
    """The service over the real embedded model, which is served; no process is left at the end."""
    before = {each.pid for each in children()}
    told = load_settings(**{**SMALL, "model_repo": "embedded", "drain_timeout": 1, **settings})
    service = GenerationService(told, Loader(told).load)
    await service.start()
    try:
        await become(lambda: service.health().status != "loading", 300)
        assert service.health().status == "ok", service.health().reason
        yield service
    finally:
        await service.close()
    assert {each.pid for each in children()} <= before


def child_of(service: GenerationService) -> int:
    assert service.host.serving is not None
    return cast("LlamaCppModel", service.host.serving.engine._model)._child.pid  # type: ignore[attr-defined]


def go(main: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 500))


async def hit(service: GenerationService, blow: Callable[[int], object]) -> list[BaseException | object]:
    """Two requests are decoded, then the process gets a blow. What became of the requests."""
    begun = 0

    async def ask(name: str) -> None:
        nonlocal begun
        chunks = service.generate(long_text(name))
        async for chunk in chunks:
            begun += chunk.text != "" and not chunk.finish_reason
            await asyncio.sleep(0)

    asked = [asyncio.create_task(ask(name)) for name in ("one", "two")]
    await become(lambda: begun > 4)
    blow(child_of(service))
    return await asyncio.gather(*asked, return_exceptions=True)


@pytest.mark.parametrize(
    ("blow", "patience"), [(signal.SIGKILL, 120), (signal.SIGSTOP, 20)], ids=["kill -9", "SIGSTOP"]
)
def test_row_22_a_blow_costs_the_requests_on_it_alone(blow: signal.Signals, patience: float) -> None:
    async def main() -> None:
        async with served(watchdog_timeout=patience) as service:
            first = child_of(service)
            results = await hit(service, lambda pid: os.kill(pid, blow))
            assert [type(each) for each in results] == [EngineLost, EngineLost], results
            assert (await service.answer(long_text())).text
            assert child_of(service) != first and is_gone(first)
            assert service.host.restarts == 0, "an answer ends the count"

    go(main)


def test_row_22_a_process_that_ends_while_nobody_asks_costs_no_request() -> None:
    async def main() -> None:
        async with served() as service:
            first = child_of(service)
            os.kill(first, signal.SIGKILL)
            await become(lambda: service.host.serving is None or service.host.serving.engine.died)
            assert (await service.answer(long_text())).text and child_of(service) != first

    go(main)


def test_out_of_memory_hurts_what_asked_for_it_alone() -> None:
    """From some moment on llama.cpp's process gets hardly any more memory, and a text of 20 MB needs a lot."""

    def no_more(pid: int) -> None:
        most = psutil.Process(pid).memory_info().data + (16 << 20)
        psutil.Process(pid).rlimit(psutil.RLIMIT_DATA, (most, most))

    async def main() -> None:
        async with served() as service:
            assert service.host.serving is not None
            model = service.host.serving.engine._model  # type: ignore[attr-defined]
            results = await hit(service, no_more)
            with pytest.raises(EngineError):
                await asyncio.to_thread(model.count_tokens, "word " * 4_000_000)
            assert all(each is None or isinstance(each, EngineError) for each in results), results
            assert (await service.answer(long_text())).text

    go(main)


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Process]:
    told = {"MODEL_REPO": "embedded", "PORT": "0", "THREADS": "1", "SLOTS": "1", "TMPDIR": str(tmp_path)}
    with process(folder=tmp_path, **told) as running:
        yield running


def test_the_process_ends_with_the_server_whatever_kills_that(serving: Process) -> None:
    serving.ready()
    (child,) = children(serving.popen.pid)
    serving.popen.kill()
    until(lambda: is_gone(child.pid))


def test_a_load_that_hangs_delays_no_probe_and_ends_with_the_server_too(serving: Process) -> None:
    url = serving.url()
    until(lambda: bool(children(serving.popen.pid)))
    (child,) = children(serving.popen.pid)
    until(lambda: Path(f"/proc/{child.pid}/oom_score_adj").read_text().strip() == "500")
    child.suspend()
    for _ in range(50):
        assert httpx.get(f"{url}/livez", timeout=30).status_code == 200
    assert httpx.get(f"{url}/health", timeout=30).json()["status"] == "loading"
    serving.popen.kill()
    until(lambda: is_gone(child.pid))


def test_it_starts_where_less_data_is_allowed_than_there_is(tmp_path: Path) -> None:
    told = {"MODEL_REPO": "embedded", "PORT": "0", "THREADS": "1", "SLOTS": "1"}
    allowed = ("prlimit", f"--data={4 << 30}:{4 << 30}")
    with process(folder=tmp_path, within=allowed, **told) as running:
        url = running.ready()
        until(lambda: answers(f"{url}/readyz") or running.popen.poll() is not None, 120)
        assert running.popen.poll() is None, running.output


def gguf(path: Path, content: bytes, *, tensors: int = 0, values: int = 1) -> Path:
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, tensors, values) + content)
    return path


KEY = struct.pack("<Q", 3) + b"key"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(KEY + struct.pack("<IIQ", 9, 4, 1 << 61), id="a list without an end"),
        pytest.param(KEY + struct.pack("<IQ", 8, 1 << 62), id="a text without an end"),
        pytest.param(struct.pack("<Q", (1 << 64) - 1), id="a key without an end"),
        pytest.param(KEY + struct.pack("<II", 9, 9) * 50_000, id="lists of lists"),
        pytest.param(b"tokenizer.chat_template" * 10, id="nonsense"),
    ],
)
@pytest.mark.parametrize("many", [0, (1 << 63) - 1])
def test_a_crafted_file_is_a_rung_that_fails(tmp_path: Path, content: bytes, many: int) -> None:
    path = gguf(tmp_path / "bad.gguf", content, tensors=many)
    settings = load_settings(slots=1, context_length=512)
    with pytest.raises(RungError, match=r"llama\.cpp does not load bad\.gguf"):
        load(Rung(Candidate(str(path), "gguf"), "gguf"), settings, path)
    assert not [each for each in children() if str(path) in " ".join(each.cmdline())]


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "its process ended"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "no sign of life"),
    ],
    ids=["crashes", "never ends"],
)
def test_a_template_that_takes_llama_cpp_down_is_left_out(tmp_path: Path, template: str, why: str) -> None:
    path = faulty(tmp_path / "bad.gguf", template=template)
    settings = load_settings(slots=1, context_length=512, threads=1, watchdog_timeout=20)
    model = load(Rung(Candidate(str(path), "gguf"), "gguf"), settings, path)
    try:
        assert model.prompt_tokens(long_text()) == model.count_tokens(long_text().prompt)
        assert len(model.info.warnings) == 1 and why in model.info.warnings[0]
    finally:
        model.close()
    assert is_gone(model._child.pid)


def test_row_27_a_child_is_told_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "ROUTER_API_KEYS", "UPSTREAM_API_KEY", "admin_key", "DB_PASSWORD")
    for name in secrets:
        monkeypatch.setenv(name, "k-NEVERSHOWN")
    monkeypatch.setenv("GGML_SOMETHING", "1")
    script = tmp_path / "script.py"
    script.write_text("import json, os; print(json.dumps(dict(os.environ)))")
    told = Child(str(script), {}, {"OMP_WAIT_POLICY": "passive"}, patience=60).heard(60)
    assert (told["GGML_SOMETHING"], told["OMP_WAIT_POLICY"]) == ("1", "passive") and "PATH" in told
    assert "k-NEVERSHOWN" not in told.values()


def test_what_the_head_of_a_file_says(tmp_path: Path) -> None:
    assert llama_server.read_head(checkpoint(), BUDGET_KEY) == (True, True)
    assert llama_server.read_head(gguf(tmp_path / "none.gguf", b""), BUDGET_KEY) == (False, False)
