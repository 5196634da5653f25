from __future__ import annotations

import hashlib
import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from router_backend.cli import app as commands
from router_backend.decisions import calibration
from router_tools.calibrate import calibrate
from router_tools.evaluate import Prediction, evaluate
from router_tools.evaluate.confidence import Bin, Confidence
from tests.fakes.running import served
from tests.tools.test_evaluate import gold_file, options_for, plan_of, scores_in


def test_figures_of_rows_that_are_worked_out_by_hand() -> None:
    sure, torn = {"a": 0.9, "b": 0.1}, {"a": 0.4, "b": 0.6}
    found = Confidence.of([(sure, "a"), (sure, "b"), (torn, "b"), ({"a": 1.0}, "c")])
    assert (found.rows, found.right) == (4, 0.5)
    assert found.brier == pytest.approx((2 * 0.01 + 2 * 0.81 + 2 * 0.16 + 2) / 4)
    assert found.ece == pytest.approx((abs(0.9 + 0.9 + 1.0 - 1) + abs(0.6 - 1)) / 4)
    assert found.surprise == pytest.approx(-(math.log(0.9) + math.log(0.1) + math.log(0.6) + math.log(1e-9)) / 4)
    assert found.bins[0] == Bin(0.6, 0.7, 1, 0.6, 1.0)
    assert sum(each.rows for each in found.bins) == 4


def test_perfect_probabilities_have_no_error() -> None:
    rows = [({"a": 0.75, "b": 0.25}, right) for right in "aaab"]
    found = Confidence.of(rows)
    assert found.ece == pytest.approx(0) and found.brier == pytest.approx(0.375)


def test_evaluate_tells_of_the_first_tool(tmp_path: Path) -> None:
    def predict(prompt: str) -> Prediction:
        return Prediction(json.dumps(plan_of(int(prompt[1:]))), first={"/math": 0.8, "/code": 0.2})

    said = io.StringIO()
    assert evaluate(options_for(tmp_path), predict, console=Console(file=said, width=120)) == 0
    assert "first tool: 4 rows, right 1.000, Brier score 0.080, expected calibration error 0.200" in said.getvalue()
    assert scores_in(tmp_path)["confidence"]["ece"] == pytest.approx(0.2)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "The first tool's probabilities" in page and "0.8–0.9" in page
    # What was kept is read again with its probabilities.
    assert evaluate(options_for(tmp_path), lambda prompt: pytest.fail(prompt), console=Console(file=said)) == 0
    assert scores_in(tmp_path)["confidence"]["rows"] == 4


def test_evaluate_reads_them_from_a_server(tmp_path: Path) -> None:
    with served() as server:
        options = options_for(tmp_path, url=server.url, max_new_tokens=700)
        evaluate(options, console=Console(file=io.StringIO()))
    found = scores_in(tmp_path)["confidence"]
    assert found["rows"] == 4 and 0 < found["brier"] < 2


def test_answers_without_probabilities_have_no_figures(tmp_path: Path) -> None:
    evaluate(options_for(tmp_path), lambda prompt: Prediction("{}"), console=Console(file=io.StringIO()))
    assert scores_in(tmp_path)["confidence"] is None


# calibrate, on the echo engine: it finds likely what the prompt says


def rows(folder: Path, prompts: list[str]) -> Path:
    path = folder / "rows.jsonl"
    lines = [json.dumps({"prompt": each, "completion": json.dumps(plan_of(0))}) for each in prompts]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_calibrate_keeps_the_temperature_beside_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All begin with /math. Of thirty prompts six speak of code, so that the echo takes them for /code."""
    monkeypatch.setenv("ENGINE", "echo")
    data = rows(tmp_path, [f"no {index}: {'code' if index % 5 == 0 else 'math'}" for index in range(30)])
    said: list[str] = []
    temperature = calibrate(data, "echo", said.append)
    assert calibration.temperature_of(Path("echo")) == pytest.approx(temperature, abs=1e-4)
    kept = json.loads(Path("echo.calibration.json").read_text())
    assert kept["before"]["rows"] == 30 and kept["before"]["right"] == pytest.approx(0.8)
    assert kept["after"]["surprise"] < kept["before"]["surprise"]
    assert said[0].startswith("before: 30 rows") and said[1].startswith("after:  30 rows")
    assert temperature != 1


def test_calibrate_keeps_nothing_that_does_not_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The echo is always right in one half of the rows and always wrong in the other: no temperature suits both."""
    monkeypatch.setenv("ENGINE", "echo")
    half_of = {"math": 0, "code": 1}
    prompts = [f"no {index}: {word}" for index in range(60) for word in half_of]
    data = rows(
        tmp_path,
        [each for each in prompts if hashlib.sha256(each.encode()).digest()[0] % 2 == half_of[each.split(": ")[1]]],
    )
    result = CliRunner().invoke(commands, ["calibrate", str(data), "--candidate", "echo"])
    assert result.exit_code == 0, result.output
    *_, before, after, last = result.stdout.splitlines()
    assert before.startswith("before: ") and after.startswith("after:  ")
    assert last.startswith("nothing is kept: on rows that it was not fitted on, a temperature does not help")
    assert not Path("echo.calibration.json").exists()


def test_calibrate_wants_enough_rows_of_known_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE", "echo")
    monkeypatch.setenv("ROUTER_TOOLS", "/poet,/math")
    few = gold_file(tmp_path, 4)
    result = CliRunner().invoke(commands, ["calibrate", str(few), "--candidate", "echo"])
    assert result.exit_code == 1 and "has 4 rows that begin with one of" in result.stderr
    assert not list(Path().glob("*.calibration.json"))
