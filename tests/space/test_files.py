"""The Space's own files: what the hub reads, what it installs, and what it runs."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import gradio
import httpx
import pytest
import yaml
from packaging.requirements import Requirement

from router_backend.settings import DEFAULT_FALLBACKS, Settings
from router_tools.deploy import state
from tests.fakes.running import answers, until
from tests.structure import packages

ROOT = Path(__file__).parents[2]
# "Spaces Configuration Reference" of the hub's documentation; `license` is of every repository's card.
DOCUMENTED = {
    *("title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "python_version", "app_file", "app_port"),
    *("base_path", "suggested_hardware", "suggested_storage", "short_description", "models", "datasets", "tags"),
    *("thumbnail", "pinned", "header", "fullWidth", "hf_oauth", "hf_oauth_scopes", "hf_oauth_expiration_minutes"),
    *("disable_embedding", "startup_duration_timeout", "custom_headers", "preload_from_hub", "license"),
}
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
# What the hub gives every Space, or its libraries read.
NOT_OURS = {"GRADIO_ANALYTICS_ENABLED", "GRADIO_SSR_MODE"}


@pytest.fixture(scope="module")
def front() -> dict[str, Any]:
    head = (ROOT / "README.md").read_text("utf-8").split("---\n")[1]
    found: dict[str, Any] = yaml.safe_load(head)
    return found


def test_the_front_matter_has_documented_keys_only(front: dict[str, Any]) -> None:
    assert front.keys() <= DOCUMENTED
    assert {front["colorFrom"], front["colorTo"]} <= COLOURS
    assert len(front["short_description"]) <= 60
    assert (ROOT / front["app_file"]).is_file()


def test_the_front_matter_says_what_the_project_is_tested_with(front: dict[str, Any]) -> None:
    assert front["sdk"] == "gradio"
    assert front["sdk_version"] == gradio.__version__
    assert isinstance(front["python_version"], str)  # 3.10 as a number would be 3.1
    assert front["python_version"] == "3.12"
    assert front["base_path"] == "/gradio"
    assert front["models"] == DEFAULT_FALLBACKS.split(",")


def test_the_declared_state_is_one_that_the_server_reads(front: dict[str, Any]) -> None:
    wanted = state.declared(ROOT)
    known = {name.upper() for name in Settings.model_fields} | NOT_OURS
    assert {*wanted.variables, *wanted.secrets} <= known
    assert wanted.hardware == front["suggested_hardware"] == "zero-a10g"
    assert not {*wanted.variables} & {"HF_TOKEN", "ROUTER_API_KEYS", "ADMIN_KEY"}


def pins() -> dict[str, str]:
    lines = [line.strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    wanted = [line for line in lines if line and not line.startswith("#")]
    return {re.split(r"[=<>]", line)[0]: line for line in wanted}


def test_the_pins_lie_in_the_ranges_of_the_package() -> None:
    ranges = [Requirement(line) for line in requires("router-backend") or []]
    pinned = {name: line.partition("==")[2] for name, line in pins().items()}
    assert [name for name, exact in pinned.items() if not exact] == []
    held = [each for each in ranges if pinned.get(each.name)]
    assert len({each.name for each in held}) >= 12
    assert [str(each) for each in held if pinned[each.name] not in each.specifier] == []


def test_the_requirements_resolve_on_the_spaces_python(front: dict[str, Any], tmp_path: Path) -> None:
    """With Gradio and a torch that ZeroGPU has; nothing is built or downloaded but metadata."""
    (tmp_path / "more.txt").write_text(f"gradio[oauth]=={front['sdk_version']}\ntorch>=2.8,<2.12\n")
    options = ("--python-version", front["python_version"], "--python-platform", "x86_64-manylinux_2_35")
    quiet = ("--quiet", "--no-header", "--no-annotate", "--no-python-downloads", "--only-binary", ":all:")
    command = [sys.executable, "-m", "uv", "pip", "compile", *options, *quiet]
    done = subprocess.run(
        [*command, str(ROOT / "requirements.txt"), "more.txt"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
    )
    if done.returncode and re.search(r"error sending request|failed to fetch|client error", done.stderr, re.IGNORECASE):
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stderr
    assert "llama-cpp-python" not in done.stdout


@pytest.fixture
def space(tmp_path: Path) -> Path:
    """A folder with what `deploy` uploads, and nothing else."""
    folder = tmp_path / "space"
    for name in state.files(ROOT):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    return folder


def environment(space: Path, **more: str) -> dict[str, str]:
    """Without the developer's: what is imported comes from the folder or from what is installed."""
    return {"PATH": os.environ["PATH"], "HOME": str(space.parent), "HF_HUB_OFFLINE": "1", **more}


def test_nothing_is_uploaded_that_the_space_does_not_need(space: Path) -> None:
    there = {path.relative_to(space).parts[0] for path in space.rglob("*") if path.is_file()}
    assert there == {"app.py", "requirements.txt", "README.md", "LICENSE", "router_backend"}
    assert not (space / "router_tools").exists()
    adapter = space / "router_backend/checkpoints/embedded/adapter/adapter_model.safetensors"
    sizes = {path: path.stat().st_size for path in space.rglob("*") if path.is_file()}
    assert sum(sizes.values()) - sizes[adapter] < 2_000_000


@pytest.mark.slow  # it imports Gradio anew
def test_the_uploaded_files_alone_start_and_answer(space: Path) -> None:
    where = subprocess.run(
        [sys.executable, "-c", "import router_backend; print(router_backend.__file__)"],
        capture_output=True,
        text=True,
        cwd=space,
        env=environment(space),
    )
    assert Path(where.stdout.strip()).is_relative_to(space.resolve())
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    given = environment(space, ENGINE="echo", HOST="127.0.0.1", PORT=str(port))
    with (space.parent / "log").open("w") as log:
        running = subprocess.Popen(
            [sys.executable, "-W", "ignore", "app.py"], cwd=space, env=given, stdout=log, stderr=log
        )
    try:
        url = f"http://127.0.0.1:{port}"
        until(lambda: answers(f"{url}/health") or running.poll() is not None, 120)
        body = {"prompt": "one two three", "output": "text"}
        answer = httpx.post(f"{url}/v1/generate", json=body, timeout=30)
        assert answer.status_code == 200, (space.parent / "log").read_text()
        assert answer.json()["text"]
        assert httpx.get(f"{url}/gradio/", timeout=60).status_code == 200
        assert httpx.get(f"{url}/console", timeout=30).status_code == 200
    finally:
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 0


def test_what_the_space_imports_is_what_it_installs() -> None:
    lines = "\n".join((ROOT / name).read_text("utf-8") for name in state.files(ROOT) if name.endswith(".py"))
    imported = set(re.findall(r"^(?:from|import) ([a-z_0-9]+)", lines, re.MULTILINE))
    distributions = packages()
    # A cluster is not run on a Space.
    needed = imported - sys.stdlib_module_names - {"router_backend", "ray"}
    assert needed >= {"fastapi", "gguf", "torch", "transformers"} and "xllamacpp" in pins()
    # Of fastapi, huggingface-hub, pydantic, transformers and torch.
    with_others = {
        "anyio",
        "httpx2",
        "jinja2",
        "pydantic-core",
        "pyyaml",
        "starlette",
        "tokenizers",
        "typing-extensions",
    }
    installed = {*pins(), "gradio", *with_others}  # Gradio is the one of sdk_version
    assert [name for name in needed if not distributions[name] & installed] == []
