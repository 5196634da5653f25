"""Drafter files: what is taken, what is left out, and what happens to wrong ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from router_backend.cli import app
from router_backend.engines.transformers.drafter import build, read
from router_backend.errors import InvalidRequest, SettingsError
from router_backend.jsonl import read_values
from router_backend.plan.rules import validate
from router_backend.plan.write import PlanWriter
from router_backend.types import GenerateRequest, SamplingParams
from tests.fakes.running import echo_model

TOOLS = ("/general-search", "/math", "/code")


def plan(prompt: str) -> dict[str, Any]:
    asked = GenerateRequest("test", prompt, SamplingParams(max_new_tokens=600), "plan")
    chunks = PlanWriter(echo_model(), TOOLS).write(asked, lambda: False)
    value: dict[str, Any] = json.loads("".join(chunk.text for chunk in chunks))
    assert not validate(value, TOOLS)[1]
    return value


def test_valid_plans_of_every_kind_of_row_are_taken_once(tmp_path: Path) -> None:
    good = plan("x")
    broken = {**good, "tags": []}
    rows = [
        {"prompt": "p", "completion": json.dumps(good)},
        {"prompt": "q", "text": json.dumps(good, ensure_ascii=False)},
        good,
        {"prompt": "r", "completion": json.dumps(broken)},
        {"prompt": "s", "text": '{"route_plan": ['},
        [1],
    ]
    source, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)) + "\n\n", "utf-8")
    assert build(source, out, TOOLS) == (1, 3)
    assert list(read(out)) == [json.dumps(good, ensure_ascii=False)]


@pytest.mark.parametrize(
    ("text", "words"), [("", "no valid plan"), ("{}\n", "no valid plan"), ("{}\n{", "line 2"), ("\x00", "line 1")]
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(text, "utf-8")
    with pytest.raises(InvalidRequest, match=words):
        build(source, tmp_path / "out.jsonl", TOOLS)
    assert not (tmp_path / "out.jsonl").exists()


def test_lines_end_at_a_line_feed_alone(tmp_path: Path) -> None:
    """Other separators of Unicode stand inside strings, and a byte order mark before the first row."""
    source = tmp_path / "rows.jsonl"
    rows = [{"text": "a\u2028b\u0085c"}, {"text": "d"}]
    text = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    source.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert list(read_values(source)) == [(1, rows[0]), (3, rows[1])]


def test_missing_and_damaged_files_are_readable_errors(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="No such file"):
        build(tmp_path / "none", tmp_path / "out", TOOLS)
    (tmp_path / "latin").write_bytes(b"\xff\n")
    with pytest.raises(InvalidRequest, match="UTF-8"):
        build(tmp_path / "latin", tmp_path / "out", TOOLS)
    with pytest.raises(SettingsError, match="DRAFTER"):
        list(read(tmp_path / "none"))
    (tmp_path / "cut").write_text('{"route_plan": [')
    with pytest.raises(SettingsError, match="DRAFTER"):
        list(read(tmp_path / "cut"))


def test_the_command_says_what_it_did(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps(plan("x")) + "\n", "utf-8")
    out = tmp_path / "out.jsonl"
    done = CliRunner().invoke(app, ["drafter", "build", str(source), "--out", str(out)])
    assert done.exit_code == 0 and "1 plans (0 rows" in done.output and out.exists()
    failed = CliRunner().invoke(app, ["drafter", "build", str(tmp_path / "none"), "--out", str(out)])
    assert failed.exit_code == 1 and "No such file" in failed.output
