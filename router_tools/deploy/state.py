"""State: what a Space should be, as `.huggingface/spaces.yml` and this clone say it, and what it is.

The files alone, in an empty folder, start and answer (tests/space/test_files.py). Nothing on the hub reads the YAML.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from huggingface_hub import HfApi, RepoFile
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils.sha import git_hash
from pydantic import BaseModel, ConfigDict, ValidationError

from router_backend.errors import InvalidRequest, SettingsError

PLACE = Path(".huggingface/spaces.yml")
_NEEDED = ("app.py", "requirements.txt", "README.md", "LICENSE")
_PACKAGE = "router_backend/"


class Declared(BaseModel):
    """What is asked of the hub.

    Attributes:
        hardware: the hub's name of it, like `zero-a10g`.
        sleep_time: seconds without a request; None: the hub's own.
        variables: for everyone to see.
        secrets: their names; the values stand in no file.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    hardware: str
    sleep_time: int | None = None
    variables: dict[str, str] = {}
    secrets: list[str] = []


def declared(root: Path) -> Declared:
    """Raises SettingsError where the file is missing or wrong; the message names the key."""
    try:
        found = Declared.model_validate(yaml.safe_load((root / PLACE).read_text("utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f"{PLACE} cannot be read: {type(error).__name__}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingsError(f"{PLACE}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if both := found.variables.keys() & set(found.secrets):
        raise SettingsError(f"{PLACE}: {min(both)} is a variable and a secret")
    return found


def files(root: Path) -> list[str]:
    """Paths below `root`, sorted: of what git does not ignore, the package and the files beside it.

    Raises:
        InvalidRequest: it is no git checkout, or lacks one of the files.
    """
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        said = subprocess.run(command, cwd=root, check=True, capture_output=True).stdout  # noqa: S603 - nothing is the user's
    except (OSError, subprocess.CalledProcessError):
        raise InvalidRequest(f"{root} is no git checkout: deploy runs in a clone of the project, with git") from None
    known = {name for name in said.decode().split("\0") if (root / name).is_file()}
    if missing := set(_NEEDED) - known:
        raise InvalidRequest(f"{root} lacks {', '.join(sorted(missing))}: deploy runs in a clone of the project")
    return sorted({*_NEEDED, *(name for name in known if name.startswith(_PACKAGE))})


def hashes(content: bytes) -> set[str]:
    """Those that the hub may list for a file: git's, or that of a large file's content."""
    return {git_hash(content), hashlib.sha256(content).hexdigest()}


@dataclass(frozen=True)
class There:
    """A Space as the hub describes it.

    Attributes:
        commit: None where there is no such Space.
        files: path → hash; of large files that of their content.
        secrets: names; no hub tells the values.
        hardware: what was last asked for.
        stage: RUNNING, BUILDING, …
    """

    commit: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    secrets: frozenset[str] = frozenset()
    hardware: str | None = None
    sleep_time: int | None = None
    stage: str = "NO_APP_FILE"


def look(api: HfApi, space: str) -> There:
    """Asks the hub. Raises huggingface_hub's errors, but not where there is no such Space."""
    try:
        info = api.space_info(space)
    except RepositoryNotFoundError:
        return There()
    runtime = api.get_space_runtime(space)
    tree = api.list_repo_tree(space, recursive=True, repo_type="space")
    return There(
        commit=info.sha,
        files={each.path: each.lfs.sha256 if each.lfs else each.blob_id for each in tree if isinstance(each, RepoFile)},
        variables={name: each.value for name, each in api.get_space_variables(space).items()},
        secrets=frozenset(api.get_space_secrets(space)),
        hardware=runtime.requested_hardware or runtime.hardware,
        sleep_time=runtime.sleep_time,
        stage=str(runtime.raw["stage"]),
    )
