"""What a checkpoint's template and tokenizer do is done to a process that nobody else is in."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from router_backend.engines.transformers import rehearsal
from router_backend.engines.transformers.rehearsal import rehearse
from router_backend.errors import CandidateError
from router_backend.service.loader import Loader
from router_backend.settings import load_settings
from tests.fakes import tiny

pytestmark = [pytest.mark.torch, pytest.mark.slow]
LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}" + "{% endfor %}" * 3
SWELLS = (
    "{% set all = namespace(text='x' * 1000000) %}"
    "{% for each in range(13) %}{% set all.text = all.text ~ all.text %}{% endfor %}{{ all.text }}"
)
ABORTS = """
import os
from transformers import PreTrainedTokenizerFast

class Aborts(PreTrainedTokenizerFast):
    def __init__(self, *args, **kwargs):
        os.abort()
"""


@pytest.fixture(autouse=True)
def nothing_has_passed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(rehearsal, "_passed", set())
    yield


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save("llama31", tmp_path_factory.mktemp("good") / "checkpoint")


def changed(good: Path, folder: Path, change: Callable[[Path], object]) -> Path:
    folder.mkdir()
    for file in good.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    change(folder)
    return folder


def with_template(template: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "chat_template.jinja").write_text(template, "utf-8")


def aborting(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    config |= {"tokenizer_class": "Aborts", "auto_map": {"AutoTokenizer": [None, "aborts.Aborts"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    (folder / "aborts.py").write_text(ABORTS, "utf-8")


def test_what_passed_is_not_rehearsed_again_and_what_changed_is(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = changed(good, tmp_path / "here", lambda folder: None)
    rehearse(here, "auto", trusted=False, patience=0)
    monkeypatch.setattr(sys, "executable", "/nowhere")
    rehearse(here, "auto", trusted=False, patience=0)
    with_template("{{ messages[0].content }}")(here)
    with pytest.raises(FileNotFoundError):
        rehearse(here, "auto", trusted=False, patience=0)


def test_row_32_a_template_that_does_not_end(good: Path, tmp_path: Path) -> None:
    loops = changed(good, tmp_path / "loops", with_template(LOOPS))
    with pytest.raises(CandidateError, match="does not come to an end: given up after 5 seconds"):
        rehearse(loops, "auto", trusted=False, patience=5)
    rehearse(loops, "raw", trusted=False, patience=0)


def test_row_32_a_template_that_takes_all_memory(good: Path, tmp_path: Path) -> None:
    with pytest.raises(CandidateError, match="cannot be used: MemoryError"):
        rehearse(changed(good, tmp_path / "swells", with_template(SWELLS)), "auto", trusted=False, patience=0)


def test_row_32_a_tokenizer_that_ends_its_process(good: Path, tmp_path: Path) -> None:
    aborts = changed(good, tmp_path / "aborts", aborting)
    with pytest.raises(CandidateError, match=r"ends the process that tries it \(exit code -6"):
        rehearse(aborts, "auto", trusted=True, patience=0)


def test_row_32_a_tokenizer_that_cannot_be_read_is_refused_in_words(good: Path, tmp_path: Path) -> None:
    broken = changed(good, tmp_path / "broken", lambda folder: (folder / "tokenizer.json").write_text("{", "utf-8"))
    with pytest.raises(CandidateError, match="its config, tokenizer or chat template cannot be used: "):
        rehearse(broken, "auto", trusted=False, patience=0)


def test_row_32_the_next_candidate_follows(good: Path, tmp_path: Path) -> None:
    loops = changed(good, tmp_path / "loops", with_template(LOOPS))
    settings = load_settings(
        model_repo=str(loops), model_fallbacks=str(good), model_device="cpu", watchdog_timeout=20, threads=1
    )
    loaded = Loader(settings).load(lambda attempt: None)
    first, *_, last = loaded.attempts
    assert (first.candidate, first.outcome) == (str(loops), "failed") and "does not come to an end" in first.reason
    assert last.candidate == str(good) == loaded.rung.candidate.name
