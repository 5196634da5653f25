"""A rung is loaded when it has answered: what no load notices leads to the next rung or candidate."""

from __future__ import annotations

import asyncio
import json
import mmap
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from router_backend import engines
from router_backend.checkpoints.ladder import Attempt, Candidate, Loaded, NothingLoads, Rung
from router_backend.engines import trial
from router_backend.engines.base import Engine
from router_backend.engines.daemon import any_at_work
from router_backend.engines.echo import EchoModel
from router_backend.errors import EngineError, RungError
from router_backend.service.loader import Loader
from router_backend.settings import load_settings
from router_backend.types import Chunk, GenerateRequest, ModelInfo
from tests.fakes.faulty_gguf import faulty
from tests.fakes.running import echo_model, until

NAN, INFINITE = float("nan"), float("inf")


class Panic(BaseException):
    """As a library in Rust raises it."""


@dataclass
class Watched(EchoModel):
    """Notes how many slots are asked at once, and says what it is told."""

    meet: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))

    def generate(self, request: GenerateRequest, cancelled: Callable[[], bool], slot: int = 0) -> Iterator[Chunk]:
        self.meet.wait(60)
        yield from super().generate(request, cancelled, slot)


def raises(error: BaseException) -> Callable[[GenerateRequest], str]:
    def script(request: GenerateRequest) -> str:
        raise error

    return script


def test_every_slot_is_asked_at_once_and_the_first_has_a_routers_prompt() -> None:
    model = Watched(ModelInfo("echo", "native", "echo", 4096, 3), lambda request: "code", meet=threading.Barrier(3))
    trial.passed(model, 60)
    prompts = sorted((request.prompt for request in model.seen), key=len)
    assert prompts[:2] == ["warm up"] * 2 and prompts[2].startswith("You are the Router Agent")
    assert not model.closed


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (lambda request: " gestational gestational", "wrote ' gestational gestational'"),
        (lambda request: "", "wrote ''"),
        (lambda request: "math and more", "wrote 'math and more'"),
        (raises(EngineError("logits are not finite")), "does not answer: logits are not finite"),
        (raises(ZeroDivisionError("why")), "does not answer: ZeroDivisionError: why"),
        (raises(Panic("index out of bounds")), "does not answer: RuntimeError: Panic: index out of bounds"),
    ],
)
def test_what_is_no_answer_fails_the_rung_and_closes_the_model(
    script: Callable[[GenerateRequest], str], words: str
) -> None:
    model = echo_model(slots=2, script=script)
    with pytest.raises(RungError) as caught:
        trial.passed(model, 60)
    assert words in caught.value.message
    assert model.closed and not model.active


def test_one_slot_that_fails_is_enough_and_the_others_are_cancelled() -> None:
    model = echo_model(slots=3, seconds_per_token=0.01)
    model.script = lambda request: "math" if request.prompt == "warm up" else "nonsense"
    with pytest.raises(RungError, match="nonsense"):
        trial.passed(model, 60)
    assert model.closed


def test_what_hangs_fails_the_rung_and_is_left() -> None:
    free = threading.Event()
    model = echo_model(slots=1, script=lambda request: "math", stuck=free)
    with pytest.raises(RungError, match=r"hangs: no sign of life for 0\.5 seconds"):
        trial.passed(model, 0.5)
    assert not model.closed and any_at_work(), "so that the process can tell that it must not wait"
    free.set()
    until(lambda: not any_at_work())


def test_slow_is_not_hung() -> None:
    model = echo_model(slots=1, script=lambda request: "search", seconds_per_token=0.3)
    trial.passed(model, 60)
    trial.passed(model, 0)


def test_an_engine_that_keeps_no_grammars_must_answer_all_the_same() -> None:
    info = ModelInfo("echo", "native", "echo", 4096, 2, keeps_grammars=False)
    trial.passed(EchoModel(info), 60)
    with pytest.raises(RungError, match="told to fail"):
        trial.passed(EchoModel(info, fail_after=1), 60)


# The ladder


def climb(*names: str, **settings: object) -> tuple[Loaded[Engine], list[Attempt]]:
    told: list[Attempt] = []

    async def main() -> Loaded[Engine]:
        wanted: dict[str, object] = {
            "model_fallbacks": ",".join(names),
            "slots": 2,
            "threads": 1,
            "model_device": "cpu",
        }
        loaded = await asyncio.to_thread(Loader(load_settings(**{**wanted, **settings})).load, told.append)
        await loaded.model.close()
        return loaded

    return asyncio.run(main()), told


@pytest.mark.real
def test_fault_b_a_gguf_whose_weights_are_no_numbers_leads_to_the_next_candidate(tmp_path: Path) -> None:
    """llama.cpp loads it, and answers past the grammar without an error."""
    bad = faulty(tmp_path / "bad.gguf", fill=NAN)
    loaded, told = climb(str(bad), "embedded")
    assert [(each.candidate, each.outcome) for each in told] == [(str(bad), "failed"), ("embedded", "loaded")]
    assert "loads and does not answer" in told[0].reason
    assert loaded.model.info.model == "embedded" and loaded.attempts == tuple(told)


@pytest.mark.real
def test_fault_b_a_gguf_whose_weights_are_infinite_is_not_served(tmp_path: Path) -> None:
    with pytest.raises(NothingLoads, match="loads and does not answer"):
        climb(str(faulty(tmp_path / "bad.gguf", fill=INFINITE)), slots=1)


@pytest.mark.torch
@pytest.mark.parametrize("fill", [NAN, INFINITE])
def test_fault_b_a_folder_whose_weights_are_no_numbers_leads_to_the_next_rung_and_candidate(
    tmp_path: Path, fill: float
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from tests.fakes import tiny

    folder = tiny.save("llama31", tmp_path / "bad")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], fill)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    good = str(tiny.save("llama31", tmp_path / "good"))
    _, told = climb(str(folder), good, model_load_strategies="bf16,cpu", context_length=1024)
    assert [(each.candidate, each.strategy, each.outcome) for each in told] == [
        *((str(folder), strategy, "failed") for strategy in ("bf16", "cpu", "8bit", "4bit", "fp16")),
        (good, "bf16", "loaded"),
    ]
    assert "not finite" in told[0].reason


@pytest.mark.torch
@pytest.mark.parametrize(
    "fault",
    [
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
        {"truncation": {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 5}},
        {"decoder": {"type": "Strip", "content": "a", "start": 99, "stop": 99}},
    ],
    ids=lambda fault: next(iter(fault)),
)
def test_fault_b_a_tokenizer_that_panics_leads_to_the_next_candidate(tmp_path: Path, fault: dict[str, Any]) -> None:
    from tests.fakes import tiny

    folder = tiny.save("llama31", tmp_path / "bad")
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fault))
    good = tiny.save("llama31", tmp_path / "good")
    _, told = climb(str(folder), str(good), model_load_strategies="cpu", context_length=1024)
    assert (told[0].candidate, told[0].outcome) == (str(folder), "failed")
    assert told[-1] == Attempt(str(good), "cpu", "loaded", "ok", told[-1].seconds)


def test_fault_b_an_engine_that_does_not_answer_leads_to_the_next_rung(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them loads: one panics, one writes nonsense, one hangs, one answers."""
    free = threading.Event()
    models = [
        echo_model(slots=2, script=raises(Panic("oh"))),
        echo_model(slots=2, script=lambda request: "nonsense"),
        echo_model(slots=2, script=lambda request: "math", stuck=free),
        echo_model(slots=2, script=lambda request: "math"),
    ]
    loads = iter(models)
    monkeypatch.setattr(engines, "load", lambda *_: next(loads))
    rungs = tuple(Rung(Candidate("echo", "echo"), strategy) for strategy in ("8bit", "4bit", "bf16", "cpu"))
    monkeypatch.setattr(Loader, "rungs", lambda *_: rungs)
    loaded, told = climb("echo", watchdog_timeout=3)
    assert [each.outcome for each in told] == ["failed", "failed", "failed", "loaded"]
    assert loaded.rung == rungs[3]
    assert [model.closed for model in models] == [True, True, False, True]
    free.set()


@pytest.mark.real
@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"llama.block_count", struct.pack("<I", 513)),
        (b"llama.block_count", struct.pack("<I", 2**32 - 1)),
        (b"llama.attention.layer_norm_rms_epsilon", struct.pack("<f", NAN)),
        (b"llama.attention.head_count", struct.pack("<I", 0)),
        (b"llama.embedding_length", struct.pack("<I", 7)),
    ],
)
def test_row_32_absurd_metadata_leads_to_the_next_candidate(tmp_path: Path, key: bytes, value: bytes) -> None:
    bad = faulty(tmp_path / "bad.gguf")
    with bad.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        start = content.find(struct.pack("<Q", len(key)) + key)
        assert start > 0
        at = start + 8 + len(key) + 4  # behind its type
        content[at : at + len(value)] = value
    loaded, told = climb(str(bad), "embedded")
    assert [each.outcome for each in told] == ["failed", "loaded"] and told[0].reason
    assert loaded.rung.candidate.name == "embedded"
