"""What every test stands on: a clean environment, and the real model loaded once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from router_backend.engines.llamacpp import LlamaCppModel, load
from router_backend.ladder import Candidate, Rung
from router_backend.settings import Settings, load_settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable and no `.env` of the developer's reaches a test."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def embedded() -> Iterator[LlamaCppModel]:
    """The embedded checkpoint, really loaded, four slots."""
    model = load(Rung(Candidate("embedded", "embedded"), "gguf"), load_settings())
    yield model
    model.close()
