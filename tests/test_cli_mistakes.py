"""What every command says of a mistake that is to be expected: one line, no traceback, an exit code that is not 0."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner, Result

from router_backend.cli import app
from tests.test_cli import PLAN


def commands(group: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:  # noqa: ANN401
    """Each command with its names, as Typer lists them: a new one is swept too."""
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from commands(command, (*names, name))
        else:
            yield (*names, name), command


COMMANDS = dict(commands(typer.main.get_command(app)))
READ_SETTINGS = [names for names in COMMANDS if names != ("version",)]
NEED_TORCH = {("train",), ("merge",)}
# What keeps a command from doing anything, whatever it is given: no such checkpoint, no such address.
NOTHING_THERE = {"MODEL_REPO": "owner/none", "HOST": "256.0.0.1"}


def swept(names: tuple[str, ...]) -> Any:  # noqa: ANN401 - pytest's
    marks = [pytest.mark.torch] if names in NEED_TORCH else []
    return pytest.param(names, id=" ".join(names), marks=marks)


def filled(names: tuple[str, ...], value: str) -> list[str]:
    """The command with this value for each argument, and for each option that is required or names a file."""
    given = list(names)
    for param in COMMANDS[names].params:
        if param.param_type_name == "argument":
            given.append(value)
        elif param.required or "Path" in str(COMMANDS[names].callback.__annotations__[param.name]):
            given += [param.opts[0], value]
    return given


def run(given: list[str], monkeypatch: pytest.MonkeyPatch, **variables: str) -> Result:
    for name, value in {**NOTHING_THERE, **variables}.items():
        monkeypatch.setenv(name, value)
    return CliRunner().invoke(app, given)


def one_line(result: Result) -> str:
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code != 0
    return line_in(result.stderr)


def line_in(errors: str) -> str:
    """The one line; only the list of what did not load goes on below it, indented."""
    lines = [line for line in errors.splitlines() if not line.startswith(("  ", "failed: ", "skipped: "))]
    assert len(lines) == 1 and lines[0].startswith("router-backend: "), errors
    assert "Traceback" not in errors
    return errors


# Settings


@pytest.mark.parametrize("names", [swept(names) for names in READ_SETTINGS])
@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"PORT": "http"}, "PORT='http' is wrong"),
        ({"MODEL_REPO": "Embedded"}, "write MODEL_REPO=embedded"),
        ({"MODEL_REPO": "https://huggingface.co/acme/one/tree/main"}, "write MODEL_REPO=acme/one"),
        ({"MODEL_REPO": "./nowhere"}, "no such file or folder"),
    ],
)
def test_a_wrong_setting(
    names: tuple[str, ...], variables: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = one_line(run(filled(names, "x"), monkeypatch, **variables))
    assert says in said and "torch" not in said


@pytest.mark.parametrize("names", [swept(names) for names in READ_SETTINGS])
def test_an_env_file_in_another_encoding(
    names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_bytes("MODEL_OWNER=café".encode("latin-1"))
    assert ".env is not valid UTF-8: save it as UTF-8" in one_line(run(filled(names, "x"), monkeypatch))


# Names


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(["evaluate", "--gold", "gold.jsonl", "--candidate", "NAME"], id="evaluate"),
        pytest.param(["merge", "NAME", "adapter", "out"], id="merge", marks=pytest.mark.torch),
        pytest.param(
            ["train", "gold.jsonl", "out", "--steps", "1", "--base", "NAME"], id="train", marks=pytest.mark.torch
        ),
    ],
)
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Embedded", "=embedded"),
        ("embeded", "=embedded"),
        ("hf.co/acme/one", "=acme/one"),
        ("hf://acme/one", "=acme/one"),
        ("https://huggingface.co/acme/one.git", "=acme/one\n"),
        ("https://huggingface.co/acme/one/blob/main/x.Q8_0.gguf", "=acme/one@main:x.Q8_0.gguf"),
        ("https://huggingface.co/spaces/acme/one", "that is a Space or a data set"),
        ("'embedded'", "leave the quotes out"),
        ("~/nowhere", "no such file or folder"),
        ("ggufs", "name one of them"),
        ("no-such-checkpoint", "not in the cache"),
    ],
)
def test_a_misspelt_name(
    given: list[str], name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, file in (("ggufs", "a.gguf"), ("ggufs", "b.gguf"), ("adapter", "adapter_config.json")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / file).write_bytes(b"{}")
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "gold.jsonl").write_text(json.dumps({"prompt": "x", "completion": json.dumps(PLAN)}) + "\n", "utf-8")
    result = run([each.replace("NAME", name) for each in given], monkeypatch)
    told = result.output
    if "not in the cache" in says and given[0] == "merge":
        says = "is not an adapter that can be read"  # what is at hand is looked at first
    if given[0] == "merge" and name == "ggufs":
        says = "is not an adapter that can be read"
    assert says in told and "torch" not in told
    one_line(result) if given[0] != "evaluate" else None


# Files


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A command that serves writes its log to what was standard error then."""
    loggers = [logging.getLogger(name) for name in ("router_backend", "uvicorn")]
    before = [(each, each.handlers[:], each.propagate, each.level) for each in loggers]
    yield
    for each, handlers, propagate, level in before:
        each.handlers[:], each.propagate = handlers, propagate
        each.setLevel(level)


@pytest.fixture
def hostile(tmp_path: Path) -> dict[str, str]:
    """Paths at which there is not what a command wants."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "zeros").write_bytes(bytes(100))
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    paths = {name: str(tmp_path / name) for name in ("folder", "binary", "zeros", "dangling", "loop")}
    return {**paths, "below a file": str(tmp_path / "binary" / "x"), "unreadable": "/proc/self/mem", "absent": "absent"}


KINDS = ["folder", "binary", "zeros", "dangling", "loop", "below a file", "unreadable", "absent"]


@pytest.mark.parametrize("names", [swept(names) for names in READ_SETTINGS])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_none(
    names: tuple[str, ...], kind: str, hostile: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(filled(names, hostile[kind]), monkeypatch, ROUTER_API_KEY="")
    if names == ("doctor",):
        assert result.exit_code == 1 and "Traceback" not in result.output, "it shows a table, in which nothing loads"
    else:
        one_line(result)


# What is not installed

OPTIONAL = [
    "accelerate",
    "bitsandbytes",
    "gguf",
    "gradio",
    "matplotlib",
    "peft",
    "spaces",
    "torch",
    "transformers",
    "xllamacpp",
]


@pytest.mark.parametrize("names", [pytest.param(names, id=" ".join(names)) for names in READ_SETTINGS])
def test_an_extra_that_is_missing(names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.startswith(("router_tools", "router_backend.space")) or name.partition(".")[0] in OPTIONAL:
            monkeypatch.delitem(sys.modules, name)
    for name in OPTIONAL:
        monkeypatch.setitem(sys.modules, name, None)
    given = [*filled(names, "x"), *(["--steps", "1"] if names == ("train",) else [])]
    result = run(given, monkeypatch, SPACES_ZERO_GPU="1")
    if names == ("doctor",):
        assert result.exit_code == 1 and "pip install" in result.output
        return
    said = one_line(result)
    extra = {"serve": "space", "train": "train", "merge": "merge", "generate": "transformers"}.get(names[0])
    assert extra is None or f"pip install 'router-backend[{extra}]'" in said


# Standard output, as processes have it

# Every command line in a process of its own, forked here so that all share one start. `how` says what its output is.
EACH = """
import json, os, resource, sys
import typer.rich_utils, router_backend.service.doctor, router_backend.service.once, router_backend.engines.echo
from router_backend.cli import app
folder, how, given = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
codes = []
for number, arguments in enumerate(given):
    if not os.fork():
        os.dup2(os.open(f"{folder}/{number}.err", os.O_WRONLY | os.O_CREAT), 2)
        if how == "full":
            os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
        elif how == "gone":
            reader, writer = os.pipe()
            os.close(reader)
            os.dup2(writer, 1)
        elif how == "closed":
            os.close(1)
        else:
            os.dup2(os.open(f"{folder}/{number}.out", os.O_WRONLY | os.O_CREAT), 1)
        if how == "small":
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        sys.argv = ["router-backend", *(os.fsdecode(each.encode()) for each in arguments)]
        app()
    codes.append(os.waitstatus_to_exitcode(os.wait()[1]))
print(json.dumps(codes))
"""


def each(how: str, given: list[list[str]], folder: Path, **variables: str) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each command line."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME") if name in os.environ}
    kept["PYTHONDONTWRITEBYTECODE"] = "1"  # half a file of it would stay, where no more may be written
    environment = kept | {"HF_HUB_OFFLINE": "1", "ENGINE": "echo", **variables}
    command = [sys.executable, "-c", EACH, str(folder), how, json.dumps(given)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr

    def written(number: int, end: str) -> str:
        path = folder / f"{number}.{end}"
        return path.read_text("utf-8") if path.exists() else ""

    codes = json.loads(done.stdout.splitlines()[-1])
    return [(code, written(number, "out"), written(number, "err")) for number, code in enumerate(codes)]


HELP = [["--help"], *([*names, "--help"] for names in COMMANDS)]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A file of plans, with an é in its name and in its texts."""
    path = tmp_path / "pläne.jsonl"
    row = {"prompt": "é", "text": json.dumps(PLAN | {"route_rationale": "Café ≥ 1."}), "completion": json.dumps(PLAN)}
    path.write_text(f"{json.dumps(row, ensure_ascii=False)}\n", "utf-8")
    return path


def test_a_full_disk_as_output(tmp_path: Path) -> None:
    given = [*HELP, ["version"], ["doctor"], ["generate", "x", "--text"]]
    for arguments, (code, _, errors) in zip(given, each("full", given, tmp_path), strict=True):
        said = [line for line in errors.splitlines() if not line.startswith("loaded: ")]
        assert code in (1, 2), (arguments, errors)
        assert len(said) == 1 and said[0].startswith("router-backend: standard output: No space left on device; make")


def test_an_output_that_nobody_reads_any_more_ends_quietly(tmp_path: Path) -> None:
    given = [["--help"], ["version"], ["doctor"], ["generate", "x", "--text"]]
    for arguments, (code, _, errors) in zip(given, each("gone", given, tmp_path), strict=True):
        assert code == 1, arguments
        assert errors in ("", "loaded: echo [native] ok\n"), arguments


def test_an_output_that_is_closed_is_one_line(tmp_path: Path) -> None:
    given = [["--help"], ["version"], ["generate", "x", "--text"]]
    for arguments, (code, _, errors) in zip(given, each("closed", given, tmp_path), strict=True):
        assert code == 1, arguments
        assert "standard output: " in line_in(errors.replace("loaded: echo [native] ok\n", ""))


@pytest.mark.parametrize("closed", ["<", ">", "2>"])
def test_a_stream_that_was_closed_from_the_start(closed: str, tmp_path: Path) -> None:
    shell = ["sh", "-c", f'exec "$@" {closed}&-', "sh", sys.executable, "-m", "router_backend.cli"]
    environment = os.environ | {"ENGINE": "echo"}
    for given in (["generate", "-", "--text"], ["generate", "x", "--text"]):
        done = subprocess.run(
            [*shell, *given], cwd=tmp_path, env=environment, input="y", capture_output=True, text=True
        )
        assert "Traceback" not in done.stderr and done.returncode == int(closed == "<" and given[1] == "-")


def test_a_disk_that_becomes_full(rows: Path, tmp_path: Path) -> None:
    """A process that may write no file of more than 100 bytes."""
    given = [
        ["drafter", "build", str(rows), "--out", str(tmp_path / "drafter.jsonl")],
        ["evaluate", "--gold", str(rows), "--predictions", str(rows), "--out", str(tmp_path / "evaluation")],
        ["generate", "x", "--text"],
    ]
    for (code, _, errors), wanted in zip(each("small", given, tmp_path), (1, 2, 0), strict=True):
        assert code == wanted, errors
        assert not code or "File too large; make room there" in line_in(errors)


@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({"PYTHONIOENCODING": "ascii"}, id="asked for"),
        pytest.param({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, id="locale"),
    ],
)
def test_ascii_as_output(variables: dict[str, str], rows: Path, tmp_path: Path) -> None:
    """Everything does its work, and what ASCII lacks is written as JSON writes it: a plan stays the same plan."""
    out = ["--out", str(tmp_path / "évaluation")]
    given = [
        *HELP,
        ["doctor"],
        ["generate", "Café?", "--text"],
        ["generate", '{"a": "Café ≥ 😀"}', "--text"],
        ["drafter", "build", rows.name],
        ["evaluate", "--gold", rows.name, "--predictions", rows.name, *out],
        ["generate", "é", "--max-new-tokens", "1"],
    ]
    done = each("file", given, tmp_path, **variables)
    *helped, _, text, plan, built, evaluated, refused = done
    assert all(output.isascii() and errors.isascii() for _, output, errors in done)
    assert [(code, errors) for code, _, errors in helped] == [(0, "")] * len(helped)
    assert text[:2] == (0, "Caf\\u00e9?")
    assert json.loads(plan[1]) == {"a": "Café ≥ 😀"}
    assert built[0] == 0 and "1 plans" in built[1]
    assert evaluated[0] == 0 and "valuation/scores.json" in evaluated[1]
    assert refused[0] == 1 and "max_new_tokens is 1" in refused[2]
