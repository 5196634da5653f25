"""There: the state that a Space has, and how it differs from the one that is declared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from huggingface_hub import HfApi, RepoFile
from huggingface_hub.errors import RepositoryNotFoundError

from router_tools.deploy.declared import Declared

# What the hub itself puts into a repository.
_THE_HUBS_OWN = (".gitattributes",)


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
    private: bool = False
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
        private=bool(info.private),
        files={each.path: each.lfs.sha256 if each.lfs else each.blob_id for each in tree if isinstance(each, RepoFile)},
        variables={name: each.value for name, each in api.get_space_variables(space).items()},
        secrets=frozenset(api.get_space_secrets(space)),
        hardware=runtime.requested_hardware or runtime.hardware,
        sleep_time=runtime.sleep_time,
        stage=str(runtime.raw["stage"]),
    )


@dataclass(frozen=True)
class Changes:
    """What has to be done. Falsy where nothing has.

    Attributes:
        create: the Space is missing.
        upload, delete: paths.
        variables: those to set.
        secrets: names of those to set.
    """

    create: bool
    upload: tuple[str, ...]
    delete: tuple[str, ...]
    variables: Mapping[str, str]
    secrets: tuple[str, ...]
    hardware: str | None
    sleep_time: int | None

    def __bool__(self) -> bool:
        asked = self.hardware is not None or self.sleep_time is not None
        return bool(self.create or asked or self.upload or self.delete or self.variables or self.secrets)


def compare(there: There, declared: Declared, local: Mapping[str, frozenset[str]], *, all_secrets: bool) -> Changes:
    """What brings the Space to the declared state. Variables and secrets that are not declared stay as they are.

    Args:
        local: path → the hashes that a hub may list for the file.
        all_secrets: those that the Space has already are set anew too.
    """
    kept = {*local, *_THE_HUBS_OWN}
    return Changes(
        create=there.commit is None,
        upload=tuple(path for path, hashes in local.items() if there.files.get(path) not in hashes),
        delete=tuple(sorted(path for path in there.files if path not in kept)),
        variables={key: value for key, value in declared.variables.items() if there.variables.get(key) != value},
        secrets=tuple(name for name in declared.secrets if all_secrets or name not in there.secrets),
        hardware=declared.hardware if there.hardware != declared.hardware else None,
        sleep_time=declared.sleep_time if there.sleep_time != declared.sleep_time else None,
    )


def diff(space: str, there: There, changes: Changes) -> Iterator[str]:
    """The changes as lines: + what is new, ~ what becomes another, - what goes."""
    if changes.create:
        yield f"+ Space {space}"
    if changes.hardware is not None:
        yield f"~ hardware {there.hardware or 'none'} -> {changes.hardware}"
    if changes.sleep_time is not None:
        yield f"~ sleep time {there.sleep_time or 'none'} -> {changes.sleep_time} s"
    for key, value in changes.variables.items():
        was = f"{there.variables[key]!r} -> " if key in there.variables else ""
        yield f"{'~' if was else '+'} variable {key}: {was}{value!r}"
    for name in changes.secrets:
        yield f"{'~' if name in there.secrets else '+'} secret {name}"
    for path in changes.upload:
        yield f"{'~' if path in there.files else '+'} file {path}"
    for path in changes.delete:
        yield f"- file {path}"
