from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from router_backend import __version__
from router_backend.cli import app
from router_backend.engines.echo import EchoModel
from router_backend.plan.prompt import router_prompt
from router_backend.plan.rules import validate
from tests.fakes.running import echo_model, process

COMMANDS = ("serve", "generate", "doctor", "evaluate", "smoke", "version")


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> EchoModel:
    """The model that the commands load."""
    model = echo_model()
    monkeypatch.setenv("ENGINE", "echo")
    monkeypatch.setattr("router_backend.engines.echo.load", lambda rung, settings, path: model)
    monkeypatch.setattr("router_backend.engines.trial.passed", lambda model, patience: None)  # it has its own tests
    return model


def run(*arguments: str, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(app, arguments, input=stdin)


def message(result: Result) -> str:
    """The one readable message of a failure."""
    assert (result.exit_code, result.stdout) == (1, "")
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    return result.stderr.partition("router-backend: ")[2]


def test_version() -> None:
    result = run("version")
    assert (result.exit_code, result.stdout) == (0, f"{__version__}\n")


def test_help_lists_every_command() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for command in COMMANDS:
        assert f" {command} " in result.output
        assert run(command, "--help").exit_code == 0


def test_no_command_is_the_help() -> None:
    assert "Usage" in run().output


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["serve", "--port", "http"],
        ["generate"],
        ["generate", "x", "--seed", "-1"],
        ["generate", "x", "--max-new-tokens", "0"],
        ["generate", "x", "--temperature", "2.1"],
    ],
)
def test_wrong_arguments_are_the_exit_code_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage" in result.output and "Traceback" not in result.output


# generate


def test_generate_text(echo: EchoModel) -> None:
    result = run("generate", "one two three", "--text")
    assert (result.exit_code, result.stdout) == (0, "one two three")
    assert "loaded: echo [native] ok\n" in result.stderr
    assert "3 tokens in " in result.stderr and "3 forward passes" in result.stderr
    assert echo.closed


def test_generate_plan(echo: EchoModel) -> None:
    result = run("generate", "what is it")
    assert result.exit_code == 0
    assert validate(json.loads(result.stdout), ("/general-search", "/math", "/code"))[1] == []
    assert echo.seen[0].prompt == router_prompt("what is it")


def test_a_canonical_prompt_is_not_wrapped_again(echo: EchoModel) -> None:
    prompt = router_prompt("what is it", context="a class")
    assert run("generate", prompt).exit_code == 0
    assert echo.seen[0].prompt == prompt


def test_a_prompt_in_a_file(echo: EchoModel, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("in the file: é\n", encoding="utf-8")
    assert run("generate", "prompt.txt", "--text").stdout == "in the file: é\n"
    assert run("generate", "no-such-file.txt", "--text").stdout == "no-such-file.txt"
    assert run("generate", str(tmp_path), "--text").stdout == str(tmp_path)


def test_a_prompt_longer_than_any_path(echo: EchoModel) -> None:
    assert run("generate", "long " * 400, "--text").stdout == "long " * 400


def test_a_prompt_from_standard_input(echo: EchoModel) -> None:
    assert run("generate", "-", "--text", stdin="from a pipe\n").stdout == "from a pipe\n"
    assert echo.seen[0].prompt == "from a pipe\n"


def test_a_file_that_is_no_text_is_an_error_and_not_its_name(echo: EchoModel, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    assert "latin.txt" in message(run("generate", "latin.txt", "--text"))
    assert echo.seen == []


def test_standard_input_that_is_no_text_is_a_readable_error(echo: EchoModel) -> None:
    assert message(run("generate", "-", "--text", stdin=b"\xff\xfe"))


def test_options_reach_the_engine(echo: EchoModel) -> None:
    options = ("--max-new-tokens", "2", "--temperature", "0", "--seed", "9")
    assert run("generate", "one two three", "--text", *options).stdout == "one two"
    drawn = echo.seen[0].sampling
    assert (drawn.max_new_tokens, drawn.temperature, drawn.seed) == (2, 0, 9)


def test_variables_are_the_defaults(echo: EchoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    run("generate", "x", "--text")
    for name, value in (("MAX_NEW_TOKENS", "50"), ("DEFAULT_TEMPERATURE", "0"), ("DEFAULT_TOP_P", "0.5")):
        monkeypatch.setenv(name, value)
    run("generate", "x", "--text")
    drawn = [(each.sampling.max_new_tokens, each.sampling.temperature, each.sampling.top_p) for each in echo.seen]
    assert drawn == [(600, 0.2, 0.9), (50, 0, 0.5)]


def test_errors_are_one_message(echo: EchoModel) -> None:
    said = message(run("generate", "x", "--max-new-tokens", "5"))
    assert "max_new_tokens is 5" in said and said.count("\n") == 1
    assert echo.closed
    echo.fail_after = 0
    assert message(run("generate", "x", "--text")) == "the echo engine was told to fail\n"


def test_nothing_that_loads_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_REPO", "owner/repo")
    result = run("generate", "x")
    said = message(result)
    assert said.startswith("no checkpoint could be loaded:\n  owner/repo")
    assert "Traceback" not in result.output


@pytest.mark.parametrize("command", [("generate", "x"), ("serve",), ("doctor",)])
def test_wrong_settings_are_one_message(monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]) -> None:
    monkeypatch.setenv("PORT", "http")
    said = message(run(*command))
    assert said.startswith("PORT='http' is wrong: ") and said.count("\n") == 1


def test_an_unexpected_error_is_not_hidden(echo: EchoModel) -> None:
    def script(_: object) -> str:
        raise ZeroDivisionError

    echo.script = script
    result = run("generate", "x", "--text")
    assert result.exit_code == 1 and isinstance(result.exception, ZeroDivisionError)


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(**_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("router_backend.server.serve.serve", interrupted)
    assert run("serve").exit_code == 130


def test_options_of_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, object]] = []

    def serve(**options: object) -> int:
        calls.append(options)
        return 0

    monkeypatch.setattr("router_backend.server.serve.serve", serve)
    assert run("serve").exit_code == run("serve", "--host", "::1", "--port", "0").exit_code == 0
    assert calls == [{"host": None, "port": None}, {"host": "::1", "port": 0}]


def test_as_a_process(tmp_path: Path) -> None:
    """As people run it, `.env` read and all."""
    (tmp_path / ".env").write_text("ENGINE=echo\n")
    with process("one two three", "--text", command="generate", folder=tmp_path) as running:
        assert running.wait() == 0
    assert "one two three\n" in running.output and "3 tokens" in running.output


PLAN = {
    "route_plan": ["/math(add)"],
    "route_rationale": "It is a sum.",
    "expected_artifacts": ["a number"],
    "thinking_outline": ["1. add"],
    "handoff_plan": "/math -> router QA",
    "todo_list": ["- [ ] /math: add", "- [ ] router QA: look"],
    "difficulty": "introductory",
    "tags": ["sums"],
    "acceptance_criteria": ["it is right"],
    "metrics": {"primary": ["error"], "secondary": ["time"]},
}


def gold_file(folder: Path) -> Path:
    path = folder / "gold.jsonl"
    row = {"prompt": json.dumps(PLAN), "completion": json.dumps(PLAN)}
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    return path


def test_evaluate_loads_a_candidate_here_and_scores_what_it_says(tmp_path: Path, echo: EchoModel) -> None:
    """The echo engine says the prompt, and the prompt is the plan."""
    lax = tmp_path / "thresholds.json"
    lax.write_text('{"overall": {"at_least": {"json_valid": 1.0}}}', encoding="utf-8")
    command = ("evaluate", "--gold", str(gold_file(tmp_path)), "--candidate", "embedded", "--text")
    done = run(*command, "--out", str(tmp_path / "out"), "--thresholds", str(lax), "--concurrency", "2")
    assert done.exit_code == 0, done.output
    scores = json.loads((tmp_path / "out" / "scores.json").read_text("utf-8"))
    assert "rules_ok" in json.dumps(scores)
    assert len(echo.seen) == 1 and echo.closed


def test_evaluate_and_smoke_exit_with_2_when_nothing_can_be_checked(tmp_path: Path, echo: EchoModel) -> None:
    assert run("evaluate", "--gold", str(tmp_path / "none.jsonl"), "--candidate", "embedded").exit_code == 2
    assert echo.seen == [] and run("smoke").exit_code == 2
