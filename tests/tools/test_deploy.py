"""`deploy` against a hub on loopback, with a real server behind the Space's address."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from router_backend import cli
from router_backend.checkpoints.ladder import Attempt, Candidate, Rung
from router_backend.errors import HubError, InvalidRequest, SettingsError
from router_backend.settings import load_settings
from router_tools.deploy import DeployOptions, deploy, state
from tests.fakes.running import served
from tests.fakes.spaces_hub import TOKEN, FakeSpacesHub, fake_spaces_hub

READS, KEY = "hf_READS_AND_IS_NEVER_SHOWN", "key-NEVER-SHOWN"
SPACE = "acme/router"
STATE = """\
hardware: zero-a10g
sleep_time: null
variables: {LOG_FORMAT: json}
secrets: [HF_TOKEN, ROUTER_API_KEYS]
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A small clone of the project: what a Space needs, and what must stay here."""
    root = tmp_path / "clone"
    texts = {
        "app.py": "print('serves')",
        "requirements.txt": "fastapi",
        "README.md": "---\ntitle: R\nsdk: gradio\n---\n",
        "LICENSE": "MIT",
        "router_backend/__init__.py": "",
        "router_backend/server/serve.py": "print('x')",
        "router_tools/train/run.py": "",
        ".huggingface/spaces.yml": STATE,
        "tests/test_it.py": "",
        "docs/long.md": "",
        ".gitignore": ".env\n*.log\n",
        ".env": f"HF_TOKEN={TOKEN}",
        "router_backend/private.log": TOKEN,
    }
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    return root


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSpacesHub]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with served(router_api_keys=f"me:{KEY}") as running, fake_spaces_hub(running.url) as made:
        yield made
    huggingface_hub.close_session()


@dataclass
class Runs:
    """Deploys, and keeps every line that was said."""

    hub: FakeSpacesHub
    clone: Path
    said: list[str] = field(default_factory=list)

    def __call__(self, **changes: Any) -> int:  # noqa: ANN401
        self.said.clear()
        self.hub.asked.clear()
        options = {"space": SPACE, "root": self.clone, "settle": 0.3, "poll": 0.01, "timeout": 20, **changes}
        settings = load_settings(
            hf_endpoint=self.hub.url,
            hf_hub_offline=False,
            hf_token=TOKEN,
            space_hf_token=READS,
            router_api_keys=f"me:{KEY}",
        )
        return deploy(DeployOptions(**options), settings, self.said.append)

    @property
    def text(self) -> str:
        return "\n".join(self.said)


@pytest.fixture
def run(hub: FakeSpacesHub, clone: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Runs]:
    caplog.set_level("DEBUG")
    runs = Runs(hub, clone)
    yield runs
    everything = runs.text + caplog.text
    assert not any(secret in everything for secret in (TOKEN, READS, KEY))
    for _, path, body in hub.asked:
        where = "/secrets" in path
        assert where or not any(secret.encode() in body for secret in (TOKEN, READS, KEY)), path


NEEDED = [
    "LICENSE",
    "README.md",
    "app.py",
    "requirements.txt",
    "router_backend/__init__.py",
    "router_backend/server/serve.py",
]


def test_the_first_run_makes_the_space_and_checks_it(run: Runs, hub: FakeSpacesHub) -> None:
    assert run(private=False) == 0
    space = hub.repos[SPACE]
    assert sorted(space.files) == sorted([".gitattributes", *NEEDED])
    assert space.variables == {"LOG_FORMAT": "json"}
    assert space.secrets == {"HF_TOKEN": READS, "ROUTER_API_KEYS": f"me:{KEY}"}
    assert (space.hardware, space.private) == ("zero-a10g", False)
    assert f"+ Space {SPACE}" in run.text and "+ file app.py" in run.text
    assert "BUILDING" in run.text and "all 8 checks passed" in run.text
    assert run.said[-1] == f"HF_ROUTER_API={hub.host}/v1/generate"


def test_the_second_run_changes_nothing(run: Runs, hub: FakeSpacesHub) -> None:
    run()
    assert run() == 0
    assert hub.changes() == []
    assert "nothing to change" in run.text and "all 8 checks passed" in run.text


def test_a_dry_run_shows_the_difference_and_changes_nothing(run: Runs, hub: FakeSpacesHub, clone: Path) -> None:
    assert run(dry_run=True) == 0
    assert hub.repos == {} and hub.changes() == []
    assert "+ secret HF_TOKEN" in run.text and "~ hardware none -> zero-a10g" in run.text
    run()
    (clone / "app.py").write_text("print('serves better')")
    (clone / "router_backend/server/serve.py").unlink()
    hub.repos[SPACE].variables["LOG_FORMAT"] = "human"
    assert run(dry_run=True) == 0
    assert run.said[1:] == [
        "  ~ variable LOG_FORMAT: 'human' -> 'json'",
        "  ~ file app.py",
        "  - file router_backend/server/serve.py",
    ]
    assert hub.changes() == []


def test_a_changed_file_is_all_that_is_sent(run: Runs, hub: FakeSpacesHub, clone: Path) -> None:
    run()
    (clone / "app.py").write_text("print('serves better')")
    assert run() == 0
    assert hub.changes() == [f"/api/spaces/{SPACE}/commit/main"]
    assert hub.repos[SPACE].files["app.py"] == b"print('serves better')"
    (body,) = [body for _, path, body in hub.asked if path.endswith("/commit/main")]
    assert body.count(b'"key": "file"') + body.count(b'"key":"file"') == 1


def test_secrets_that_are_there_are_set_anew_when_asked_for(run: Runs, hub: FakeSpacesHub) -> None:
    run()
    hub.repos[SPACE].secrets["HF_TOKEN"] = "old"
    run()
    assert hub.repos[SPACE].secrets["HF_TOKEN"] == "old"
    assert run(all_secrets=True) == 0
    assert hub.repos[SPACE].secrets["HF_TOKEN"] == READS


def test_refused_hardware_leaves_all_else_done(run: Runs, hub: FakeSpacesHub) -> None:
    run(wait=False)
    hub.repos[SPACE].hardware = "cpu-basic"
    hub.refuses["/hardware"] = (402, "Subscribe to PRO to use ZeroGPU")
    assert run() == 3
    assert "refuses the hardware zero-a10g (402, Subscribe to PRO to use ZeroGPU)" in run.text
    assert "app.py" in hub.repos[SPACE].files


def test_a_space_is_made_with_its_hardware_or_the_reason_is_said(run: Runs, hub: FakeSpacesHub) -> None:
    """A Space on a processor, which is what comes without hardware, is for paid plans."""
    hub.refuses["/repos/create"] = (402, "PRO required")
    with pytest.raises(HubError, match=r"refuses to create it on zero-a10g \(402, PRO required\)") as refused:
        run()
    assert "A free account may host two ZeroGPU Spaces" in refused.value.message
    assert hub.repos == {}
    hub.refuses["/repos/create"] = (500, "a moment")
    with pytest.raises(HubError, match="could not be changed: 500"):
        run()
    hub.refuses.clear()
    assert run() == 0
    (body,) = [json.loads(body) for _, path, body in hub.asked if path == "/api/repos/create"]
    assert body["hardware"] == hub.repos[SPACE].hardware == "zero-a10g"
    assert not any(path.endswith("/hardware") for path in hub.changes())


def test_the_last_line_says_that_a_stand_in_answers(run: Runs, hub: FakeSpacesHub) -> None:
    rung = Rung(Candidate("embedded", "embedded", last_resort=True), "gguf")
    attempts = (Attempt("acme/large", "any", "failed", "acme/large is gated:\nask for access", 0.1),)
    with served(rung=rung, attempts=attempts, router_api_keys=f"me:{KEY}") as running:
        hub.host = running.url
        assert run() == 0
    assert "model echo, strategy native, a stand-in" in run.text
    assert run.said[-1] == (
        f"HF_ROUTER_API={running.url}/v1/generate  # a stand-in answers: the embedded model, since no checkpoint of "
        "the list loads here (acme/large is gated: ask for access)"
    )


def test_a_refused_sleep_time_is_said_and_harms_nothing(run: Runs, hub: FakeSpacesHub, clone: Path) -> None:
    (clone / state.PLACE).write_text(STATE.replace("null", "3600"))
    hub.refuses["/sleeptime"] = (400, "Sleep time cannot be changed on ZeroGPU")
    assert run() == 0
    assert "refuses the sleep time of 3600 s (400, Sleep time cannot be changed on ZeroGPU)" in run.text
    hub.refuses.clear()
    assert run() == 0
    assert hub.repos[SPACE].sleep_time == 3600


def test_a_failed_build_shows_its_log_without_secrets(run: Runs, hub: FakeSpacesHub) -> None:
    hub.after_commit = ["BUILDING", "BUILD_ERROR"]
    hub.logs = ["Collecting fastapi\n", f"ERROR: no matching distribution, token {READS}\n"]
    assert run() == 1
    assert "  | ERROR: no matching distribution, token ***" in run.said
    assert any(path.endswith("/logs/build") for _, path, _ in hub.asked)
    hub.repos[SPACE].stages = ["RUNTIME_ERROR"]
    assert run() == 1
    assert any(path.endswith("/logs/run") for _, path, _ in hub.asked)


def test_an_interrupted_upload_leaves_nothing_and_is_taken_up(run: Runs, hub: FakeSpacesHub) -> None:
    hub.breaks = 1
    with pytest.raises(HubError, match="the upload failed, and nothing of it is there: the connection failed"):
        run()
    assert list(hub.repos[SPACE].files) == [".gitattributes"]
    assert run() == 0
    assert "app.py" in hub.repos[SPACE].files


def test_a_space_that_sleeps_is_started(run: Runs, hub: FakeSpacesHub) -> None:
    run()
    hub.repos[SPACE].stages = ["PAUSED"]
    assert run() == 0
    assert hub.changes() == [f"/api/spaces/{SPACE}/restart"]


def test_a_check_that_fails_is_a_failure(run: Runs, hub: FakeSpacesHub) -> None:
    hub.host = hub.url  # no router answers there
    assert run() == 1
    assert "FAIL" in run.text


def test_a_space_that_never_runs_is_given_up(run: Runs, hub: FakeSpacesHub) -> None:
    hub.after_commit = ["BUILDING"]
    with pytest.raises(HubError, match="is still BUILDING after"):
        run(timeout=0.2)
    assert run(wait=False) == 0


def test_a_missing_secret_is_asked_for_or_named(run: Runs, hub: FakeSpacesHub, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(hf_endpoint=hub.url, hf_hub_offline=False, hf_token=TOKEN)
    options = DeployOptions(SPACE, root=run.clone, wait=False)
    assert deploy(options, settings, run.said.append) == 0
    assert "the secret HF_TOKEN is not set, since SPACE_HF_TOKEN is not" in run.text
    assert hub.repos[SPACE].secrets == {}
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.prompt", lambda text, **_: READS if text.startswith("HF_TOKEN") else "")
    assert deploy(options, settings, run.said.append) == 0
    assert hub.repos[SPACE].secrets == {"HF_TOKEN": READS}


def test_keys_that_were_typed_open_the_space(run: Runs, hub: FakeSpacesHub, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(hf_endpoint=hub.url, hf_hub_offline=False, hf_token=TOKEN)
    options = DeployOptions(SPACE, root=run.clone, settle=0.1, poll=0.01, timeout=20)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    typed = {"HF_TOKEN": "", "ROUTER_API_KEYS": KEY}
    monkeypatch.setattr("typer.prompt", lambda text, **_: typed[text.split()[0]])
    with pytest.raises(SettingsError, match="name:key"):
        deploy(options, settings, run.said.append)
    assert hub.changes() == []
    typed["ROUTER_API_KEYS"] = f"me:{KEY}"
    assert deploy(options, settings, run.said.append) == 0
    assert "all 8 checks passed" in run.text


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"hf_hub_offline": True}, HubError, "HF_HUB_OFFLINE=0"),
        ({"hf_token": None}, HubError, "no token"),
        ({"hf_token": "hf_wrong"}, HubError, "401"),
        ({"hf_endpoint": "http://127.0.0.1:9"}, HubError, "the connection failed"),
        ({"space": "router"}, InvalidRequest, "write owner/name"),
        ({"root": Path("/")}, InvalidRequest, "clone"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    hub: FakeSpacesHub, clone: Path, change: dict[str, Any], error: type[Exception], words: str
) -> None:
    options: dict[str, Any] = {"space": SPACE, "root": clone}
    options |= {key: value for key, value in change.items() if key in options}
    given = {"hf_endpoint": hub.url, "hf_hub_offline": False, "hf_token": TOKEN, **change}
    if "root" in change:
        (clone / state.PLACE).parent.rename(clone / "elsewhere")
        error, words = SettingsError, "cannot be read"
    settings = load_settings(**{key: value for key, value in given.items() if key not in options})
    with pytest.raises(error, match=words):
        deploy(DeployOptions(**options), settings, print)
    assert hub.changes() == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("variables: {}", "hardware"),
        ("hardware: zero-a10g\nsleeps: 3", "sleeps"),
        ("hardware: zero-a10g\nvariables: {PORT: 7860}", r"variables\.PORT"),
        ("hardware: zero-a10g\nvariables: {A: b}\nsecrets: [A]", "a variable and a secret"),
        ("{", "cannot be read"),
    ],
)
def test_a_wrong_declaration_names_what_is_wrong(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / state.PLACE).parent.mkdir()
    (tmp_path / state.PLACE).write_text(text)
    with pytest.raises(SettingsError, match=words):
        state.declared(tmp_path)


def test_only_a_clone_has_a_list_of_files(clone: Path, tmp_path: Path) -> None:
    assert state.files(clone) == NEEDED
    (clone / "app.py").unlink()
    with pytest.raises(InvalidRequest, match=r"lacks app\.py"):
        state.files(clone)
    (tmp_path / "bare").mkdir()
    with pytest.raises(InvalidRequest, match="no git checkout"):
        state.files(tmp_path / "bare")


def test_the_command_says_what_is_wrong(hub: FakeSpacesHub) -> None:
    done = CliRunner().invoke(cli.app, ["deploy", SPACE], env={"HF_HUB_OFFLINE": "1"})
    assert done.exit_code == 2
    assert "HF_HUB_OFFLINE=0" in done.stderr


def test_the_commands_by_hand_exist() -> None:
    """Every `hf` line of the page: its command and its options, as the installed hf has them."""
    from click.testing import CliRunner as Runner
    from huggingface_hub.cli.hf import app as hf

    page = (Path(__file__).parents[2] / "docs/deploy.md").read_text("utf-8").replace("\\\n", " ")
    lines = [line.split("#")[0].split() for line in page.splitlines() if re.match(r"    (\.venv/bin/)?hf ", line)]
    assert len(lines) >= 7
    for _, *words in lines:
        path = [word for word in words[:3] if re.fullmatch("[a-z]+", word)]
        shown = Runner().invoke(hf, [*path, "--help"])
        assert shown.exit_code == 0, path
        known = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", shown.output))
        assert {word for word in words if word.startswith("-")} <= known, words
