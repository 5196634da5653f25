from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from router_backend import cli
from router_backend.client import ClientError, Unreachable
from router_backend.errors import LoadError, PlanError, RouterError
from router_tools.evaluate import EvaluateOptions, Prediction, evaluate
from router_tools.evaluate.results import PACKAGED, load_thresholds


def plan_of(index: int, **changes: object) -> dict[str, Any]:
    plan: dict[str, Any] = {
        "route_plan": [f"/math(derive part {index})", "/code(write it)"],
        "route_rationale": "Theory first.",
        "expected_artifacts": ["A script."],
        "thinking_outline": ["1. Derive."],
        "handoff_plan": "/math -> /code -> router QA",
        "todo_list": ["- [ ] /math: derive", "- [ ] /code: write", "- [ ] router QA: review"],
        "difficulty": "advanced",
        "tags": ["proof"],
        "acceptance_criteria": ["It holds."],
        "metrics": {"primary": ["a"], "secondary": ["b"], "primary_guidance": "g"},
    }
    return {**plan, **changes}


def gold_file(folder: Path, rows: int = 4) -> Path:
    path = folder / "gold.jsonl"
    lines = [json.dumps({"prompt": f"p{index}", "completion": json.dumps(plan_of(index))}) for index in range(rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def options_for(folder: Path, **fields: object) -> EvaluateOptions:
    fields = {"gold": fields.get("gold") or gold_file(folder), **fields}
    if not {"url", "predictions"} & fields.keys():
        fields.setdefault("candidate", "tiny")
    return EvaluateOptions(out=folder / "out", **fields)  # type: ignore[arg-type]


def from_gold(prompt: str) -> Prediction:
    index = int(prompt[1:])
    return Prediction(json.dumps(plan_of(index)), completion_tokens=500 + index, clipped=("tags[0]",) * (index % 2))


def run(options: EvaluateOptions, predict: Callable[[str], Prediction] | None = None) -> tuple[int, str]:
    """The exit code, and what was printed; of a run that could not be made 2, and why."""
    console = Console(file=io.StringIO(), width=120)
    try:
        code = evaluate(options, predict, console=console)
    except RouterError as error:
        return 2, error.message
    assert isinstance(console.file, io.StringIO)
    return code, console.file.getvalue()


def scores_in(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "out" / "scores.json").read_text(encoding="utf-8"))
    return found


def test_gold_against_gold_passes(tmp_path: Path) -> None:
    code, said = run(options_for(tmp_path, concurrency=3), from_gold)
    assert code == 0
    scores = scores_in(tmp_path)
    overall = scores["buckets"]["overall"]
    assert scores["passed"] is True
    assert scores["rows"] == overall["rows"] == 4
    assert {name: value for name, value in overall["scores"].items() if value != 1} == {
        "length_ratio_gt_1.1": 0,
        "length_ratio_gt_1.25": 0,
    }
    assert scores["buckets"]["four_step"] == {"rows": 0, "scores": {}}
    assert scores["sampling"] == {"max_new_tokens": 600, "temperature": 0.2, "seed": 0, "output": "plan"}
    assert {"bucket": "four_step", "metric": "route_plan_exact", "at_least": 0.75, "value": None, "passed": None} in (
        scores["thresholds"]
    )
    generation = scores["generation"]
    assert generation["failed"] == 0
    assert (generation["completion_tokens_mean"], generation["completion_tokens_p50"]) == (501.5, 501)
    assert generation["completion_tokens_max"] == 503
    assert (generation["clipped_rows_share"], generation["clipped_texts_mean"]) == (0.5, 0.5)
    assert generation["seconds_p95"] >= 0
    assert "overall (4 rows)" in said
    assert "four_step: no rows" in said
    assert "thresholds passed" in said
    assert "4 of 4 predictions, 0 failed" in said


def test_a_threshold_that_fails_is_exit_code_1(tmp_path: Path) -> None:
    def worded_otherwise(prompt: str) -> Prediction:
        return Prediction(json.dumps(plan_of(99)))

    code, said = run(options_for(tmp_path), worded_otherwise)
    assert code == 1
    assert scores_in(tmp_path)["buckets"]["overall"]["scores"]["route_plan_exact"] == 0
    assert "3 of 26 thresholds FAILED" in said


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        ({"overall": {"at_least": {"route_tools_exact": 0.75}}}, 0),
        ({"overall": {"at_least": {"route_tools_exact": 0.76}}}, 1),
        ({"overall": {"at_most": {"route_tools_exact": 0.75}}}, 0),
        ({"overall": {"at_most": {"route_tools_exact": 0.74}}}, 1),
        ({"has_computation": {"at_least": {"json_valid": 1}}}, 0),
        ({}, 0),
    ],
)
def test_own_thresholds(tmp_path: Path, limits: dict[str, Any], code: int) -> None:
    def three_of_four(prompt: str) -> Prediction:
        return Prediction("{}") if prompt == "p3" else from_gold(prompt)

    path = tmp_path / "limits.json"
    path.write_text(json.dumps(limits), encoding="utf-8")
    assert run(options_for(tmp_path, thresholds=path), three_of_four)[0] == code


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not valid JSON"),
        ("[]", "the file must be a JSON object"),
        ('{"every": {}}', "has 'every', which is none of overall, "),
        ('{"overall": {"over": {}}}', "overall has 'over', which is none of at_least, at_most"),
        ('{"overall": {"at_most": {"speed": 1}}}', "overall.at_most has 'speed'"),
        ('{"overall": {"at_most": {"json_valid": "1"}}}', "overall.at_most.json_valid must be a number"),
        ('{"overall": {"at_most": {"json_valid": NaN}}}', "NaN is not JSON"),
        ('{"overall": {"at_most": {"json_valid": 1e999}}}', "must be a number"),
    ],
)
def test_thresholds_that_are_wrong(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "limits.json"
    path.write_text(text, encoding="utf-8")
    code, said = run(options_for(tmp_path, thresholds=path), from_gold)
    assert code == 2
    assert says in said


def test_the_packaged_thresholds() -> None:
    limits = {(each.bucket, each.kind, each.metric): each.limit for each in load_thresholds()}
    assert len(limits) == 34
    assert limits["overall", "at_least", "json_valid"] == 0.98
    assert limits["math_first", "at_most", "length_ratio_gt_1.1"] == 0.40
    assert limits["advanced", "at_least", "handoff_tools_covered"] == 0.87
    assert PACKAGED.name == "thresholds.json"


def counting(asked: list[str], fails_at: int, error: BaseException) -> Callable[[str], Prediction]:
    def predict(prompt: str) -> Prediction:
        asked.append(prompt)
        if len(asked) == fails_at:
            raise error
        return from_gold(prompt)

    return predict


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    asked: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run(options_for(tmp_path), counting(asked, 3, KeyboardInterrupt()))
    kept = tmp_path / "out" / "predictions.jsonl"
    done = [json.loads(line)["prompt"] for line in kept.read_text(encoding="utf-8").splitlines()]
    assert {"p0", "p1"} <= set(done)
    assert "p2" not in done
    with kept.open("a", encoding="utf-8") as file:
        file.write('{"key": "half a li')
    asked.clear()
    code, said = run(options_for(tmp_path), counting(asked, 99, KeyboardInterrupt()))
    assert code == 0
    assert sorted([*done, *asked]) == ["p0", "p1", "p2", "p3"]
    assert f"{len(done)} of 4 predictions are there already" in said
    assert len([json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]) == 4
    asked.clear()
    assert run(options_for(tmp_path), counting(asked, 99, KeyboardInterrupt()))[0] == 0
    assert asked == []


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"temperature": 0.0}, {"max_new_tokens": 700}, {"output": "text"}, {"candidate": "other"}]
)
def test_other_options_ask_again(tmp_path: Path, change: dict[str, Any]) -> None:
    asked: list[str] = []
    predict = counting(asked, 99, KeyboardInterrupt())
    run(options_for(tmp_path, limit=2), predict)
    run(replace(options_for(tmp_path, limit=2), **change), predict)
    assert sorted(asked) == ["p0", "p0", "p1", "p1"]


def test_a_row_that_failed_scores_nothing_and_is_asked_again(tmp_path: Path) -> None:
    asked: list[str] = []
    code, said = run(options_for(tmp_path), counting(asked, 2, PlanError("the plan breaks a rule")))
    assert code == 1
    assert scores_in(tmp_path)["generation"]["failed"] == 1
    assert scores_in(tmp_path)["buckets"]["overall"]["scores"]["json_valid"] == 0.75
    assert "4 of 4 predictions, 1 failed" in said
    assert "the plan breaks a rule" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    asked.clear()
    assert run(options_for(tmp_path), counting(asked, 99, KeyboardInterrupt()))[0] == 0
    assert asked == ["p1"]


def test_a_router_that_is_away_ends_the_run(tmp_path: Path) -> None:
    code, said = run(options_for(tmp_path), counting([], 2, Unreachable(None, "cannot connect to http://h")))
    assert code == 2
    assert said == "cannot connect to http://h"
    assert not (tmp_path / "out" / "scores.json").exists()


def test_a_line_in_the_middle_that_is_broken_is_named(tmp_path: Path) -> None:
    run(options_for(tmp_path), from_gold)
    kept = tmp_path / "out" / "predictions.jsonl"
    lines = kept.read_text(encoding="utf-8").splitlines()
    kept.write_text("\n".join([lines[0], "broken", *lines[2:]]) + "\n", encoding="utf-8")
    code, said = run(options_for(tmp_path), from_gold)
    assert code == 2
    assert "predictions.jsonl, line 2" in said


def test_the_same_prompt_twice_is_asked_once(tmp_path: Path) -> None:
    row = json.dumps({"prompt": "p0", "completion": json.dumps(plan_of(0))})
    gold = tmp_path / "twice.jsonl"
    gold.write_text(f"\ufeff{row}\n\n{row}", encoding="utf-8")
    asked: list[str] = []
    assert run(options_for(tmp_path, gold=gold), counting(asked, 99, KeyboardInterrupt()))[0] == 0
    assert asked == ["p0"]
    assert scores_in(tmp_path)["rows"] == 2


# Predictions out of a file


def predictions_file(folder: Path, rows: Sequence[object]) -> Path:
    path = folder / "predicted.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_scoring_only(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{index}", "text": json.dumps(plan_of(index))} for index in (9, 0, 1, 2, 3)]
    code, _ = run(options_for(tmp_path, predictions=predictions_file(tmp_path, rows)))
    assert code == 0
    assert not (tmp_path / "out" / "predictions.jsonl").exists()


def test_what_was_kept_can_be_scored_again(tmp_path: Path) -> None:
    run(options_for(tmp_path), from_gold)
    kept = (tmp_path / "out" / "predictions.jsonl").rename(tmp_path / "kept.jsonl")
    assert run(options_for(tmp_path, predictions=kept))[0] == 0
    assert scores_in(tmp_path)["generation"]["completion_tokens_max"] == 503


def test_a_prompt_without_a_prediction_scores_nothing(tmp_path: Path) -> None:
    rows = [{"prompt": "p0", "text": json.dumps(plan_of(0))}]
    assert run(options_for(tmp_path, predictions=predictions_file(tmp_path, rows)))[0] == 1
    assert scores_in(tmp_path)["buckets"]["overall"]["scores"]["json_valid"] == 0.25
    assert scores_in(tmp_path)["generation"]["failed"] == 3


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"prompt": "p0", "text": "{}"}, {"prompt": "p1"}], "line 2: must have prompt and text"),
        ([{"prompt": "other", "text": "{}"}], "has none of the prompts"),
        ([], "has none of the prompts"),
    ],
)
def test_predictions_that_cannot_be_used(tmp_path: Path, rows: Sequence[object], says: str) -> None:
    code, said = run(options_for(tmp_path, predictions=predictions_file(tmp_path, rows)))
    assert code == 2
    assert says in said


@pytest.mark.parametrize(("lenient", "tools_exact"), [(False, 0.0), (True, 1.0)])
def test_lenient_reads_a_plan_out_of_prose(tmp_path: Path, lenient: bool, tools_exact: float) -> None:
    rows = [{"prompt": f"p{index}", "text": f"Sure:\n```json\n{json.dumps(plan_of(index))}```"} for index in range(4)]
    run(options_for(tmp_path, predictions=predictions_file(tmp_path, rows), lenient=lenient))
    overall = scores_in(tmp_path)["buckets"]["overall"]["scores"]
    assert (overall["json_valid"], overall["route_tools_exact"]) == (0.0, tools_exact)


# Wrong usage


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{", "line 2: not valid JSON"),
        ("[]", "line 2: must be a JSON object"),
        ('{"completion": "{}"}', "line 2: prompt must be a text"),
        ('{"prompt": " ", "completion": "{}"}', "line 2: prompt must be a text"),
        ('{"prompt": "p", "completion": {}}', "line 2: completion must be the gold plan as JSON text"),
        ('{"prompt": "p", "completion": "{"}', "line 2: completion is no JSON object"),
        ('{"prompt": "p", "completion": "{}"}', "line 2: the gold route_plan must be"),
        (json.dumps({"prompt": "p", "completion": '{"route_plan": ["x"]}'}), "line 2: the gold route_plan must be"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: str, says: str) -> None:
    gold = gold_file(tmp_path, 1)
    gold.write_text(gold.read_text(encoding="utf-8") + row, encoding="utf-8")
    code, said = run(options_for(tmp_path, gold=gold), from_gold)
    assert code == 2
    assert says in said


def test_only_the_rows_up_to_the_limit_are_read(tmp_path: Path) -> None:
    gold = gold_file(tmp_path, 2)
    gold.write_text(gold.read_text(encoding="utf-8") + "broken", encoding="utf-8")
    assert run(options_for(tmp_path, gold=gold, limit=2), from_gold)[0] == 0


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"gold": Path("nowhere.jsonl")}, "nowhere.jsonl: No such file"),
        ({"predictions": Path("p"), "candidate": "tiny"}, "give one of"),
        ({"candidate": None}, "give one of"),
        ({"thresholds": Path("nowhere.json")}, "nowhere.json: No such file"),
    ],
)
def test_wrong_usage(tmp_path: Path, fields: dict[str, Any], says: str) -> None:
    code, said = run(options_for(tmp_path, **fields), from_gold)
    assert code == 2
    assert says in said


@pytest.mark.parametrize(
    ("option", "value"),
    [("limit", 0), ("concurrency", 0), ("concurrency", 1000), ("max-new-tokens", 0), ("temperature", 3.0)],
)
def test_a_number_out_of_its_range_is_wrong_usage(tmp_path: Path, option: str, value: float) -> None:
    given = ["evaluate", "--gold", str(gold_file(tmp_path)), "--candidate", "embedded", f"--{option}", str(value)]
    done = CliRunner().invoke(cli.app, given)
    assert done.exit_code == 2 and f"--{option}" in done.stderr


def test_a_candidate_that_does_not_load_ends_the_run_at_its_first_prompt(tmp_path: Path) -> None:
    asked: list[str] = []

    def predict(prompt: str) -> Prediction:
        asked.append(prompt)
        raise LoadError("no checkpoint loads")

    assert run(options_for(tmp_path), predict) == (2, "no checkpoint loads")
    assert len(asked) == 1


def test_an_empty_gold_file(tmp_path: Path) -> None:
    code, said = run(options_for(tmp_path, gold=gold_file(tmp_path, 0)), from_gold)
    assert code == 2
    assert "has no rows" in said


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file", encoding="utf-8")
    with pytest.raises(OSError, match="out"):
        run(options_for(tmp_path), from_gold)


# A URL


class Router(ThreadingHTTPServer):
    """Answers each prompt with its gold plan, or with `failing[prompt]` as the status."""

    def __init__(self, failing: dict[str, int]) -> None:
        self.failing = failing
        self.seen: list[dict[str, Any]] = []
        super().__init__(("127.0.0.1", 0), RouterHandler)

    def __enter__(self) -> Router:
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1/generate"


class RouterHandler(BaseHTTPRequestHandler):
    server: Router

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append(body)
        status = self.server.failing.get(body["prompt"], 200)
        error = {"message": "it went wrong", "type": "t", "param": None, "code": None}
        details = {
            "finish_reason": "stop",
            "usage": {"completion_tokens": 590},
            "budget": {"clipped": ["route_rationale"]},
        }
        text = json.dumps(plan_of(int(body["prompt"][1:])))
        raw = json.dumps({"text": text, "details": details} if status == 200 else {"error": error}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_url(tmp_path: Path) -> None:
    with Router({}) as router:
        code, said = run(options_for(tmp_path, url=router.url, api_key="k-secret", concurrency=2, seed=7))
    assert code == 0
    assert sorted(body["prompt"] for body in router.seen) == ["p0", "p1", "p2", "p3"]
    assert {key: value for key, value in router.seen[0].items() if key != "prompt"} == {
        "max_new_tokens": 600,
        "temperature": 0.2,
        "seed": 7,
        "output": "plan",
        "details": True,
    }
    assert scores_in(tmp_path)["generation"]["completion_tokens_mean"] == 590
    assert scores_in(tmp_path)["generation"]["clipped_rows_share"] == 1
    assert "k-secret" not in said + repr(options_for(tmp_path, url="u", api_key="k-secret"))
    assert all("k-secret" not in path.read_text(encoding="utf-8") for path in (tmp_path / "out").iterdir())


def test_a_url_that_fails_for_a_row(tmp_path: Path) -> None:
    with Router({"p2": 502}) as router:
        code, _ = run(options_for(tmp_path, url=router.url))
    assert code == 1
    assert scores_in(tmp_path)["generation"]["failed"] == 1


def test_a_url_that_wants_a_key_ends_the_run(tmp_path: Path) -> None:
    with Router({f"p{index}": 401 for index in range(100)}) as router:
        code, said = run(options_for(tmp_path, gold=gold_file(tmp_path, 100), url=router.url))
    assert code == 2
    assert "401 Unauthorized: it went wrong" in said
    assert len(router.seen) < 100


def test_what_is_no_url(tmp_path: Path) -> None:
    code, said = run(options_for(tmp_path, url="here"))
    assert code == 2
    assert "the URL must be like" in said


def test_other_errors_of_the_client_are_the_rows(tmp_path: Path) -> None:
    error = ClientError(None, "the connection broke")
    assert run(options_for(tmp_path), counting([], 1, error))[0] == 2


# The report


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "action", "data", "srcset")]


def test_the_report_needs_nothing_and_lets_nothing_in(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"

    def attacker(prompt: str) -> Prediction:
        route = [f"/math({evil})"]
        changes = {"route_plan": route, "tags": [evil, "\ud800"], evil: 1, "{body}": 2}
        return Prediction(json.dumps(plan_of(0, **changes)), finish_reason=evil, error=None)

    gold = tmp_path / "gold.jsonl"
    rows = [{"prompt": f"{evil} {index} \ud800", "completion": json.dumps(plan_of(index))} for index in range(3)]
    gold.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert run(options_for(tmp_path, gold=gold, candidate=f"{evil} [red]"), attacker)[0] == 1
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(page)
    assert not {"script", "img", "link", "iframe", "object"} & set(tags.tags)
    assert tags.links == []
    assert "url(" not in page
    assert "@import" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "[red]" in page
    assert tags.tags.count("details") == 3
    assert "/math /code</td><td>/math</td><td>3" in page
    assert "prefers-color-scheme: dark" in page


def test_the_report_of_a_perfect_run(tmp_path: Path) -> None:
    run(options_for(tmp_path), from_gold)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "all thresholds passed" in page
    assert "Tokens of an answer" in page
    assert page.count("<p>None.</p>") == 2
    assert "<details>" not in page


def test_the_report_draws_what_is_known(tmp_path: Path) -> None:
    def asked(prompt: str) -> Prediction:
        return replace(from_gold(prompt), seconds=2.4, clipped=("todo_list[0]", "todo_list[3]", "route_rationale"))

    run(options_for(tmp_path), asked)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    rows = json.loads((tmp_path / "out" / "scores.json").read_text("utf-8"))["rows"]
    full = f'<div class="bar" style="width:20.00rem"></div></td><td>{rows}</td>'
    assert f"<td>2</td><td>{full}" in page, "seconds"
    for field in ("todo_list", "route_rationale"):
        assert f"<td>{field}</td><td>{full}" in page


def test_the_bar_on_a_terminal(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    assert evaluate(options_for(tmp_path), counting([], 2, PlanError("no")), console=console) == 1
    assert isinstance(console.file, io.StringIO)
    assert "4/4" in console.file.getvalue()
    assert "1 failed" in console.file.getvalue()
