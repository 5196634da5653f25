from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, hf_hub_download, snapshot_download

from router_backend.checkpoints import embedded, hub
from router_backend.checkpoints.description import tokenizer_folder
from router_backend.checkpoints.hub import Hub
from router_backend.checkpoints.hub.api import HubApi
from router_backend.checkpoints.hub.write import hub_access
from router_backend.checkpoints.ladder import (
    Attempt,
    Candidate,
    Loaded,
    NothingLoads,
    Rung,
    candidates,
    first_that_loads,
    parse_candidate,
    rungs,
)
from router_backend.checkpoints.machine import Machine
from router_backend.errors import CandidateError, HubError, SettingsError
from router_backend.service.loader import Loader
from router_backend.settings import DEFAULT_FALLBACKS, Settings, load_settings
from tests.fakes.hub import SIGNATURE, FakeHub, Repo, fake_hub, write_checkpoint, write_safetensors
from tests.fakes.running import until

TOKEN = "hf_NEVERSHOWN"
ONE = Candidate("acme/one", "hub")
WANTED = {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"}
HERE = Machine("x86_64", 2, 64 << 30, 32 << 30)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "one")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own; and the library, which reads the environment when it is imported, is not offline."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "cache"


@pytest.fixture
def server(cache: Path, checkpoint: Path) -> Iterator[FakeHub]:
    with fake_hub() as served:
        served.add("acme/one", checkpoint)
        yield served
    huggingface_hub.close_session()


def settings_for(server: FakeHub, **rest: object) -> Settings:
    return load_settings(**{"hf_endpoint": server.url, "hf_hub_offline": False, "hub_timeout": 5, **rest})


def snapshot(repo: str, commit: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "snapshots" / commit


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def same(folder: Path, other: Path) -> bool:
    return all((folder / name).read_bytes() == (other / name).read_bytes() for name in names_in(folder))


def trouble(server: FakeHub, candidate: Candidate = ONE, **rest: object) -> str:
    """What fetching says; describing says the same, where the trouble is there already."""
    with pytest.raises(CandidateError) as caught:
        hub.fetch(candidate, settings_for(server, **rest))
    assert TOKEN not in caught.value.message and SIGNATURE not in caught.value.message
    return caught.value.message


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"

# What is fetched


def test_row_26_only_what_is_needed_is_fetched_and_it_is_whole(server: FakeHub, checkpoint: Path) -> None:
    folder = hub.fetch(ONE, settings_for(server))
    assert names_in(folder) == WANTED
    assert same(folder, checkpoint)
    assert not list(folder.parents[1].rglob("*.incomplete"))


def test_row_26_code_is_fetched_only_when_it_is_trusted(server: FakeHub) -> None:
    folder = hub.fetch(ONE, settings_for(server, trust_remote_code=True))
    assert names_in(folder) == WANTED | {"modeling.py"}


def test_all_parts_of_large_weights(server: FakeHub, tmp_path: Path) -> None:
    whole = write_checkpoint(tmp_path / "sharded", shards=3)
    server.add("acme/sharded", whole)
    folder = hub.fetch(Candidate("acme/sharded", "hub"), settings_for(server))
    parts = {f"model-0000{part}-of-00003.safetensors" for part in (1, 2, 3)}
    assert names_in(folder) == WANTED - {"model.safetensors"} | parts | {"model.safetensors.index.json"}
    assert same(folder, whole)


def test_a_second_fetch_only_asks_for_the_listing(server: FakeHub) -> None:
    first = hub.fetch(ONE, settings_for(server))
    server.asked.clear()
    assert hub.fetch(ONE, settings_for(server)) == first
    assert [asked.path.partition("?")[0] for asked in server.asked] == ["/api/models/acme/one/revision/main"]


def test_the_cache_is_huggingface_hubs_own(server: FakeHub, cache: Path, checkpoint: Path) -> None:
    folder = hub.fetch(ONE, settings_for(server))
    found = hf_hub_download("acme/one", "model.safetensors", local_files_only=True)
    assert Path(found) == folder / "model.safetensors"
    assert Path(snapshot_download("acme/one", local_files_only=True)) == folder
    # And the other way round: what the library fetched from this hub is not fetched again.
    shutil.rmtree(cache)
    library = snapshot_download("acme/one", endpoint=server.url, token=False)
    server.asked.clear()
    assert hub.fetch(ONE, settings_for(server)) == Path(library)
    assert not server.paths(".safetensors")


def test_describing_reads_headers_and_no_weights(server: FakeHub, tmp_path: Path) -> None:
    server.add("acme/sharded", write_checkpoint(tmp_path / "sharded", shards=2))
    known = Hub(settings_for(server)).describe(Candidate("acme/sharded", "hub"))
    # Two blocks of four 8x8 and three 8x16 matrices; twice 64x8 embeddings, three norms of 8.
    assert (known.linear, known.matrices, known.rows) == (2 * (4 * 64 + 3 * 128), 14, 2 * (4 * 8 + 2 * 16 + 8))
    assert known.other == 2 * 64 * 8 + 3 * 8
    assert known.config["hidden_size"] == 8 and known.quantized is None
    assert known.stored_bytes == sum(path.stat().st_size for path in (tmp_path / "sharded").glob("*.safetensors"))
    assert all(asked.range for asked in server.paths(".safetensors"))
    assert not Path(constants.HF_HUB_CACHE).exists()


def test_a_hub_without_ranges(server: FakeHub, checkpoint: Path) -> None:
    server.repos["acme/one"].ranges = False
    assert Hub(settings_for(server)).describe(ONE).linear
    assert same(hub.fetch(ONE, settings_for(server)), checkpoint)


# Revisions


def test_a_pinned_branch_tag_or_commit(server: FakeHub, checkpoint: Path) -> None:
    commit = server.repos["acme/one"].commit
    for revision in ("main", "v1", commit):
        folder = hub.fetch(Candidate(f"acme/one@{revision}", "hub"), settings_for(server))
        assert folder.name == commit
    assert {path.name for path in (folder.parents[1] / "refs").iterdir()} == {"main", "v1"}


def test_a_revision_that_is_not_there(server: FakeHub) -> None:
    assert trouble(server, Candidate("acme/one@v9", "hub")) == ("acme/one has no revision v9: check what follows the @")


def test_a_pinned_commit_that_is_cached_needs_no_hub(server: FakeHub) -> None:
    pinned = Candidate(f"acme/one@{server.repos['acme/one'].commit}", "hub")
    folder = hub.fetch(pinned, settings_for(server))
    server.asked.clear()
    assert Hub(settings_for(server)).describe(pinned).linear
    assert hub.fetch(pinned, settings_for(server)) == folder
    assert not server.asked


# Offline


def test_row_25_offline_the_cache_is_used_and_nothing_is_asked(server: FakeHub) -> None:
    folder = hub.fetch(ONE, settings_for(server))
    server.asked.clear()
    offline = settings_for(server, hf_hub_offline=True)
    assert hub.fetch(ONE, offline) == folder
    assert Hub(offline).describe(ONE).linear
    assert trouble(server, Candidate("acme/two", "hub"), hf_hub_offline=True) == (
        "HF_HUB_OFFLINE is set, and acme/two is not in the cache"
    )
    assert not server.asked


def test_row_25_offline_half_a_copy_is_not_loaded(server: FakeHub, tmp_path: Path) -> None:
    server.add("acme/two", write_checkpoint(tmp_path / "two", shards=3))
    two = Candidate("acme/two", "hub")
    folder = hub.fetch(two, settings_for(server))
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert trouble(server, two, hf_hub_offline=True) == (
        "HF_HUB_OFFLINE is set, and the copy of acme/two in the cache cannot be used: it is incomplete: "
        "1 of 3 weight files are missing (model-00002-of-00003.safetensors)"
    )
    assert hub.fetch(two, settings_for(server)) == folder  # and online it is made whole
    assert hub.fetch(two, settings_for(server, hf_hub_offline=True)) == folder


def test_the_library_may_be_offline_by_itself(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert trouble(server).startswith("HF_HUB_OFFLINE is set, and acme/one is not in the cache")
    assert not server.asked


def test_a_folder_needs_no_hub(server: FakeHub, checkpoint: Path) -> None:
    here = Candidate(str(checkpoint), "folder")
    assert hub.fetch(here, settings_for(server)) == checkpoint
    assert Hub(settings_for(server)).describe(here).linear
    assert not server.asked


def test_row_25_an_unreachable_hub_leaves_what_is_cached(server: FakeHub, caplog: pytest.LogCaptureFixture) -> None:
    folder = hub.fetch(ONE, settings_for(server))
    server.close()
    caplog.set_level(logging.INFO)
    assert hub.fetch(ONE, settings_for(server)) == folder
    assert "acme/one is taken from the cache" in caplog.text


# Access


def test_a_private_repository(server: FakeHub, checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server.add("acme/private", checkpoint, token=TOKEN)
    private = Candidate("acme/private", "hub")
    host = server.url.removeprefix("http://")
    assert trouble(server, private) == (
        f"no repository acme/private on {host}, or it is private: check the name; "
        "HF_TOKEN is not set, and a private one needs it"
    )
    assert trouble(server, private, hf_token="hf_wrong") == (
        f"{host} does not accept the token in use: HF_TOKEN is wrong or has expired, make a new one"
    )
    assert same(hub.fetch(private, settings_for(server, hf_token=TOKEN)), checkpoint)
    assert {asked.token for asked in server.asked if asked.host == "store"} == {None}
    ours = [str(vars(record)) for record in caplog.records if record.name.startswith("router_backend")]
    assert TOKEN not in caplog.text and SIGNATURE not in "".join(ours)


def test_no_such_repository(server: FakeHub) -> None:
    assert "no repository acme/none on 127.0.0.1" in trouble(server, Candidate("acme/none", "hub"))
    said = trouble(server, Candidate("acme/none", "hub"), hf_token=TOKEN)
    assert said.endswith("or it is private: check the name; the token in use may not read it")


def test_a_gated_repository(server: FakeHub, checkpoint: Path) -> None:
    server.add("acme/gated", checkpoint, gated=True)
    gated = Candidate("acme/gated", "hub")
    assert "acme/gated is gated: ask for access on its page" in trouble(server, gated)
    assert trouble(server, gated).endswith("then set HF_TOKEN")
    assert trouble(server, gated, hf_token=TOKEN).endswith("the token in use belongs to an account without it")


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (403, {}, "forbids acme/one: give HF_TOKEN the right to read it"),
        (404, {}, "no repository acme/one"),
        (429, {"Retry-After": "77"}, "limits how often it is asked: try again in 77 seconds"),
        (429, {}, "limits how often it is asked: try again later"),
        (500, {}, "fails with HTTP 500 for acme/one: try again later"),
        (503, {"Retry-After": "soon"}, "fails with HTTP 503"),
    ],
)
def test_refusals(server: FakeHub, status: int, headers: dict[str, str], said: str) -> None:
    repo = server.repos["acme/one"]
    repo.status, repo.headers = status, headers
    assert said in trouble(server, hf_token=TOKEN, hub_timeout=2.5)


def test_a_refusal_that_passes_is_waited_for(server: FakeHub, checkpoint: Path) -> None:
    repo = server.repos["acme/one"]
    repo.status, repo.times, repo.headers = 429, 1, {"Retry-After": "1"}
    assert same(hub.fetch(ONE, settings_for(server)), checkpoint)


@pytest.mark.parametrize("token", ["hf_NEVER SHOWN", "hf_NEVERSHOWN\u00e9", "hf_NEVER\nSHOWN"])
def test_a_token_that_cannot_be_sent(server: FakeHub, token: str) -> None:
    assert trouble(server, hf_token=token) == "HF_TOKEN has characters that no token has: copy it again"


def test_a_name_that_is_none(server: FakeHub) -> None:
    for name in ("acme/../one", "acme/one two", "acme/", "acme/one/../two", "acme/one//two", "acme/one@../../x"):
        assert "is no name of a repository: write owner/name" in trouble(server, Candidate(name, "hub"))
    assert not server.asked


def test_what_is_no_hub(cache: Path, checkpoint: Path, server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fakes.hub.Repo.listing", lambda self, name: ["no", "hub"])
    assert trouble(server).endswith("does not answer as a hub does: check HF_ENDPOINT")


# A hub that hangs, breaks off, or lies


def test_row_25_nobody_listens(cache: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(CandidateError) as caught:
        hub.fetch(ONE, load_settings(hf_endpoint=f"http://127.0.0.1:{port}", hf_hub_offline=False))
    assert caught.value.message.startswith(f"cannot reach 127.0.0.1:{port} (")
    assert "check the network, or HF_ENDPOINT, and acme/one is not in the cache" in caught.value.message


def test_row_25_an_address_of_nobody(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(CandidateError) as caught:
        hub.fetch(ONE, load_settings(hf_endpoint="http://hub.invalid", hf_hub_offline=False))
    assert caught.value.message == (
        "cannot reach hub.invalid ([Errno -2] Name or service not known): check the network, or HF_ENDPOINT, "
        "and acme/one is not in the cache"
    )


@pytest.mark.parametrize("what", ["/api/models/", "config.json"])
def test_a_hub_that_hangs_is_given_up(server: FakeHub, what: str) -> None:
    server.repos["acme/one"].hangs = what
    start = time.monotonic()
    said = trouble(server, hub_timeout=1.5)
    assert time.monotonic() - start > 1.4
    assert "did not answer within 1.5 seconds (HUB_TIMEOUT): try again later" in said


@pytest.mark.parametrize("what", ["", "config.json", "model.safetensors"])
def test_a_hub_that_hangs_is_waited_for_once(server: FakeHub, checkpoint: Path, what: str) -> None:
    for name in ("acme/one", "acme/two", "acme/three"):
        server.add(name, checkpoint, hangs=what)
    settings = settings_for(
        server, model_fallbacks="acme/one,acme/two,acme/three,embedded", model_device="cpu", hub_timeout=1.5
    )
    loaded, attempts = climb(settings)
    assert loaded is not None and loaded.rung.candidate.name == "embedded"
    assert [(each.candidate, each.strategy, each.outcome) for each in attempts[:3]] == [
        (f"acme/{name}", "any", "failed") for name in ("one", "two", "three")
    ]
    assert attempts[0].seconds > 1.4
    assert [asked.path for asked in server.asked if what in asked.path and "acme/one" not in asked.path] == []


# Pieces of 256 KiB are written; what came of the next one when a transfer breaks off is fetched again.
CUT, KEPT = 700_000, 2 * (1 << 18)


@pytest.fixture
def large(server: FakeHub, tmp_path: Path) -> Repo:
    """Weights of 2 MB."""
    return server.add("acme/one", write_checkpoint(tmp_path / "large", vocabulary=1 << 16))


def test_an_interrupted_file_goes_on_where_it_stopped(server: FakeHub, large: Repo) -> None:
    large.cut_at, large.times = CUT, 1
    assert same(hub.fetch(ONE, settings_for(server)), large.folder)
    ranges = [asked.range for asked in server.paths(".safetensors") if asked.host == "store"]
    assert ranges[-1] == f"bytes={KEPT}-"


def test_row_25_the_next_process_goes_on_too(server: FakeHub, tmp_path: Path) -> None:
    """With the files that are complete: huggingface_hub begins the others anew."""
    repo = server.add("acme/two", write_checkpoint(tmp_path / "two", shards=2, vocabulary=1 << 16))
    two, first, second = Candidate("acme/two", "hub"), *(f"model-0000{part}-of-00002.safetensors" for part in (1, 2))
    sizes = {name: (repo.folder / name).stat().st_size for name in (first, second)}
    small, big = sorted(sizes, key=sizes.__getitem__)
    assert sizes[small] + 1000 < sizes[big]
    repo.cut_at = sizes[small] + 1000
    said = trouble(server, two)
    assert "broke off" in said or "did not answer within" in said  # as the library has given up by then, or not yet
    assert (snapshot("acme/two", repo.commit) / small).exists()
    repo.cut_at = None
    server.asked.clear()
    assert same(hub.fetch(two, settings_for(server)), repo.folder)
    assert {Path(asked.path).name.partition("?")[0] for asked in server.asked if asked.host == "store"} == {big}
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.incomplete")), "what was left is taken away"


def test_row_25_a_killed_process_leaves_nothing_that_is_loaded(server: FakeHub, tmp_path: Path) -> None:
    """Ended in the middle of the second of two weight files: offline there is no copy, online the rest is fetched."""
    whole = write_checkpoint(tmp_path / "two", shards=2)
    last = "model-00002-of-00002.safetensors"
    repo = server.add("acme/two", whole, hangs=f"main/{last}")
    candidate = Candidate("acme/two", "hub")
    repo.hangs = f"{repo.commit}/{last}"
    code = (
        "import sys; from router_backend.checkpoints import hub; "
        "from router_backend.checkpoints.ladder import Candidate; "
        "from router_backend.settings import load_settings; hub.describe = lambda *_, **__: None; "
        "hub.fetch(Candidate('acme/two', 'hub'), load_settings(hf_endpoint=sys.argv[1], hub_timeout=60))"
    )
    environment = {"HF_HUB_CACHE": str(Path(constants.HF_HUB_CACHE)), "HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    environment["PYTHONPATH"] = os.environ.get("PYTHONPATH", "")  # the code under test, where that is no installed one
    child = subprocess.Popen([sys.executable, "-c", code, server.url], env=environment, cwd=tmp_path)
    first = snapshot("acme/two", repo.commit) / "model-00001-of-00002.safetensors"
    until(lambda: first.exists() and len(server.paths(last)) > 0)
    child.kill()
    child.wait()
    repo.hangs = None
    assert "is not in the cache" in trouble(server, candidate, hf_hub_offline=True)
    server.asked.clear()
    assert same(hub.fetch(candidate, settings_for(server)), whole)
    assert not [asked for asked in server.paths(first.name) if asked.host == "store"]


def test_row_25_a_file_that_ends_too_early(server: FakeHub) -> None:
    server.repos["acme/one"].short_by = 100
    said = trouble(server)
    assert "less of a file of acme/one than it lists: try again" in said
    assert "is not in the cache" in trouble(server, hf_hub_offline=True)


def test_row_25_a_damaged_file_is_dropped(server: FakeHub, checkpoint: Path) -> None:
    server.repos["acme/one"].damaged = True
    assert trouble(server) == "model.safetensors arrived damaged (its hash is wrong): try again"
    assert not (snapshot("acme/one", server.repos["acme/one"].commit) / "model.safetensors").exists()
    assert "is not in the cache" in (said := trouble(server, hf_hub_offline=True)) or "cannot be used" in said
    server.repos["acme/one"].damaged = False
    assert same(hub.fetch(ONE, settings_for(server)), checkpoint)


def test_two_at_once_share_the_work(server: FakeHub, checkpoint: Path) -> None:
    folders: list[Path] = []
    threads = [threading.Thread(target=lambda: folders.append(hub.fetch(ONE, settings_for(server)))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 2 and folders[0] == folders[1] and same(folders[0], checkpoint)
    assert len([asked for asked in server.asked if asked.host == "store" and asked.range is None]) == 1


def test_progress_is_logged(server: FakeHub, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router_backend.checkpoints.hub.transfer._TELL_EVERY", 0.02)
    caplog.set_level(logging.INFO, "router_backend")
    hub.fetch(ONE, settings_for(server))
    said = [record.getMessage() for record in caplog.records if record.name.endswith(".hub.transfer")]
    assert said[0].startswith("fetching acme/one: 0.00 of 0.00 GB") and said[-1].startswith("fetched acme/one: ")
    assert len(said) >= 3


def test_row_25_no_room_on_the_disk(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(CandidateError, match=r"^the download needs 0\.00 GB of disk, 0\.00 GB free in .*HF_HOME"):
        Hub(settings_for(server)).describe(ONE)
    assert "the download needs" in trouble(server)
    assert not [asked for asked in server.paths(".safetensors") if asked.host == "store"]


def test_row_25_a_cache_that_cannot_be_written(server: FakeHub, cache: Path) -> None:
    cache.write_text("a file")
    assert trouble(server) == (
        f"cannot keep acme/one in {cache} (Not a directory): make room there, or let HF_HOME name another folder"
    )


def test_row_25_a_whole_cache_is_not_written(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hub.fetch(ONE, settings_for(server))

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "write_text", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert hub.fetch(ONE, settings_for(server)) == folder


def test_a_file_system_without_links(server: FakeHub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_SYMLINKS", "1")  # for the process that downloads
    folder = hub.fetch(ONE, settings_for(server))
    assert same(folder, checkpoint) and not any(path.is_symlink() for path in folder.iterdir())
    server.asked.clear()
    assert hub.fetch(ONE, settings_for(server)) == folder
    assert not server.paths(".safetensors")


def test_row_25_a_download_that_hangs_is_ended(server: FakeHub, large: Repo) -> None:
    """Described from what is in the cache, so that nothing but the process that downloads meets the silence."""
    folder = hub.fetch(ONE, settings_for(server))
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).resolve().unlink()
    (folder / "tokenizer.json").unlink()
    large.hangs = "tokenizer.json"
    assert "did not answer within 1.5 seconds (HUB_TIMEOUT): try again later" in trouble(server, hub_timeout=1.5)
    large.hangs = None
    assert same(hub.fetch(ONE, settings_for(server)), large.folder)


# A hub that means harm


@pytest.mark.parametrize(
    "name",
    [
        "../../../x.json",
        "/x.json",
        "a/../../x.json",
        "C:x.json",
        "..\\x.json",
        "a//x.json",
        "a\x1b]0;x\x07.json",
        "a\n.json",
    ],
)
def test_a_listing_that_leads_out_of_the_cache(server: FakeHub, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    files = [{**entry, "path": name} if entry["path"] == "tokenizer.json" else entry for entry in large_files(server)]
    server.repos["acme/one"].__dict__["files"] = files
    assert "would be kept outside of its folder" in trouble(server)
    assert not Path(constants.HF_HUB_CACHE).exists()


@pytest.mark.parametrize("oid", ["../../../../x", "/x", ""])
def test_a_hash_that_is_a_path(server: FakeHub, oid: str) -> None:
    server.repos["acme/one"].__dict__["files"] = [{**entry, "oid": oid} for entry in large_files(server)]
    assert "would be kept outside of its folder" in trouble(server)


def test_a_header_that_is_a_path(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing may be right, and the headers of a file another matter."""
    repo, right = server.repos["acme/one"], list(large_files(server))
    listed = repo.listing("acme/one")
    monkeypatch.setattr("tests.fakes.hub.Repo.listing", lambda self, name: listed)
    repo.__dict__["files"] = [{**entry, "oid": "../../../../x"} for entry in right]
    assert "etag is a path" in trouble(server)


def large_files(server: FakeHub) -> list[dict[str, Any]]:
    return server.repos["acme/one"].files


@pytest.mark.parametrize(
    ("endpoint", "sent"),
    [
        ("https://hub.example", True),
        ("http://127.0.0.1:9", True),
        ("http://localhost:9", True),
        ("http://[::1]:9", True),
        ("http://hub.example", False),
        ("http://127.0.0.1.hub.example", False),
        ("http://127.0.0.1@hub.example", False),
        ("http://10.0.0.1", False),
    ],
)
def test_a_token_is_sent_in_plain_text_to_this_machine_alone(cache: Path, endpoint: str, sent: bool) -> None:
    settings = load_settings(hf_endpoint=endpoint, hf_token=TOKEN, hf_hub_offline=False)
    assert HubApi(settings).environment["HF_TOKEN"] == (TOKEN if sent else "")
    if sent:
        assert hub_access(settings).token == TOKEN
    else:
        with pytest.raises(HubError, match="a token is sent over https only"):
            hub_access(settings)


# Folders of a repository


def test_a_folder_of_a_repository(server: FakeHub, tmp_path: Path) -> None:
    """Its tokenizer is in the folder above."""
    whole = tmp_path / "nested"
    inside = write_checkpoint(whole / "default")
    (inside / "tokenizer.json").rename(whole / "tokenizer.json")
    server.add("acme/nested", whole)
    candidate = parse_candidate("acme/nested/default@main", "acme")
    assert Hub(settings_for(server)).describe(candidate).linear
    folder = hub.fetch(candidate, settings_for(server))
    assert folder.name == "default" and names_in(folder) == WANTED - {"tokenizer.json"}
    assert tokenizer_folder(folder) == folder.parent and (folder.parent / "tokenizer.json").exists()
    assert hub.fetch(candidate, settings_for(server, hf_hub_offline=True)) == folder
    assert tokenizer_folder(inside) == whole
    for name in ("acme/nested", str(whole)):
        with pytest.raises(CandidateError, match="folders of it have weights: add /default to the name"):
            Hub(settings_for(server)).describe(parse_candidate(name, "acme"))
    assert trouble(server, Candidate("acme/nested/other", "hub")) == "acme/nested has no folder other"


def test_a_tokenizer_two_folders_above_the_weights(server: FakeHub, tmp_path: Path) -> None:
    whole = tmp_path / "nested"
    inside = write_checkpoint(whole / "default" / "fp16")
    (inside / "tokenizer.json").rename(whole / "tokenizer.json")
    server.add("acme/nested", whole)
    folder = hub.fetch(parse_candidate("acme/nested/default/fp16", "acme"), settings_for(server))
    assert tokenizer_folder(folder) == folder.parents[1] and (folder.parents[1] / "tokenizer.json").is_file()
    assert tokenizer_folder(inside) == inside, "on this machine no more than the next folder is looked at"


# What must not be loaded


def refuses(server: FakeHub, folder: Path, change: dict[str, str | None], said: str) -> None:
    """A checkpoint with other files, in a folder and on a hub: neither described nor fetched."""
    write_checkpoint(folder)
    for name, content in change.items():
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_text(content)
    server.add("acme/broken", folder)
    for candidate in (Candidate(str(folder), "folder"), Candidate("acme/broken", "hub")):
        with pytest.raises(CandidateError) as described:
            Hub(settings_for(server)).describe(candidate)
        assert said in described.value.message
        assert said in trouble(server, candidate)
    assert not [asked for asked in server.asked if asked.method == "GET" and asked.path.endswith((".bin", ".py"))]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model.safetensors": None}, "its weights are pickle files only (pytorch_model.bin)"),
        ({"config.json": '{"auto_map": {"AutoConfig": "modeling.Config"}}'}, "set TRUST_REMOTE_CODE=1 if you trust it"),
    ],
)
def test_row_26_pickles_and_code(server: FakeHub, tmp_path: Path, change: dict[str, str | None], said: str) -> None:
    refuses(server, tmp_path / "unsafe", change, said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model.safetensors": None, "pytorch_model.bin": None}, "it has no weights"),
        ({"config.json": "{'single'}"}, "config.json is broken"),
        ({"config.json": "[1]"}, "config.json is broken"),
        ({"config.json": None, "adapter_config.json": "{}"}, "(router-backend merge BASE ADAPTER OUT)"),
        ({"model.safetensors": None, "adapter_config.json": "{}"}, "it is a LoRA adapter, not a whole checkpoint"),
        (
            {"model.safetensors": POINTER},
            "model.safetensors is a git-lfs pointer, not the file itself: run `git lfs pull`",
        ),
        ({"tokenizer.json": POINTER}, "tokenizer.json is a git-lfs pointer"),
        ({"config.json": POINTER}, "config.json is a git-lfs pointer"),
        ({"config.json": None, "one.Q8_0.gguf": "GGUF"}, "name one of them, as in repo:one.Q8_0.gguf"),
        ({"config.json": None}, "it has no config.json"),
        ({"model.safetensors": "no safetensors at all"}, "is no safetensors file, or cut short"),
        ({"model.safetensors": "\x04\0\0\0\0\0\0\0{no}"}, "its header is broken"),
        ({"model.safetensors": "tiny"}, "is no safetensors file, or cut short"),
        ({"model.safetensors": None, "model.safetensors.index.json": "{}"}, "it names no files"),
    ],
)
def test_row_20_broken_checkpoints(server: FakeHub, tmp_path: Path, change: dict[str, str | None], said: str) -> None:
    refuses(server, tmp_path / "broken", change, said)


def test_row_25_a_folder_that_was_half_copied(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "half")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(CandidateError, match=f"cut short: {len(whole) - 10} of {len(whole)} bytes"):
        hub.fetch(Candidate(str(folder), "folder"), load_settings())


def test_row_26_code_of_its_own_is_trusted_only_on_demand(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "coded", auto_map={"AutoConfig": "modeling.Config"})
    here = Candidate(str(folder), "folder")
    assert hub.fetch(here, load_settings(trust_remote_code=True)) == folder


@pytest.mark.parametrize(
    ("section", "method", "packed"),
    [
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq", ".qweight"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "mxfp4", "_blocks"),
        ({"quantization_config": {"load_in_4bit": True}}, "bitsandbytes", ".weight.absmax"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors", ".weight_packed"),
        ({}, None, ""),
    ],
)
def test_what_is_quantised_already(tmp_path: Path, section: dict[str, Any], method: str | None, packed: str) -> None:
    folder = write_checkpoint(tmp_path / "quantised", **section)
    if section:  # of each method a name that its packed tensors have
        write_safetensors(folder / "model.safetensors", {f"model.layers.0.mlp.up_proj{packed}": (16, 4)})
    assert Hub(load_settings()).describe(Candidate(str(folder), "folder")).quantized == method


@pytest.mark.parametrize("method", ["awq", "gptq", "compressed-tensors", "bitsandbytes", None])
def test_what_says_that_it_is_quantised_and_is_not(tmp_path: Path, method: str | None) -> None:
    folder = write_checkpoint(tmp_path / "left over", quantization_config={"quant_method": method} if method else {})
    method = method or "bitsandbytes"
    with pytest.raises(
        CandidateError, match=f"config.json says .* quantised by {method} .* model.safetensors holds full"
    ):
        Hub(load_settings()).describe(Candidate(str(folder), "folder"))


@pytest.mark.parametrize("name", ["q_proj.qweight", "q_proj.weight_packed", "q_proj.weight.absmax"])
def test_what_is_quantised_and_does_not_say_so(tmp_path: Path, name: str) -> None:
    folder = write_checkpoint(tmp_path / "packed")
    write_safetensors(folder / "model.safetensors", {f"model.layers.0.self_attn.{name}": (8, 1)})
    with pytest.raises(CandidateError, match=f"holds quantised weights .*{name}.* config.json does not say how"):
        Hub(load_settings()).describe(Candidate(str(folder), "folder"))


# GGUF


@pytest.fixture
def ggufs(server: FakeHub, tmp_path: Path) -> Path:
    folder = tmp_path / "ggufs"
    (folder / "quants").mkdir(parents=True)
    for name in ("one.Q8_0.gguf", "quants/one.Q4_0.gguf", "big-00001-of-00002.gguf", "big-00002-of-00002.gguf"):
        (folder / name).write_bytes(b"GGUF" + name.encode() * 100)
    server.add("acme/ggufs", folder)
    return folder


@pytest.mark.parametrize("name", ["one.Q8_0.gguf", "quants/one.Q4_0.gguf"])
def test_one_gguf_file_of_a_repository(server: FakeHub, ggufs: Path, name: str) -> None:
    candidate = Candidate(f"acme/ggufs:{name}", "hub-gguf")
    assert Hub(settings_for(server)).describe(candidate).stored_bytes == (ggufs / name).stat().st_size
    path = hub.fetch(candidate, settings_for(server))
    assert path.read_bytes() == (ggufs / name).read_bytes()
    assert names_in(snapshot("acme/ggufs", server.repos["acme/ggufs"].commit)) == {name}
    server.asked.clear()
    assert hub.fetch(candidate, settings_for(server, hf_hub_offline=True)) == path
    assert not server.asked


def test_a_gguf_in_parts(server: FakeHub, ggufs: Path) -> None:
    candidate = Candidate("acme/ggufs@main:big-00001-of-00002.gguf", "hub-gguf")
    path = hub.fetch(candidate, settings_for(server))
    assert path.name == "big-00001-of-00002.gguf"
    assert names_in(path.parent) == {"big-00001-of-00002.gguf", "big-00002-of-00002.gguf"}


def test_a_gguf_that_is_not_there(server: FakeHub, ggufs: Path) -> None:
    candidate = Candidate("acme/ggufs:two.gguf", "hub-gguf")
    with pytest.raises(CandidateError, match=r"acme/ggufs has no file two.gguf; it has big-00001-of-00002.gguf, "):
        hub.fetch(candidate, settings_for(server))


# The whole ladder over a hub


def climb(settings: Settings) -> tuple[Loaded[str] | None, list[Attempt]]:
    """Walks with the real hub, and with fetching as all that loading is."""
    told: list[Attempt] = []
    known = Hub(settings)

    def load(rung: Rung) -> str:
        return str(hub.fetch(rung.candidate, settings)) if rung.candidate.kind == "hub" else rung.candidate.name

    def rungs_of(candidate: Candidate) -> tuple[Rung, ...]:
        if candidate.kind == "embedded":
            return rungs(candidate, settings, HERE)
        return rungs(candidate, settings, HERE, describe=known.describe)

    try:
        return first_that_loads(candidates(settings), rungs_of, load, report=told.append), told
    except NothingLoads:
        return None, told


@pytest.mark.parametrize(
    "troubles",
    [
        {"token": "another"},
        {"gated": True},
        {"status": 401},
        {"status": 403},
        {"status": 404},
        {"status": 429, "headers": {"Retry-After": "3600"}},
        {"status": 500},
        {"hangs": ""},
        {"short_by": 64},
        {"damaged": True},
        {"cut_at": 2000},
    ],
    ids=str,
)
def test_row_20_every_trouble_of_a_hub_leads_to_the_next_candidate(
    server: FakeHub, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, troubles: dict[str, Any]
) -> None:
    caplog.set_level(logging.DEBUG, "router_backend")
    server.add("acme/bad", checkpoint, **troubles)
    good = write_checkpoint(tmp_path / "good")
    settings = settings_for(
        server, model_fallbacks=f"acme/bad,{good}", model_device="cpu", hf_token=TOKEN, hub_timeout=1.5
    )
    loaded, attempts = climb(settings)
    assert loaded is not None and loaded.rung.candidate.name == str(good)
    assert [(each.candidate, each.outcome) for each in attempts[:-1]] == [("acme/bad", "failed")]
    everything = json.dumps([str(each) for each in attempts]) + caplog.text
    assert TOKEN not in everything and SIGNATURE not in everything


def test_later_candidates_are_not_asked_for(server: FakeHub, checkpoint: Path) -> None:
    server.add("acme/two", checkpoint)
    loaded, attempts = climb(settings_for(server, model_fallbacks="acme/one,acme/two", model_device="cpu"))
    assert loaded is not None and loaded.rung == Rung(ONE, "8bit", needs=loaded.rung.needs)
    assert len(attempts) == 1
    assert not [asked for asked in server.asked if "acme/two" in asked.path]


def test_nothing_is_asked_where_no_rung_is_left(server: FakeHub) -> None:
    loaded, attempts = climb(settings_for(server, model_repo="acme/one", model_device="cuda"))
    assert loaded is None and {each.outcome for each in attempts} == {"skipped"}
    assert not server.asked


def test_the_address_is_told_without_what_is_secret_in_it(cache: Path) -> None:
    api = HubApi(load_settings(hf_endpoint=f"http://me:{TOKEN}@127.0.0.1:9", hf_hub_offline=False))
    assert api.host == "127.0.0.1:9"


@pytest.mark.real
def test_a_real_checkpoint_comes_whole(server: FakeHub, shallow_checkpoint: Path) -> None:
    server.add("acme/small", shallow_checkpoint, token=TOKEN, cut_at=70_000_000, times=1)
    settings = settings_for(server, hf_token=TOKEN, hub_timeout=20)
    folder = hub.fetch(Candidate("acme/small", "hub"), settings)
    assert names_in(folder) == names_in(shallow_checkpoint)
    assert same(folder, shallow_checkpoint)
    known = Hub(settings).describe(Candidate("acme/small", "hub"))
    # 6 blocks of 576: q and o, k and v for 3 of 9 heads, three of 1536; the head is the embedding.
    assert known.linear == 6 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536) == 21_233_664
    assert known.other == 49152 * 576 + 13 * 576
    assert not [asked for asked in server.asked if asked.host == "hub" and asked.token != TOKEN]


@pytest.mark.real
def test_the_default_list_over_a_hub(server: FakeHub, shallow_checkpoint: Path) -> None:
    """Gated, private, and one that loads for real: what a Space does with the default settings, without its card."""
    gemma, llama, qwen = DEFAULT_FALLBACKS.split(",")
    server.add(gemma, shallow_checkpoint, gated=True)
    server.add(llama, shallow_checkpoint, token="hf_another")
    server.add(qwen, shallow_checkpoint, token=TOKEN)
    settings = settings_for(
        server, hf_token=TOKEN, model_device="cpu", model_load_strategy="bf16", threads=1, slots=1, hub_timeout=20
    )
    told: list[Attempt] = []
    loader = Loader(settings)
    loaded = loader.first(loader.model, told.append)
    try:
        assert (loaded.model.info.model, loaded.model.info.strategy) == (qwen, "bf16")
        assert loaded.model.count_tokens("two plus two") == 3
    finally:
        loaded.model.close()
    assert [(each.candidate, each.strategy, each.outcome) for each in told] == [
        (gemma, "any", "failed"),
        (llama, "any", "failed"),
        (qwen, "bf16", "loaded"),
    ]
    assert "is gated" in told[0].reason and "does not accept the token in use" in told[1].reason
    assert TOKEN not in str(told)


@pytest.mark.real
def test_a_gguf_from_a_hub_loads(server: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "small.gguf").symlink_to(embedded.base())
    server.add("acme/gguf", tmp_path / "gguf")
    settings = settings_for(server, model_repo="acme/gguf:small.gguf", threads=1, slots=1, hub_timeout=20)
    loader = Loader(settings)
    loaded = loader.first(loader.model, lambda attempt: None)
    try:
        assert loaded.model.info.model == "acme/gguf:small.gguf"
        assert str(loaded.rung.needs) == "needs 0.60 GB at gguf: 0.10 weights, 0.50 runtime"
    finally:
        loaded.model.close()


# Settings


def test_a_hub_is_named_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9/")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    settings = load_settings()
    assert (settings.hf_endpoint, settings.hf_hub_offline) == ("http://127.0.0.1:9/", False)
    assert HubApi(settings).host == "127.0.0.1:9"
    monkeypatch.setenv("HF_HUB_OFFLINE", "yes")
    assert HubApi(load_settings()).offline == "HF_HUB_OFFLINE is set"
    monkeypatch.setenv("HF_ENDPOINT", "hub.example")
    with pytest.raises(SettingsError, match=r"HF_ENDPOINT='hub\.example' is wrong: give the address"):
        load_settings()


@pytest.mark.parametrize(
    ("content", "said"),
    [(POINTER, "is a git-lfs pointer"), ("", "is not a GGUF file"), ("<html>", "is not a GGUF file")],
)
def test_a_gguf_that_is_another_file(server: FakeHub, tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "one.gguf").write_text(content)
    server.add("acme/g", tmp_path / "g")
    with pytest.raises(CandidateError, match=said):
        Hub(settings_for(server)).describe(Candidate("acme/g:one.gguf", "hub-gguf"))
    with pytest.raises(CandidateError, match=said):
        Loader(load_settings(), HERE).rungs(Candidate(str(tmp_path / "g" / "one.gguf"), "gguf"))


def test_weights_without_a_tokenizer_are_not_fetched(server: FakeHub, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "bare")
    (folder / "tokenizer.json").unlink()
    server.add("acme/bare", folder)
    with pytest.raises(CandidateError, match="it has no tokenizer"):
        Hub(settings_for(server)).fetch(Candidate("acme/bare", "hub"))
    assert not [asked for asked in server.paths(".safetensors") if asked.host == "store"]
