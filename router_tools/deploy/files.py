"""The files that the Space needs: an empty folder with these alone starts and answers (tests/space/test_files.py)."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from huggingface_hub.utils.sha import git_hash

from router_backend.errors import InvalidRequest

_NEEDED = ("app.py", "requirements.txt", "README.md", "LICENSE")
_PACKAGE = "router_backend/"


def listed(root: Path) -> list[str]:
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
