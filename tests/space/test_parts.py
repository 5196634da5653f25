"""The parts of the Space's door, in this process: durations, refusals, cancels, placing, and what we rely on."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import json
import multiprocessing
import struct
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import httpx
import pytest
import spaces.config
from gradio.context import LocalContext
from gradio.route_utils import API_PREFIX
from spaces.zero import client
from starlette.requests import Request

from router_backend import engines
from router_backend.checkpoints.ladder import NothingLoads, Rung
from router_backend.engines.base import LocalModel
from router_backend.engines.threaded import ThreadedEngine
from router_backend.errors import BudgetTooSmall, EngineError, NotReady
from router_backend.plan.write import PlanWriter
from router_backend.settings import Settings, load_settings
from router_backend.space import door, placing, refusals
from router_backend.space.cancels import CallFlag, Cancels
from router_backend.space.duration import Duration
from router_backend.space.engine import SpaceEngine
from router_backend.types import Chunk, GenerateRequest, SamplingParams, Timings, Usage
from tests.fakes.running import echo_model

GB = 10**9
ROOT = Path(__file__).parents[2]


def answered(prefill: float, decode: float, tokens: int = 100, prompt: int = 100, cached: int = 0) -> Chunk:
    return Chunk(
        finish_reason="stop",
        usage=Usage(prompt, tokens, cached),
        timings=Timings(prefill_seconds=prefill, decode_seconds=decode),
    )


# Durations


def test_guesses_more_for_larger_weights_and_budgets_and_never_too_much() -> None:
    small, large = Duration(2 * GB), Duration(27 * GB)
    assert small.seconds(500, 600) < large.seconds(500, 600) <= 120
    assert small.seconds(500, 300) < small.seconds(500, 600)
    assert Duration(400 * GB).seconds(500, 600) == 120, "a guess is never refused as too long"


def test_measured_calls_take_the_guess_s_place() -> None:
    duration = Duration(27 * GB)
    duration.started(4.0)
    duration.answered(answered(prefill=0.2, decode=2.0))
    assert duration.seconds(100, 600) == 20, "1.2 × (4 s + 100 × 2 ms + 600 × 20 ms)"


def test_a_slow_call_counts_at_once_and_a_fast_one_by_and_by() -> None:
    duration = Duration(0)
    duration.started(0.0)
    for decode in (1.0, 10.0):
        duration.answered(answered(0.1, decode))
    slow = duration.seconds(0, 600)
    assert slow == 72
    duration.answered(answered(0.1, 1.0))
    assert 50 < duration.seconds(0, 600) < slow
    for _ in range(30):
        duration.answered(answered(0.1, 1.0))
    assert duration.seconds(0, 600) < 10


def test_what_was_measured_may_be_long_and_is_never_tiny() -> None:
    duration = Duration(0)
    duration.answered(answered(0.0, 100.0))
    assert duration.seconds(0, 600) > 700, "the truth, even if it is refused"
    fast = Duration(0)
    fast.started(0.01)
    fast.answered(answered(0.0, 0.001))
    assert fast.seconds(0, 10) == 5


def test_a_cached_prompt_says_nothing_about_reading_one() -> None:
    duration = Duration(0)
    before = duration.prompt_token
    duration.answered(answered(0.5, 0.5, cached=90))
    assert duration.prompt_token == before and duration.token == 0.01


# Refusals (those that a device API can cause are seen in test_space.py)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (gr.Error("GPU task aborted", title="ZeroGPU worker error"), 502, "gpu_aborted"),
        (gr.Error("KeyError", title="ZeroGPU worker error"), 500, "engine_error"),
        (gr.Error("No GPU was available after 60s. Try", title="ZeroGPU quota exceeded"), 503, "no_gpu"),
        (gr.Error("something new", title="ZeroGPU something new"), 503, "no_gpu"),
        (httpx.ConnectError("refused"), 503, "no_gpu"),
        (RuntimeError("Unexpected end of stream"), 503, "no_gpu"),
        (TypeError("cannot pickle"), 500, "engine_error"),
    ],
)
def test_every_error_has_a_status(error: Exception, status: int, code: str) -> None:
    found = refusals.explain(error, 30)
    assert (found.status, found.code) == (status, code)


def test_days_are_counted_too() -> None:
    error = gr.Error("Try again in 1 day, 1:01:01. ", title=refusals.QUOTA)
    assert refusals.explain(error, 30).retry_after == 90061


def test_our_own_errors_stay_as_they_are() -> None:
    error = BudgetTooSmall("too small")
    assert refusals.explain(error, 30) is error


# Cancels


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_cancel_is_seen_in_a_forked_worker_and_only_by_its_own_call() -> None:
    cancels = Cancels()
    flags = [cancels.begin() for _ in range(3)]
    context = multiprocessing.get_context("fork")
    ready, seen = context.Pipe()

    def work() -> None:
        seen.recv()
        seen.send([CallFlag(cancels, flag.number).is_set() for flag in flags])

    worker = context.Process(target=work)
    worker.start()
    flags[1].set()
    ready.send("now")
    assert ready.recv() == [False, True, False]
    worker.join()


FORKS = """
import os, threading, time
from router_backend.space import door

inside = []

def begin():
    inside.append(1)
    most.append(len(inside))
    time.sleep(0.2)

os.register_at_fork(before=begin, after_in_parent=inside.pop)

def fork():
    pid = os.fork()
    if not pid:
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

for turns in (False, True):
    most = []
    if turns:
        door.fork_in_turn()
    threads = [threading.Thread(target=fork) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    print(most)
"""


def test_calls_at_once_fork_their_workers_in_turn() -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKS]
    said = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    assert said.stdout.splitlines()[-1] == "[1, 1, 1, 1]", said.stderr
    assert "2" in said.stdout.splitlines()[-2] or sys.version_info >= (3, 12), "they did not meet"


def test_a_number_that_comes_round_again_is_another_call() -> None:
    cancels = Cancels()
    first = cancels.begin()
    first.set()
    later = [cancels.begin() for _ in range(4096)][-1]
    assert first.is_set() and not later.is_set()
    later.set()
    assert later.is_set()


# The engine, where there is no ZeroGPU and `spaces.GPU` lends nothing


def space_engine(model: LocalModel | None = None, **settings: object) -> SpaceEngine:
    model = model or echo_model(slots=1)
    told = load_settings(**settings)
    return SpaceEngine(model, PlanWriter(model, told.tools), told, weights=0)


async def said(engine: SpaceEngine, request: GenerateRequest) -> list[Chunk]:
    return [chunk async for chunk in engine.generate(request)]


def test_sums_say_the_seconds_and_workers_to_come_learn_the_plan() -> None:
    learnt: list[str] = []
    model = echo_model(slots=1)
    model.remember = lambda text, owner="": learnt.append(text)  # type: ignore[method-assign]
    engine = space_engine(model, slots=3)
    chunks = asyncio.run(said(engine, GenerateRequest("r", "prove it", output="plan")))
    text = "".join(chunk.text for chunk in chunks)
    assert (spent := chunks[-1].timings.gpu_seconds) > 0
    assert (engine.gpu.seconds, engine.gpu.plans) == (engine.gpu.seconds_per_plan, 1) == (round(spent, 1), 1)
    assert learnt == [text, text], "once in the worker, which is this process, and once here"
    assert engine.info.slots == 3 and engine.gpu.quota == "granted"


def test_a_new_worker_says_how_long_it_took_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = space_engine()
    engine._learning.acquire()
    engine._after_fork()
    monkeypatch.setattr(engine, "_forked_at", engine._forked_at - 2 if engine._forked_at else None)
    chunks = asyncio.run(said(engine, GenerateRequest("r", "prove it")))
    assert chunks[-1].timings.gpu_seconds > 2 and engine._duration.start >= 2
    assert engine.gpu.seconds >= 2 and engine.gpu.plans == 0, "it was none"
    assert not engine._learning.locked()


def test_a_refused_request_never_reaches_the_gpu() -> None:
    engine = space_engine()
    with pytest.raises(BudgetTooSmall):
        asyncio.run(said(engine, GenerateRequest("r", "prove it", SamplingParams(20), output="plan")))
    assert engine.gpu.quota == "unknown"


def test_errors_of_the_model_come_through() -> None:
    with pytest.raises(EngineError):
        asyncio.run(said(space_engine(echo_model(slots=1, fail_after=1)), GenerateRequest("r", "one two three")))


# Placing


def write_hollow_safetensors(path: Path, shape: tuple[int, int], layers: int) -> None:
    """The header, and a file that is as long as it says and takes no room on the disk."""
    size = 2 * shape[0] * shape[1]
    header = {
        f"model.layers.{layer}.mlp.up_proj.weight": {
            "dtype": "BF16",
            "shape": shape,
            "data_offsets": [layer * size, (layer + 1) * size],
        }
        for layer in range(layers)
    }
    words = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(words)) + words)
        file.truncate(8 + len(words) + layers * size)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("settings", "strategy"),
    [
        ({}, "8bit"),
        ({"model_load_strategy": "bf16"}, "8bit"),
        ({"model_load_strategy": "bf16", "zerogpu_size": "xlarge"}, "bf16"),
        ({"model_load_strategy": "bf16", "zerogpu_memory": 70}, "bf16"),
        ({"zerogpu_memory": 24}, "4bit"),
    ],
)
def test_chooses_the_rung_by_the_memory_of_the_slice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: dict[str, object], strategy: str
) -> None:
    """A checkpoint of 27 billion parameters, of which only the shapes are there: 54 GB, 27 GB, 14 GB."""
    write_hollow_safetensors(tmp_path / "model.safetensors", (5000, 100_000), layers=54)
    config = {"num_hidden_layers": 54, "hidden_size": 5000, "num_attention_heads": 40, "num_key_value_heads": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tried: list[str] = []

    def load(rung: Rung, settings: Settings, path: Path) -> LocalModel:
        tried.append(rung.strategy)
        return echo_model(slots=1)

    monkeypatch.setattr(engines, "load", load)
    loaded = placing.place(placing.loader(load_settings(model_repo=str(tmp_path), **settings)), lambda attempt: None)
    assert tried == [strategy], "nothing is tried that does not fit"
    assert isinstance(loaded.model, SpaceEngine)
    skipped = [attempt.reason for attempt in loaded.attempts if attempt.outcome == "skipped"]
    assert all("needs" in reason and "free on cuda:0" in reason for reason in skipped)


def test_what_runs_on_the_processor_borrows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "load", lambda rung, settings, path: echo_model(slots=1))
    on_gpu = placing.place(placing.loader(load_settings(engine="echo")), lambda attempt: None)
    on_cpu = placing.place(placing.loader(load_settings(engine="echo", model_device="cpu")), lambda attempt: None)
    assert isinstance(on_gpu.model, SpaceEngine)
    assert type(on_cpu.model) is ThreadedEngine and on_cpu.model.gpu is None


@pytest.mark.torch
def test_a_stand_in_answers_for_what_is_too_large_and_borrows_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_hollow_safetensors(tmp_path / "model.safetensors", (5000, 100_000), layers=800)
    config = {"num_hidden_layers": 800, "hidden_size": 5000, "num_attention_heads": 40, "num_key_value_heads": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(engines, "load", lambda rung, settings, path: _llamacpp())
    loaded = placing.place(
        placing.loader(load_settings(model_repo=str(tmp_path), embedded_fallback=True)), lambda attempt: None
    )
    assert loaded.rung.candidate.last_resort and loaded.reason.startswith("a stand-in answers: the embedded model")
    assert "needs" in loaded.reason and "free on cuda:0" in loaded.reason
    assert type(loaded.model) is ThreadedEngine and loaded.model.gpu is None


def _llamacpp() -> LocalModel:
    model = echo_model(slots=1)
    model.info = replace(model.info, engine="llamacpp")
    return model


def test_what_is_placed_is_handed_over_once_and_placed_anew_in_the_main_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []

    def load(rung: Rung, settings: Settings, path: Path) -> LocalModel:
        threads.append(threading.get_ident())
        return echo_model(slots=1)

    monkeypatch.setattr(engines, "load", load)
    done = threading.Event()
    made = placing.Placing(load_settings(engine="echo", model_device="cpu"))
    first = made.load(lambda attempt: None)
    with ThreadPoolExecutor() as pool:
        again = pool.submit(made.load, lambda attempt: None)
        monkeypatch.setenv("ENGINE", "echo")
        reloaded = pool.submit(made.reread(), lambda attempt: None)
        reloaded.add_done_callback(lambda _: done.set())
        made.work(until=done)
        assert type(again.result().model) is ThreadedEngine and again.result() is not first
        assert isinstance(reloaded.result().model, SpaceEngine), "MODEL_DEVICE was read again"
    assert threads == [threading.get_ident()] * 3
    assert made.load(lambda attempt: None) is reloaded.result(), "weights on the GPU stay"
    with pytest.raises(NotReady, match="restart the Space"):
        made.reread()


def test_a_start_without_a_model_ends_or_serves_the_reason(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(NothingLoads):
        placing.Placing(load_settings(model_repo=str(empty)))
    load = placing.Placing(load_settings(model_repo=str(empty), allow_warm_start_failure=True)).load
    with pytest.raises(NothingLoads):
        load(lambda attempt: None)


# What we rely on, and nobody promised


@pytest.mark.torch
def test_names_of_spaces_and_gradio_that_are_not_promised_are_where_they_were() -> None:
    texts = source("spaces.zero.client") + source("spaces.zero.wrappers")
    for title in (refusals.DURATION, refusals.QUOTA, refusals.PENDING, refusals.QUEUE, refusals.CLIENT):
        assert f'error("{title}"' in texts, f"spaces says it in another way now: {title}"
    for words in (refusals.WORKER, refusals.EXPIRED, refusals.ABORTED):
        assert words in texts, f"spaces says it in another way now: {words}"
    assert client.NO_GPU_MESSAGE_REGULAR.startswith(refusals.NONE_FREE)
    assert client.NO_GPU_MESSAGE_INQUEUE.startswith(refusals.NONE_FREE)
    assert 'f"Try again in {res.wait}. "' in texts
    assert f"{API_PREFIX}/startup-events" == door._STARTUP
    assert {"root_path", "app_kwargs", "ssr_mode", "prevent_thread_lock"} <= set(
        inspect.signature(gr.Blocks.launch).parameters
    )
    assert "HF_DEACTIVATE_ASYNC_LOAD" in source("transformers.core_model_loading")


def source(module: str) -> str:
    """Read, not imported: under a ZeroGPU that is none some of it cannot be."""
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None, module
    return Path(spec.origin).read_text(encoding="utf-8")


def test_spaces_finds_the_token_and_the_port_where_the_door_leaves_them() -> None:
    from spaces.utils import gradio_request_var
    from spaces.zero.gradio import get_server_port

    page = SimpleNamespace(server=SimpleNamespace(config=SimpleNamespace(port=7861)))
    scope = {"type": "http", "headers": [(b"x-ip-token", b"a.b.c")]}

    def look() -> None:
        LocalContext.blocks.set(page)
        LocalContext.request.set(gr.Request(Request(scope)))
        assert get_server_port() == 7861
        headers = client._get_headers(gradio_request_var().get())
        assert headers.get(client.TOKEN_HEADER.lower()) == "a.b.c"

    contextvars.copy_context().run(look)


def test_settings_and_spaces_agree_on_what_is_zerogpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("1", "t", "true", "True"):
        monkeypatch.setenv("SPACES_ZERO_GPU", value)
        assert load_settings().spaces_zero_gpu and spaces.config.boolean(value)
    for value in ("", "0", "false"):
        monkeypatch.setenv("SPACES_ZERO_GPU", value)
        assert not load_settings().spaces_zero_gpu and not spaces.config.boolean(value)
