"""What every test stands on: a clean environment, and the real model loaded once."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from filelock import FileLock
from httpx._config import DEFAULT_TIMEOUT_CONFIG

from router_backend.checkpoints.embedded import checkpoint
from router_backend.checkpoints.ladder import Candidate, Rung
from router_backend.engines.llamacpp import LlamaCppModel, load
from router_backend.settings import Settings, load_settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
# torch on one core, before it is imported: its threads wait for each other where cores are shared.
os.environ["OMP_NUM_THREADS"] = "1"
# httpx gives up after five seconds of silence, unless it is told otherwise: a busy machine takes longer.
DEFAULT_TIMEOUT_CONFIG.read = 60

_ALL_TORCH = re.compile(r"^pytestmark = \[?\s*pytest\.mark\.torch\b", re.MULTILINE)
_LONG = ("real", "torch", "browser", "slow")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files that need torch are not even read where none of their tests would run, so that it need not be there."""
    if "not torch" in config.option.markexpr and collection_path.name.startswith("test_"):
        return bool(_ALL_TORCH.search(collection_path.read_text("utf-8"))) or None
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests come first, then large ones, so that processes which share them end at about one time."""
    long = {item.path for item in items if any(item.get_closest_marker(name) for name in _LONG)}
    sizes = {path: path.stat().st_size for path in {item.path for item in items}}
    items.sort(key=lambda item: (item.path not in long, -sizes[item.path]))


@pytest.fixture(scope="session")
def nowhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder, for the tests that ask for none of their own: six thousand folders take their time."""
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(tmp_path_factory.mktemp("hypothesis"))
    folder = tmp_path_factory.mktemp("nowhere")
    yield folder
    assert not list(folder.iterdir()), "a test wrote into the folder that it ran in: let it ask for tmp_path"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, nowhere: Path) -> None:
    """No variable and no `.env` of the developer's reaches a test, which runs in its `tmp_path` if it asks for that."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else nowhere)


@pytest.fixture(scope="session")
def embedded() -> Iterator[LlamaCppModel]:
    """The embedded checkpoint, really loaded, four slots."""
    model = load(Rung(Candidate("embedded", "embedded"), "gguf"), load_settings(), checkpoint())
    yield model
    model.close()


def _made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that one of the processes which share the tests makes, for all of them."""
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    shared = factory.getbasetemp() if alone else factory.getbasetemp().parent
    folder = shared / name / "checkpoint"
    with FileLock(shared / f"{name}.lock"):
        if not folder.is_dir():
            making = folder.with_name("making")
            make(making)
            making.rename(folder)
    return folder


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merged checkpoint as people bring them, a folder of safetensors, of the embedded model's base."""
    from tests.fakes.gguf_base import as_folder  # it needs transformers

    return _made_once(tmp_path_factory, "small", as_folder)


@pytest.fixture(scope="session")
def shallow_checkpoint(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small checkpoint's first six layers of thirty, for tests that its knowledge does not matter to."""
    from tests.fakes.gguf_base import shallow

    return _made_once(tmp_path_factory, "shallow", partial(shallow, small_checkpoint))
