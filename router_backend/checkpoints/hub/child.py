"""The process that downloads: one that hangs can be ended, and takes nothing of the server with it.

It knows huggingface_hub and nothing of ours, which it is told by that library's own environment variables. Its argument
is JSON: `[repo, commit, seconds of silence, [[name, etag], …]]`. It writes what went wrong as JSON, and nothing else.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NoReturn

import httpx2
from huggingface_hub import constants, hf_hub_download, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import WeakFileLock, tqdm  # type: ignore[attr-defined] # exported lazily
from huggingface_hub.utils.sha import git_hash, sha_fileobj

_AT_ONCE = 8  # files, as in the library's own call for a repository
_PLAIN = re.compile(r'(W/)?"?\w[\w.-]*"?')  # a hash or a tag that can be a file's name

Kind = Literal["refused", "silent", "unreachable", "broke off", "cut short", "damaged", "disk", "strange"]


@dataclass(eq=False)
class Trouble(Exception):
    """What went wrong, without an address, which may be signed.

    Attributes:
        text: what a sentence about it needs: a reason, a file's name.
        status: HTTP's, of an answer that was refused, with the hub's own `code` and `retry_after` in seconds.
    """

    kind: Kind
    text: str = ""
    status: int = 0
    code: str | None = None
    retry_after: float | None = None

    @classmethod
    def of(cls, error: BaseException) -> Trouble:
        """The trouble behind an error of huggingface_hub, httpx2 or the disk."""
        if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
            error = error.__cause__
        if isinstance(error, Trouble):
            return error
        if isinstance(error, HfHubHTTPError):
            return cls.refused(error.response)
        if isinstance(error, httpx2.TimeoutException):
            return cls("silent")
        if isinstance(error, httpx2.ConnectError):
            return cls("unreachable", str(error))
        if isinstance(error, httpx2.TransportError):
            return cls("broke off", type(error).__name__)
        if isinstance(error, OSError) and error.errno is not None:
            return cls("disk", str(error.strerror))
        if isinstance(error, OSError) and "should be of size" in str(error):
            return cls("cut short")
        return cls("strange", type(error).__name__)

    @classmethod
    def refused(cls, answer: httpx2.Response) -> Trouble:
        after = answer.headers.get("retry-after", "")
        code = answer.headers.get("x-error-code")
        return cls("refused", "", answer.status_code, code, float(after) if after.isdecimal() else None)


class _Watch:
    """Ends the process when nothing has come for so long, or the process that began it is gone."""

    def __init__(self, home: Path, seconds: float) -> None:
        self.last = Trouble("silent")  # or the refusal after which the library waits before it asks again
        self.moved = 0.0
        self._blobs, self._seconds, self._parent = home / "blobs", seconds, os.getppid()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        seen, since = (-1.0, 0), time.monotonic()
        while time.monotonic() - since < self._seconds:
            time.sleep(0.1)
            if os.getppid() != self._parent:
                os._exit(1)
            # What another process writes is progress too: this one may wait for it.
            now = (self.moved, sum(each.stat().st_size for each in self._blobs.glob("*") if each.exists()))
            if now != seen:
                seen, since = now, time.monotonic()
        _end(self.last)

    def bar(self) -> type[tqdm]:
        """A progress bar of the library that tells this watch."""
        watch = self

        class Bar(tqdm):
            def update(self, n: float | None = 1) -> None:  # written to the disk
                watch.moved += abs(n or 0)

            def update_transfer(self, n: float | None = 1) -> None:  # came over the network, from Xet's store
                watch.moved += abs(n or 0)

            def set_transfer_postfix_str(self, *_: object, **__: object) -> None:
                pass

        return Bar

    def look_at(self, answer: httpx2.Response) -> None:
        """Notes refusals, and lets nothing pass that the library would make a path outside of the cache of."""
        if answer.is_error:
            self.last = Trouble.refused(answer)
        if answer.request.method == "HEAD":
            for name in ("etag", "x-linked-etag", "x-repo-commit"):
                if not _PLAIN.fullmatch(answer.headers.get(name, "none")):
                    raise Trouble("strange", f"{name} is a path")


def home_of(repo: str) -> Path:
    """A repository's part of the library's cache."""
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")


def main() -> None:
    repo, commit, seconds, files = json.loads(sys.argv[1])
    watch = _Watch(home_of(repo), seconds)
    # The library tells progress after each 10 MiB of a file: on a slow line, silence for longer than HUB_TIMEOUT.
    constants.DOWNLOAD_CHUNK_SIZE = 1 << 18
    set_client_factory(
        lambda: httpx2.Client(event_hooks={"response": [watch.look_at]}, follow_redirects=True, timeout=None)
    )
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        try:
            for done in as_completed(
                [pool.submit(_fetch, repo, commit, name, etag, watch.bar()) for name, etag in files]
            ):
                done.result()
        except Exception as error:
            _end(Trouble.of(error))


def _fetch(repo: str, commit: str, name: str, etag: str, bar: type[tqdm]) -> None:
    home = home_of(repo)
    lock = home.parent / ".locks" / home.name / f"{etag}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with suppress(TimeoutError), WeakFileLock(lock, timeout=0.1):  # nobody fetches it: what is there was left by a kill
        for left in (home / "blobs").glob(f"{etag}.*.incomplete"):
            left.unlink(missing_ok=True)
    place = Path(hf_hub_download(repo, name, revision=commit, tqdm_class=bar))
    if not _is_right(place, etag):
        place.resolve().unlink()
        place.unlink(missing_ok=True)
        raise Trouble("damaged", name)


def _is_right(place: Path, etag: str) -> bool:
    """Whether a file has the hash that the hub lists: over HTTP the library looks at its size alone."""
    if len(etag) == 40:  # git's, of a small file
        return git_hash(place.read_bytes()) == etag
    with place.open("rb") as data:
        return sha_fileobj(data).hex() == etag


def _end(trouble: Trouble) -> NoReturn:
    """Tells it, and waits for nothing else."""
    os.write(1, json.dumps(asdict(trouble)).encode())
    os._exit(1)


if __name__ == "__main__":
    main()
