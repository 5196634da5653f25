"""Cache: where huggingface_hub keeps the files of a repository, so that what was fetched is shared with it.

Its layout: "Understand caching" in the guides of huggingface_hub.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from router_backend.checkpoints.description import Folder

_COMMIT = re.compile(r"[0-9a-f]{40}")


class Cache:
    """One repository's part of the cache."""

    def __init__(self, repo: str) -> None:
        self.root = Path(constants.HF_HUB_CACHE)
        name = repo_folder_name(repo_id=repo, repo_type="model")
        self._home, self._locks = self.root / name, self.root / ".locks" / name

    def snapshot(self, commit: str) -> Path:
        return self._home / "snapshots" / commit

    def folder(self, commit: str | None) -> Folder | None:
        """What is there of a commit, whole or not."""
        return Folder(self.snapshot(commit), nested=True) if commit and self.snapshot(commit).is_dir() else None

    @staticmethod
    def pinned(revision: str | None) -> str | None:
        """The commit, where the revision is one and so cannot change."""
        return revision if revision and _COMMIT.fullmatch(revision) else None

    def latest(self, revision: str | None) -> str | None:
        """The commit that a branch or tag stood for when it was last fetched."""
        ref = self._ref(revision)
        return ref.read_text().strip() if ref.is_file() else None

    def note(self, revision: str | None, commit: str) -> None:
        if not self.pinned(revision) and self.latest(revision) != commit:  # a cache may be there to be read only
            ref = self._ref(revision)
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(commit)

    def blob(self, etag: str) -> Path:
        return self._home / "blobs" / etag

    def part(self, etag: str) -> Path:
        """The beginning of a file that is not whole yet."""
        return self._home / "blobs" / f"{etag}.part"

    def lock(self, etag: str) -> Path:
        return self._locks / f"{etag}.lock"

    def link(self, etag: str, place: Path) -> None:
        """Puts a whole file into a snapshot; without a link where there are none."""
        if place.exists():
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            place.symlink_to(os.path.relpath(self.blob(etag), place.parent))
        except OSError:
            shutil.move(self.blob(etag), place)

    def _ref(self, revision: str | None) -> Path:
        return self._home / "refs" / (revision or constants.DEFAULT_REVISION)
