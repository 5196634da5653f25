"""What every test stands on: a clean environment, and the real model loaded once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from router_backend.checkpoints.embedded import base
from router_backend.checkpoints.ladder import Candidate, Rung
from router_backend.engines.llamacpp import LlamaCppModel, load
from router_backend.settings import Settings, load_settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable and no `.env` of the developer's reaches a test."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch on one core: tiny models are slower on more, and so are their neighbours."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def embedded() -> Iterator[LlamaCppModel]:
    """The embedded checkpoint, really loaded, four slots."""
    model = load(Rung(Candidate("embedded", "embedded"), "gguf"), load_settings())
    yield model
    model.close()


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merged checkpoint as people bring them, a folder of safetensors, of the embedded model's base."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    torch.set_num_threads(1)  # more of them wait for each other where cores are shared
    gguf, folder = base(), tmp_path_factory.mktemp("small") / "checkpoint"
    plain = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=plain, dtype=torch.bfloat16
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    return folder
