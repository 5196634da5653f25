"""Transfer: files of a repository on their way into the cache, whole or not at all.

An interrupted file goes on where it stopped, also in the next process, and is checked against the hub's own hash.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import httpx2
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined] # exported lazily

from router_backend.checkpoints.footprint import gigabytes
from router_backend.checkpoints.hub.api import CutShort, HubApi, HubFile, Patience
from router_backend.checkpoints.hub.cache import Cache
from router_backend.checkpoints.ladder import Candidate
from router_backend.errors import CandidateError

_log = logging.getLogger(__name__)
_AT_ONCE = 4  # files
_TELL_EVERY = 10.0  # seconds


def check_disk(cache: Cache, commit: str, files: Sequence[HubFile]) -> None:
    """Raises CandidateError where what is still to be fetched does not fit."""
    needed = sum(_left(cache, commit, file) for file in files)
    there = next(each for each in (cache.root, *cache.root.absolute().parents) if each.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise CandidateError(
            f"needs {gigabytes(needed)} GB of disk for the download, {gigabytes(free)} GB free in {cache.root}: "
            "make room, or let HF_HOME name a larger disk"
        )


def download(api: HubApi, candidate: Candidate, commit: str, files: Sequence[HubFile]) -> None:
    """Fetches what the cache lacks of these files, several at once. Raises CandidateError."""
    cache = Cache(candidate.repo)
    try:
        _download(cache, api, candidate, commit, files)
    except OSError as error:
        raise CandidateError(
            f"cannot keep {candidate.repo} in {cache.root} ({error.strerror}): "
            "make room there, or let HF_HOME name another folder"
        ) from error


def _download(cache: Cache, api: HubApi, candidate: Candidate, commit: str, files: Sequence[HubFile]) -> None:
    check_disk(cache, commit, files)
    missing = [file for file in files if not (cache.snapshot(commit) / file.name).exists()]
    if missing:
        transfer = _Transfer(api, candidate, commit, missing)
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fetch") as pool:
            work = [pool.submit(transfer.fetch, file) for file in missing]
            try:
                for done in as_completed(work):
                    done.result()
            except BaseException:
                transfer.stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        transfer.tell("fetched")
    cache.note(candidate.revision, commit)


class _Transfer:
    """Several files on their way, in as many threads. `stop` ends all of them."""

    def __init__(self, api: HubApi, candidate: Candidate, commit: str, files: Sequence[HubFile]) -> None:
        self.stop = threading.Event()
        self._api, self._candidate, self._commit = api, candidate, commit
        self._cache = Cache(candidate.repo)
        self._total = sum(file.size for file in files)
        self._done = self._total - sum(_left(self._cache, commit, file) for file in files)
        self._lock, self._told = threading.Lock(), time.monotonic()
        self.tell("fetching")

    def fetch(self, file: HubFile) -> None:
        blob, part, lock = (each(file.etag) for each in (self._cache.blob, self._cache.part, self._cache.lock))
        for path in (blob, lock):
            path.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):  # the one of huggingface_hub itself: whoever else fetches this file waits
            if not blob.exists():
                patience = Patience(self._api.timeout, self.stop)
                self._api.patiently(self._candidate, lambda: self._stream(file, part, patience), patience)
                _check(file, part)
                part.replace(blob)
            self._cache.link(file.etag, self._cache.snapshot(self._commit) / file.name)

    def tell(self, word: str) -> None:
        size = f"{gigabytes(self._done)} of {gigabytes(self._total)} GB"
        _log.info("%s %s: %s", word, self._candidate.name, size)

    def _stream(self, file: HubFile, part: Path, patience: Patience) -> None:
        """Appends what the part lacks. Raises CutShort where less came."""
        with part.open("ab") as out:
            if out.tell() < file.size:
                with self._api.open(self._candidate, self._commit, file.name, out.tell()) as answer:
                    if answer.status_code != httpx2.codes.PARTIAL_CONTENT:
                        self._add(-out.tell())
                        out.truncate(0)
                        out.seek(0)
                    for block in answer.iter_bytes():
                        out.write(block)
                        patience.reached(out.tell())
                        self._add(len(block))
            if out.tell() < file.size:
                raise CutShort(f"sent {out.tell():,} of {file.size:,} bytes of {file.name}")

    def _add(self, count: int) -> None:
        if self.stop.is_set():
            raise CandidateError("given up, since another of its files cannot be had")
        with self._lock:
            self._done += count
            due = time.monotonic() - self._told >= _TELL_EVERY
            if due:
                self._told = time.monotonic()
        if due:
            self.tell("fetching")


def _left(cache: Cache, commit: str, file: HubFile) -> int:
    """Bytes of a file that are still to come."""
    if (cache.snapshot(commit) / file.name).exists() or cache.blob(file.etag).exists():
        return 0
    part = cache.part(file.etag)
    return file.size - min(file.size, part.stat().st_size if part.exists() else 0)


def _check(file: HubFile, part: Path) -> None:
    """Raises CandidateError, and drops the part, where it is not what the hub says that it has."""
    large = len(file.etag) == hashlib.sha256().digest_size * 2
    digest = hashlib.sha256() if large else hashlib.sha1(b"blob %d\0" % part.stat().st_size, usedforsecurity=False)
    with part.open("rb") as data:
        while block := data.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != file.etag:
        part.unlink()
        raise CandidateError(f"{file.name} arrived damaged (its hash is wrong): try again")
