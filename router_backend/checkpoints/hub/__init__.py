"""Checkpoints on a hub, in its cache and in folders: described without their weights, and fetched complete."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import RevisionResolutionError

from router_backend.checkpoints.description import (
    BESIDE_WEIGHTS,
    Checkpoint,
    Folder,
    Source,
    describe,
    gguf,
    is_tokenizer,
    read_config,
    weight_files,
)
from router_backend.checkpoints.hub.api import COMMIT, HubApi, HubFile, Unreachable, leaves_its_folder
from router_backend.checkpoints.hub.transfer import Download
from router_backend.checkpoints.ladder import Candidate
from router_backend.errors import CandidateError
from router_backend.settings import Settings

_log = logging.getLogger(__name__)
_REPO = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


def fetch(candidate: Candidate, settings: Settings) -> Path:
    """As `Hub.fetch`, for one checkpoint alone."""
    return Hub(settings).fetch(candidate)


class Hub:
    """A hub as one walk of the ladder sees it: asked once for each candidate, and not again once unreachable.

    With `HF_HUB_OFFLINE`, for folders, and for a pinned commit that the cache has complete, no network call is made.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._api = HubApi(settings)
        self._unreachable = self._api.offline
        self._sources: dict[Candidate, Folder | _Repository] = {}

    def describe(self, candidate: Candidate) -> Checkpoint:
        """What is known of a repository or a folder without its weights.

        Raises:
            CandidateError: it cannot be had, or there is no room on the disk to fetch it.
        """
        try:
            source = self._source(candidate)
            if isinstance(source, _Repository):
                source.download(self._settings).check_disk()
            return self._known(candidate, source)
        except Unreachable as error:
            self._unreachable = error.message
            raise

    def fetch(self, candidate: Candidate) -> Path:
        """The folder with a checkpoint for transformers, complete, or the file of `repo:file.gguf`.

        Of a file in parts it is the first, with the others beside it. Raises CandidateError.
        """
        source = self._source(candidate)
        if isinstance(source, Folder):
            folder = source.path
        else:
            folder = source.download(self._settings).run(self._api) / candidate.folder
        if candidate.kind == "hub-gguf":
            return folder / _parts(candidate, source.sizes)[0]
        self._known(candidate, Folder(folder))  # it is complete, and nothing that must not be loaded
        return folder

    def _known(self, candidate: Candidate, source: Source) -> Checkpoint:
        if candidate.kind == "hub-gguf":
            return gguf(source, _parts(candidate, source.sizes))
        return describe(source, trust_remote_code=self._settings.trust_remote_code)

    def _source(self, candidate: Candidate) -> Folder | _Repository:
        if candidate not in self._sources:
            self._sources[candidate] = self._found(candidate)
        return self._sources[candidate]

    def _found(self, candidate: Candidate) -> Folder | _Repository:
        """The folder; the cached copy, where the hub need not or cannot be asked; or else the repository."""
        if candidate.kind == "folder":
            return Folder(Path(candidate.name))
        inside = filter(None, (candidate.folder, candidate.revision))
        if any(map(leaves_its_folder, inside)) or not _REPO.fullmatch(candidate.repo):
            raise CandidateError(f"{candidate.name} is no name of a repository: write owner/name")
        if COMMIT.fullmatch(candidate.revision or ""):
            with suppress(CandidateError):
                return self._cached(candidate)
        if self._unreachable is None:
            try:
                commit, files = self._api.listing(candidate)
                return _Repository(self._api, candidate, commit, files)
            except Unreachable as error:
                self._unreachable = error.message
        try:
            cached = self._cached(candidate)
        except CandidateError as error:
            raise CandidateError(f"{self._unreachable}, and {error.message}") from None
        _log.info("%s is taken from the cache", candidate.name, extra={"reason": self._unreachable})
        return cached

    def _cached(self, candidate: Candidate) -> Folder:
        """The copy in the cache: of a branch the commit that was fetched last. Raises CandidateError."""
        revision, place = candidate.revision or constants.DEFAULT_REVISION, None
        with suppress(RevisionResolutionError):
            commit = HfApi().resolve_revision(candidate.repo, revision=revision, local_files_only=True).resolved
            place = Download(candidate, commit, ()).snapshot / candidate.folder
        if place is None or not place.is_dir():
            raise CandidateError(f"{candidate.name} is not in the cache")
        cached = Folder(place, nested=True)
        try:
            self._known(candidate, cached)
        except CandidateError as error:
            said = f"the copy of {candidate.name} in the cache cannot be used: {error.message}"
            raise CandidateError(said) from None
        return cached


class _Repository:
    """A revision on the hub, as a `Source` of what lies in the candidate's folder."""

    def __init__(self, api: HubApi, candidate: Candidate, commit: str, files: Mapping[str, HubFile]) -> None:
        self.candidate = candidate
        self._api, self._commit, self._files = api, commit, files
        self._folder = f"{candidate.folder}/" if candidate.folder else ""
        inside = [name for name in files if name.startswith(self._folder)]
        self.sizes = {name.removeprefix(self._folder): files[name].size for name in inside}
        if not inside:
            raise CandidateError(f"{candidate.repo} has no folder {candidate.folder}")

    def read(self, name: str, start: int, count: int) -> bytes:
        place = Download(self.candidate, self._commit, ()).snapshot / self._folder / name
        if place.is_file():
            with place.open("rb") as file:
                file.seek(start)
                return file.read(count)
        if self.sizes.get(name) == 0:
            return b""  # of which no range can be asked for
        return self._api.read(self.candidate, self._commit, self._folder + name, start, count)

    def download(self, settings: Settings) -> Download:
        """What loading needs, and nothing else: no pickles, no other frameworks' weights, no code unless trusted.

        Raises:
            CandidateError: it cannot be loaded, as far as config and names tell.
        """
        if self.candidate.kind == "hub-gguf":
            names = _parts(self.candidate, self.sizes)
        else:
            read_config(self, trust_remote_code=settings.trust_remote_code)
            kinds = (*BESIDE_WEIGHTS, ".py") if settings.trust_remote_code else BESIDE_WEIGHTS
            names = [name for name in self.sizes if "/" not in name and name.endswith(kinds)]
            names += weight_files(self)
        wanted = [self._folder + name for name in names]
        above = self._folder
        while above and not _tokenizer(wanted, above):  # it may be in a folder above the weights
            above = "".join(f"{part}/" for part in above.split("/")[:-2])
            wanted += _tokenizer(self._files, above)
        if self.candidate.kind != "hub-gguf" and not (settings.trust_remote_code or _tokenizer(wanted, above)):
            raise CandidateError("it has no tokenizer: put the files of the one that it was trained with beside it")
        return Download(self.candidate, self._commit, [self._files[name] for name in wanted])


def _tokenizer(names: Iterable[str], folder: str) -> list[str]:
    """Those of a tokenizer in a folder, whose name ends with a slash or is empty."""
    return [name for name in names if name.startswith(folder) and is_tokenizer(name.removeprefix(folder))]


def _parts(candidate: Candidate, names: Iterable[str]) -> list[str]:
    """The GGUF file that is meant, or all parts of it, the first one first."""
    wanted = candidate.file or ""
    stem = _PART.sub("", wanted)
    found = sorted(name for name in names if name == wanted or (stem != wanted and _PART.sub("", name) == stem))
    if wanted not in found:
        there = ", ".join(sorted(name for name in names if name.endswith(".gguf"))[:8])
        raise CandidateError(f"{candidate.repo} has no file {wanted}; it has {there or 'no GGUF files'}")
    return found
