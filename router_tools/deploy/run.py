"""One deployment: compare, apply what differs, wait for the Space, check it at its address."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import typer
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError
from pydantic import SecretStr

from router_backend.checkpoints.hub.write import hub_access, refusals, words
from router_backend.client import ClientError, RouterClient
from router_backend.errors import HubError, InvalidRequest
from router_backend.settings import Settings, load_settings
from router_tools.deploy.state import There, declared, files, hashes, look
from router_tools.smoke import run_smoke

DONE, FAILED, REFUSED = 0, 1, 3
_ON_THE_WAY = ("BUILDING", "RUNNING_BUILDING", "APP_STARTING", "RUNNING_APP_STARTING")
_ASLEEP = ("SLEEPING", "PAUSED", "STOPPED")
_LOG_LINES = 60
_THE_HUBS_OWN = (".gitattributes",)  # what the hub itself puts into a repository
_WHO_MAY = (
    "A free account may host two ZeroGPU Spaces when it is older than 30 days and its e-mail address is verified; "
    "a new Space on a processor alone needs a paid plan"
)
# Where a secret's value stands under another name, since its own means something else here.
_VARIABLES = {"HF_TOKEN": "SPACE_HF_TOKEN"}


@dataclass(frozen=True)
class DeployOptions:
    """What is deployed, and how, as the help of the command has it.

    Attributes:
        root: the clone whose files go there.
        settle: seconds in which a hub may still show the state from before a change.
        poll: seconds between two looks.
    """

    space: str
    root: Path = Path(__file__).parent.parent.parent
    dry_run: bool = False
    wait: bool = True
    private: bool = False
    all_secrets: bool = False
    timeout: float = 1800
    settle: float = 15
    poll: float = 3


def deploy(options: DeployOptions, settings: Settings, out: Callable[[str], object] = print) -> int:
    """Brings the Space to the state that is declared. Done twice it changes nothing the second time.

    Returns:
        0: it is as declared (or only shown), and well. 1: it does not build or start, or a check failed. 3: the hub
        refuses the hardware; all else is done. (2, the command's own: nothing could be done.)

    Raises:
        HubError: the hub cannot be used: offline, no token, no access, no connection, a change refused.
        InvalidRequest: the name is none, or this is no clone of the project.
        SettingsError: the declared state is wrong.
    """
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", options.space, re.ASCII):
        raise InvalidRequest(f"{options.space} is no name of a Space: write owner/name")
    return _Deployment(options, settings, out).run()


class _Deployment:
    def __init__(self, options: DeployOptions, settings: Settings, out: Callable[[str], object]) -> None:
        self._options, self._settings, self._out = options, settings, out
        self._space = options.space
        self._api: HfApi = hub_access(settings)
        self._declared = declared(options.root)
        given = {value for name in self._declared.secrets if (value := self._given(name))}
        self._hidden = {str(self._api.token), *settings.api_keys.values(), *given}
        self._secrets: dict[str, str] = {}
        self._keys = settings.api_keys
        self._refused = False

    def run(self) -> int:
        content = {name: (self._options.root / name).read_bytes() for name in files(self._options.root)}
        with refusals(f"{self._space} cannot be read"):
            there = look(self._api, self._space)
        missing = [name for name in self._declared.secrets if self._options.all_secrets or name not in there.secrets]
        changes = list(self._changes(there, content, missing))
        size = sum(map(len, content.values())) / 1e6
        self._say(f"{self._space}: {len(content)} files ({size:.1f} MB) as the Space should have them")
        for line in [line for lines, _ in changes for line in lines] or ["nothing to change"]:
            self._say(f"  {line}")
        if self._options.dry_run:
            return DONE
        self._secrets = {name: value for name in missing if (value := self._secret(name)) is not None}
        self._hidden.update(self._secrets.values())
        with refusals(f"{self._space} could not be changed"):
            for _, apply in changes:
                apply()
        if there.stage in _ASLEEP and not changes:
            with refusals(f"{self._space} could not be started"):
                self._api.restart_space(self._space)
            self._say(f"{self._space}: it was {there.stage.lower()}, and is started again")
        if self._refused or not self._options.wait:
            return REFUSED if self._refused else DONE
        return self._wait_and_check(changed=bool(changes) or there.stage in _ASLEEP)

    def _changes(
        self, there: There, content: dict[str, bytes], secrets: list[str]
    ) -> Iterator[tuple[list[str], Callable[[], object]]]:
        """What brings the Space to the declared state, as lines and by what it is done.

        Lines begin with + for what is new, ~ for what becomes another, - for what goes. Variables and secrets that are
        not declared stay as they are.
        """
        wanted, space = self._declared, self._space
        if there.commit is None:
            yield [f"+ Space {space}"], self._create
        if there.hardware != wanted.hardware:
            line = f"~ hardware {there.hardware or 'none'} -> {wanted.hardware}"
            yield [line], self._hardware if there.commit else lambda: None  # it is created with its own
        if wanted.sleep_time not in (None, there.sleep_time):
            line = f"~ sleep time {there.sleep_time or 'none'} -> {wanted.sleep_time} s"
            yield [line], partial(self._sleep, wanted.sleep_time)
        for key, value in wanted.variables.items():
            if (was := there.variables.get(key)) != value:
                sign, before = ("+", "") if was is None else ("~", f"{was!r} -> ")
                line = f"{sign} variable {key}: {before}{value!r}"
                yield [line], partial(self._api.add_space_variable, space, key, value)
        for name in secrets:
            line = f"{'~' if name in there.secrets else '+'} secret {name}"
            yield [line], partial(self._set_secret, name)
        upload = [path for path, data in content.items() if there.files.get(path) not in hashes(data)]
        delete = sorted(path for path in there.files if path not in content and path not in _THE_HUBS_OWN)
        if upload or delete:
            lines = [f"{'~' if path in there.files else '+'} file {path}" for path in upload]
            added = [CommitOperationAdd(path, content[path]) for path in upload]
            gone = [CommitOperationDelete(path) for path in delete]
            yield [*lines, *(f"- file {path}" for path in delete)], partial(self._upload, there, added, gone)

    def _create(self) -> None:
        """With its hardware: one that is made without is made on a processor, which not every account may have."""
        wanted: Any = self._declared.hardware  # new ones need no new library
        try:
            self._api.create_repo(
                self._space,
                repo_type="space",
                space_sdk="gradio",
                space_hardware=wanted,
                private=self._options.private,
                exist_ok=True,
            )
        except HfHubHTTPError as error:
            if error.response.status_code not in (402, 403):
                raise
            raise HubError(
                f"{self._space}: the hub refuses to create it on {wanted} ({words(error)}). {_WHO_MAY}"
            ) from None
        self._say(f"{self._space}: created on {wanted}")

    def _upload(self, there: There, added: list[CommitOperationAdd], gone: list[CommitOperationDelete]) -> None:
        """One commit, so that the Space never has some of the files."""
        message = f"Deploy router-backend ({len(added)} files, {len(gone)} removed)"
        with refusals(f"{self._space}: the upload failed, and nothing of it is there"):
            done = self._api.create_commit(
                self._space, [*added, *gone], commit_message=message, repo_type="space", parent_commit=there.commit
            )
        self._say(f"{self._space}: {len(added)} files uploaded, {len(gone)} removed, commit {done.oid[:12]}")

    def _hardware(self) -> None:
        wanted: Any = self._declared.hardware
        try:
            self._api.request_space_hardware(self._space, wanted)
            self._say(f"{self._space}: hardware {wanted} asked for")
        except HfHubHTTPError as error:
            self._say(f"{self._space}: the hub refuses the hardware {wanted} ({words(error)}). {_WHO_MAY}")
            self._refused = True

    def _sleep(self, wanted: int) -> None:
        try:
            self._api.set_space_sleep_time(self._space, wanted)
        except HfHubHTTPError as error:
            self._say(f"{self._space}: the hub refuses the sleep time of {wanted} s ({words(error)}); it keeps its own")

    def _set_secret(self, name: str) -> None:
        if name in self._secrets:
            self._api.add_space_secret(self._space, name, self._secrets[name])

    def _secret(self, name: str) -> str | None:
        """From the environment, or asked for on a terminal. The token that deploys never becomes the Space's own."""
        given = self._given(name)
        if given is not None:
            return given
        if not (sys.stdin and sys.stdin.isatty()):
            self._say(f"{self._space}: the secret {name} is not set, since {_VARIABLES.get(name, name)} is not")
            return None
        asked: str = typer.prompt(f"{name} of the Space (Enter: none)", default="", hide_input=True, show_default=False)
        if name == "ROUTER_API_KEYS" and asked.strip():  # the Space would not start with what is none
            self._keys = load_settings(router_api_keys=asked.strip()).api_keys
            self._hidden.update(self._keys.values())
        return asked.strip() or None

    def _given(self, name: str) -> str | None:
        value = getattr(self._settings, _VARIABLES.get(name, name).lower(), None)
        return value.get_secret_value() if isinstance(value, SecretStr) else None

    def _wait_and_check(self, *, changed: bool) -> int:
        stage = self._await_stage(changed=changed)
        if stage != "RUNNING":
            self._say(f"{self._space}: {stage}, and not running")
            self._show_logs(build=stage in ("BUILD_ERROR", "CONFIG_ERROR"))
            return FAILED
        with refusals(f"{self._space}: its address is not known"):
            info = self._api.space_info(self._space)
        url = str(info.host or f"https://{info.subdomain}.hf.space")
        key = self._key(private=bool(info.private))
        health = self._await_model(url, key)
        code = run_smoke(url, key, tools=self._settings.tools, out=self._say)
        note = f"  # {' '.join(health['reason'].split())}" if health.get("stand_in") else ""
        self._say(f"HF_ROUTER_API={url.rstrip('/')}/v1/generate{note}")
        return DONE if code == 0 else FAILED

    def _await_stage(self, *, changed: bool) -> str:
        """The stage in which it stays. One from before the change does not count, while `settle` lasts."""
        began, last = time.monotonic(), ""
        while True:
            with refusals(f"{self._space}: its stage is not known"):
                stage = str(self._api.get_space_runtime(self._space).raw["stage"])
            passed = time.monotonic() - began
            if stage != last:
                self._say(f"{self._space}: {stage} ({passed:.0f} s)")
            changed = changed and stage not in _ON_THE_WAY
            last = stage
            if stage not in _ON_THE_WAY and (not changed or passed > self._options.settle):
                return stage
            if passed > self._options.timeout:
                raise HubError(f"{self._space} is still {stage} after {passed:.0f} s; it goes on without being watched")
            time.sleep(self._options.poll)

    def _await_model(self, url: str, key: str | None) -> dict[str, Any]:
        """`/health` when no model is being loaded any more: a fresh Space fetches its checkpoint first."""
        deadline = time.monotonic() + self._options.timeout
        with RouterClient(url, key, timeout=30) as client:
            try:
                health = client.health()
                if health["status"] == "loading":
                    self._say(f"{self._space}: the checkpoint is being loaded")
                while health["status"] == "loading" and time.monotonic() < deadline:
                    time.sleep(self._options.poll)
                    health = client.health()
                return health
            except ClientError:  # the checks say what is wrong
                return {}

    def _key(self, *, private: bool) -> str | None:
        """A private Space is opened by the hub's token, which then takes the place of a key of ours."""
        return str(self._api.token) if private else next(iter(self._keys.values()), None)

    def _show_logs(self, *, build: bool) -> None:
        try:
            texts = self._api.fetch_space_logs(self._space, build=build)
            lines = [line for text in texts for line in text.splitlines()]
        except HfHubHTTPError as error:
            self._say(f"the logs cannot be had: {words(error)}")
            return
        for line in lines[-_LOG_LINES:]:
            self._say(f"  | {line}")

    def _say(self, line: str) -> None:
        for secret in self._hidden:
            line = line.replace(secret, "***")
        self._out(line)
