"""Disks that are really full or really read-only, each in a mount namespace of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import huggingface_hub
import pytest
from huggingface_hub import constants

from router_backend.checkpoints import embedded, hub
from router_backend.checkpoints.ladder import Candidate
from router_backend.settings import load_settings
from tests.fakes.hub import FakeHub, fake_hub, write_checkpoint
from tests.fakes.running import process

ONE = Candidate("acme/one", "hub")
NAMESPACE = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
# For a shell: $0 is a size, $1 a folder, and the rest what is run there.
SMALL = 'mount -t tmpfs -o size="$0" none "$1"; '
READ_ONLY = 'mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"; '
EVERYTHING_READ_ONLY = f"mount -o remount,bind,ro /; {READ_ONLY}"
RUN = 'shift; exec "$@"'
RUN_AND_LIST = 'there="$1/router-backend"; shift; "$@" || code=$?; ls -A "$there"; exit $code'
# Fetches as often as it is told to; between two tries the disk is made larger, where it can be.
FETCH = """
import subprocess, sys
from router_backend.checkpoints import hub
from router_backend.errors import CandidateError
from router_backend.checkpoints.ladder import Candidate
from router_backend.settings import load_settings
url, cache, offline, tries = sys.argv[1:]
for number in range(int(tries)):
    if number:
        subprocess.run(["mount", "-o", "remount,size=4m", cache], check=True)
    try:
        settings = load_settings(hf_endpoint=url, hf_hub_offline=offline == "1", hub_timeout=5)
        folder = hub.fetch(Candidate("acme/one", "hub"), settings)
        print(sorted(each.name for each in folder.iterdir()), (folder / "model.safetensors").stat().st_size)
    except CandidateError as error:
        print(error.message)
"""


def within(mounts: str, folder: Path, *, size: str = "", run: str = RUN) -> list[str]:
    """What a command begins with that is run with these mounts, which nobody else sees."""
    return [*NAMESPACE, "sh", "-e", "-c", mounts + run, size, str(folder)]


def namespaces() -> bool:
    """Whether this machine lets us have one, and mount in it."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*within(SMALL, Path("/mnt"), size="4k"), "true"], capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(not namespaces(), reason="no mount namespaces here")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return folder


@pytest.fixture
def server(cache: Path, tmp_path: Path) -> Iterator[FakeHub]:
    with fake_hub() as served:
        served.add("acme/one", write_checkpoint(tmp_path / "one"))
        yield served
    huggingface_hub.close_session()


def fetch(mounts: list[str], server: FakeHub, cache: Path, *, offline: bool = False, tries: int = 1) -> list[str]:
    """What each try says."""
    environment = {"HF_HUB_CACHE": str(cache), "HOME": str(cache), "HF_HUB_OFFLINE": "0"}
    inherited = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    arguments = (server.url, str(cache), str(int(offline)), str(tries))
    command = [*mounts, sys.executable, "-W", "ignore", "-c", FETCH, *arguments]
    done = subprocess.run(
        command, env=inherited | environment, cwd=cache.parent, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.splitlines()


def whole(server: FakeHub) -> str:
    files = ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
    return f"{files} {(server.repos['acme/one'].folder / 'model.safetensors').stat().st_size}"


def test_row_25_a_disk_that_is_too_small_is_told_before_anything_is_fetched(server: FakeHub, cache: Path) -> None:
    (said,) = fetch(within(SMALL, cache, size="4k"), server, cache)
    assert said.startswith("the download needs 0.00 GB of disk, 0.00 GB free in ") and "HF_HOME" in said
    assert not [asked for asked in server.paths(".safetensors") if asked.host == "store"]


def test_row_25_a_disk_that_becomes_full_leaves_nothing_that_is_used(server: FakeHub, cache: Path) -> None:
    """There is room for the bytes, and none for the pages that they take: the last files do not get in."""
    first, second = fetch(within(SMALL, cache, size="16k"), server, cache, tries=2)
    assert first.startswith(f"cannot keep acme/one in {cache} (No space left on device): make room there, or let HF_")
    assert second == whole(server), "and with more room it goes on"


def test_row_25_a_read_only_cache_that_lacks_something(server: FakeHub, cache: Path) -> None:
    (empty,) = fetch(within(READ_ONLY, cache), server, cache)
    folder = hub.fetch(ONE, load_settings(hf_endpoint=server.url, hf_hub_offline=False))
    blob = (folder / "model.safetensors").resolve()
    (folder / "model.safetensors").unlink()
    blob.rename(blob.with_name(f"{blob.name}.part"))
    (half,) = fetch(within(READ_ONLY, cache), server, cache)
    for said in (empty, half):
        assert said == (
            f"cannot keep acme/one in {cache} (Read-only file system): "
            "make room there, or let HF_HOME name another folder"
        )


def test_row_25_a_read_only_cache_that_is_whole(server: FakeHub, cache: Path) -> None:
    hub.fetch(ONE, load_settings(hf_endpoint=server.url, hf_hub_offline=False))
    for offline in (False, True):
        assert fetch(within(READ_ONLY, cache), server, cache, offline=offline) == [whole(server)]


def test_row_25_it_serves_where_nothing_can_be_written(tmp_path: Path) -> None:
    mounts = within(EVERYTHING_READ_ONLY, tmp_path)
    with process(folder=tmp_path, within=mounts, ENGINE="echo", PORT="0") as running:
        url = running.ready()
        answer = httpx.post(f"{url}/v1/generate", json={"prompt": "x", "output": "text"})
        assert answer.json() == {"text": "x"}
        assert httpx.get(f"{url}/console").status_code == httpx.get(f"{url}/docs").status_code == 200
        assert running.stop() == 0
        assert "Traceback" not in running.output


@pytest.mark.real
def test_row_25_the_embedded_model_where_nothing_can_be_written(tmp_path: Path) -> None:
    """Merged before, it is served; else the reason says what to do."""
    embedded.checkpoint()
    mounts = within(EVERYTHING_READ_ONLY, tmp_path)
    asked = ("--text", "--max-new-tokens", "2", "hello")
    told = {"MODEL_REPO": "embedded", "THREADS": "1", "SLOTS": "1"}
    with process(*asked, folder=tmp_path, command="generate", within=mounts, **told, HF_HOME=constants.HF_HOME) as good:
        assert good.wait(100) == 0 and "2 tokens in" in good.output
    with process(*asked, folder=tmp_path, command="generate", within=mounts, **told, HF_HOME=str(tmp_path)) as bad:
        assert bad.wait(100) == 1 and "Traceback" not in bad.output
        assert f"cannot keep the embedded model in {tmp_path}/router-backend (Read-only file system)" in bad.output


@pytest.mark.real
def test_row_25_the_embedded_model_where_the_disk_is_full(tmp_path: Path) -> None:
    mounts = within(SMALL, tmp_path, size="8m", run=RUN_AND_LIST)
    asked = ("--text", "--max-new-tokens", "2", "hello")
    told = {"MODEL_REPO": "embedded", "HF_HOME": str(tmp_path)}
    with process(*asked, folder=tmp_path.parent, command="generate", within=mounts, **told) as running:
        assert running.wait(100) == 1 and "Traceback" not in running.output
        assert f"cannot keep the embedded model in {tmp_path}/router-backend" in running.output
        assert ".gguf" not in running.output, "nothing half-written is left"
