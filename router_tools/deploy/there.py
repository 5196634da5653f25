"""There: the state that a Space has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from huggingface_hub import HfApi, RepoFile
from huggingface_hub.errors import RepositoryNotFoundError


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
