"""Checkpoints on a hub, in its cache and in folders: described without their weights, and fetched whole."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from router_backend.checkpoints.description import Checkpoint, Folder, Source, describe, gguf, read_config, weight_files
from router_backend.checkpoints.hub.api import HubApi, HubFile, Unreachable
from router_backend.checkpoints.hub.cache import Cache
from router_backend.checkpoints.hub.transfer import check_disk, download
from router_backend.checkpoints.ladder import Candidate
from router_backend.errors import CandidateError
from router_backend.settings import Settings

_log = logging.getLogger(__name__)
_BESIDE_WEIGHTS = (".json", ".jinja", ".txt", ".model")  # config, tokenizer, chat template
_REPO = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


def fetch(candidate: Candidate, settings: Settings) -> Path:
    """The folder with a checkpoint for transformers, whole. Raises CandidateError."""
    return Hub(settings).fetch(candidate)


def fetch_gguf(candidate: Candidate, settings: Settings) -> Path:
    """The file of `repo:file.gguf`, whole; of one in parts the first, the others beside it. Raises CandidateError."""
    return Hub(settings).fetch_gguf(candidate)


class Hub:
    """A hub as one walk of the ladder sees it: found unreachable once, it is not waited for again.

    With `HF_HUB_OFFLINE`, for folders, and for a pinned commit that the cache has whole, no network call is made.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._api = HubApi(settings)
        self._unreachable = self._api.offline

    def describe(self, candidate: Candidate) -> Checkpoint:
        """What is known of a repository or a folder without its weights.

        Raises:
            CandidateError: it cannot be had, or there is no room on the disk to fetch it.
        """
        try:
            source = self._source(candidate)
            if isinstance(source, _Repository):
                check_disk(source.cache, source.commit, source.wanted(self._settings))
            return self._known(candidate, source)
        except Unreachable as error:
            self._unreachable = error.message
            raise

    def fetch(self, candidate: Candidate) -> Path:
        folder = self._had(self._source(candidate))
        self._known(candidate, Folder(folder))  # it is whole, and nothing that must not be loaded
        return folder

    def fetch_gguf(self, candidate: Candidate) -> Path:
        source = self._source(candidate)
        return self._had(source) / _parts(candidate, source.sizes)[0]

    def _known(self, candidate: Candidate, source: Source) -> Checkpoint:
        if candidate.kind == "hub-gguf":
            return gguf(source.sizes[name] for name in _parts(candidate, source.sizes))
        return describe(source, trust_remote_code=self._settings.trust_remote_code)

    def _had(self, source: Folder | _Repository) -> Path:
        if isinstance(source, Folder):
            return source.path
        download(self._api, source.candidate, source.commit, source.wanted(self._settings))
        return source.cache.snapshot(source.commit)

    def _source(self, candidate: Candidate) -> Folder | _Repository:
        """The folder; the cached copy, where the hub need not or cannot be asked; or else the repository."""
        if candidate.kind == "folder":
            return Folder(Path(candidate.name))
        if not _REPO.fullmatch(candidate.repo):
            raise CandidateError(f"{candidate.repo} is no name of a repository: write owner/name")
        cache = Cache(candidate.repo)
        pinned = cache.pinned(candidate.revision)
        if pinned and self._trouble(candidate, cached := cache.folder(pinned)) is None and cached:
            return cached
        if self._unreachable is None:
            try:
                commit, files = self._api.listing(candidate)
                return _Repository(self._api, candidate, commit, files)
            except Unreachable as error:
                self._unreachable = error.message
        cached = cache.folder(pinned or cache.latest(candidate.revision))
        if trouble := self._trouble(candidate, cached):
            raise CandidateError(f"{self._unreachable}, and {trouble}")
        assert cached is not None
        _log.info("%s is taken from the cache", candidate.name, extra={"reason": self._unreachable})
        return cached

    def _trouble(self, candidate: Candidate, cached: Folder | None) -> str | None:
        """Why a cached copy cannot be used."""
        if cached is None:
            return f"{candidate.name} is not in the cache"
        try:
            self._known(candidate, cached)
        except CandidateError as error:
            return f"the copy of {candidate.name} in the cache cannot be used: {error.message}"
        return None


class _Repository:
    """A revision on the hub, as a `Source`."""

    def __init__(self, api: HubApi, candidate: Candidate, commit: str, files: Mapping[str, HubFile]) -> None:
        self.candidate = candidate
        self.commit = commit
        self.cache = Cache(candidate.repo)
        self.sizes = {file.name: file.size for file in files.values()}
        self._api, self._files = api, files

    def read(self, name: str, start: int, count: int) -> bytes:
        place = self.cache.snapshot(self.commit) / name
        if place.is_file():
            with place.open("rb") as file:
                file.seek(start)
                return file.read(count)
        return self._api.read(self.candidate, self.commit, name, start, count)

    def wanted(self, settings: Settings) -> list[HubFile]:
        """What loading needs, and nothing else: no pickles, no other frameworks' weights, no code unless trusted.

        Raises:
            CandidateError: it cannot be loaded, as far as config and names tell.
        """
        if self.candidate.kind == "hub-gguf":
            return [self._files[name] for name in _parts(self.candidate, self.sizes)]
        read_config(self, trust_remote_code=settings.trust_remote_code)
        kinds = (*_BESIDE_WEIGHTS, ".py") if settings.trust_remote_code else _BESIDE_WEIGHTS
        beside = [name for name in self.sizes if "/" not in name and name.endswith(kinds)]
        return [self._files[name] for name in (*beside, *weight_files(self))]


def _parts(candidate: Candidate, names: Iterable[str]) -> list[str]:
    """The GGUF file that is meant, or all parts of it, the first one first."""
    wanted = candidate.file or ""
    stem = _PART.sub("", wanted)
    found = sorted(name for name in names if name == wanted or (stem != wanted and _PART.sub("", name) == stem))
    if wanted not in found:
        there = ", ".join(sorted(name for name in names if name.endswith(".gguf"))[:8])
        raise CandidateError(f"{candidate.repo} has no file {wanted}; it has {there or 'no GGUF files'}")
    return found
