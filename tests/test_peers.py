"""`benchmarks/peers/`: what a client notes of an answer, and the report of a small run that was recorded."""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from router_backend.jsonl import read_values

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from peers import report
from peers.asking import Outcome, ask
from peers.endpoint import Job, server

ROOT = Path(__file__).parents[1]
_, GOLD = next(iter(read_values(ROOT / "router_tools/evaluate/gold.jsonl")))
ABOUT: dict[str, Any] = {
    "machine": {"processor": "a processor", "cores": 2, "memory_gb": 16.0},
    "commit": "0123456789",
    "threads": 2,
    "sampling": {"temperature": 0.2, "top_p": 0.9},
    "requests": "gold.jsonl",
    "versions": {"ours-llamacpp": "xllamacpp 1", "llamacpp": "xllamacpp 1"},
    "installed_bytes": {"ours-llamacpp": 500_000_000, "llamacpp": 100_000_000},
    "checkpoints": {
        "embedded": {"adapter": "embedded/adapter", "budget_line": True, "gguf_bytes": 1e8, "folder_bytes": 2e8}
    },
}


def asked(text: str, *, error: bool = False, schema: bool = False) -> Outcome:
    """A client's outcome of an answer that comes in pieces of 40 characters."""
    seen: list[Job] = []

    def submit(job: Job) -> None:
        seen.append(job)
        pieces = [text[at : at + 40] for at in range(0, len(text), 40)]
        job.prompt_tokens, job.tokens = 7, len(pieces)
        for piece in [*pieces, ValueError("it broke") if error else None]:
            job.pieces.put(piece)

    with server(0, submit) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        outcome = ask(f"http://127.0.0.1:{serving.server_port}", "a query", 600, 3, schema=schema, extras={})
        serving.shutdown()
        thread.join(60)
    assert (seen[0].max_tokens, seen[0].seed, seen[0].schema is not None) == (600, 3, schema)
    assert seen[0].messages == [{"role": "user", "content": "a query"}]
    return outcome


def test_a_client_notes_what_an_answer_is_worth() -> None:
    whole = asked(GOLD["completion"], schema=True)
    assert (whole.json, whole.schema, whole.rules, whole.error, whole.prompt_tokens) == (True, True, True, None, 7)
    assert whole.first is not None and whole.route is not None
    assert 0 < whole.first <= whole.route <= whole.seconds
    cut = asked(GOLD["completion"][:-50])
    assert (cut.json, cut.schema, cut.rules, cut.route is None) == (False, False, False, False)
    assert "it broke" in (asked('{"route_plan": ["/math(', error=True).error or "")


def test_a_report_is_made_of_what_was_recorded_and_goes_on_with_it(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    kept = report.Kept(path, ABOUT)
    good, bad = asdict(asked(GOLD["completion"])), asdict(asked("{"))
    for peer, outcomes in (("ours-llamacpp", [good, good]), ("llamacpp-schema", [good, bad])):
        for budget in (600, 1400):
            key = ("embedded", peer, budget, 2)
            kept.round(key, 0, outcomes, wall=30.0, peak_bytes=5e8, others_busy=0.0)
    for server_name in ("ours-llamacpp", "llamacpp"):
        kept.cold("embedded", server_name, 9.0)
    kept.unavailable("embedded", "vllm", "its environment is not set up")
    kept.left_out("embedded", "llamacpp", 1400, 2, "it did not fit into the time")
    kept.left_out("embedded", "llamacpp-schema", 600, 2, "measured after all")
    with path.open("a") as file:
        file.write('{"checkpoint": "embed')  # an interrupted write
    assert report.Kept(path, ABOUT).walls("embedded")[("embedded", "llamacpp-schema", 600, 2, 0)] == 30

    (tmp_path / "docs").mkdir()
    for name in ("README.md", "docs/performance.md"):
        (tmp_path / name).write_text("before\n<!-- peers -->\nold\n<!-- /peers -->\nafter\n")
    report.write(path, tmp_path, docs=tmp_path)
    said = json.loads((tmp_path / "docs/peers.json").read_text("utf-8"))
    ours = next(cell for cell in said["cells"] if (cell["peer"], cell["budget"]) == ("ours-llamacpp", 600))
    assert (ours["requests"], ours["rules"], ours["valid_a_minute"]) == (2, 2, 4.0)
    assert {each["disk_mb"] for each in said["servers"]} == {600, 200}
    readme, page = ((tmp_path / name).read_text("utf-8") for name in ("README.md", "docs/performance.md"))
    assert "| **ours on llama.cpp** | 2 of 2 (4.0) | 2 of 2 (4.0) |" in readme
    assert "| llama.cpp, JSON schema | 1 of 2 (2.0) | 1 of 2 (2.0) |" in readme
    assert "- vLLM, bare, embedded: not measured, its environment is not set up." in page
    assert "llama.cpp, bare, embedded, 1,400 tokens, 2 at once: not measured" in page
    assert "measured after all" not in page and "old" not in readme
    assert page.startswith("before\n<!-- peers -->\n") and page.endswith("<!-- /peers -->\nafter\n")
    for plot in ("peers-plans.png", "peers-seconds.png"):
        assert (tmp_path / "docs" / plot).read_bytes().startswith(b"\x89PNG")


def test_another_run_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    report.Kept(path, ABOUT).cold("embedded", "llamacpp", 9.0)
    report.Kept(path, ABOUT)
    assert len(report.read(path)[1]) == 1
    report.Kept(path, {**ABOUT, "threads": 1})
    assert report.read(path)[1] == []


@pytest.mark.parametrize("file", ["README.md", "docs/performance.md"])
def test_the_pages_have_a_place_for_the_tables(file: str) -> None:
    text = (ROOT / file).read_text("utf-8")
    assert text.count("<!-- peers -->\n") == text.count("<!-- /peers -->") == 1
