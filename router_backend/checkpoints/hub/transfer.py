"""Transfer: files of a repository on their way into huggingface_hub's cache, by a process that can be ended."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants

from router_backend.checkpoints.footprint import disk_shortfall, gigabytes
from router_backend.checkpoints.hub import child
from router_backend.checkpoints.hub.api import HubApi, HubFile, Patience
from router_backend.checkpoints.hub.child import Trouble, home_of
from router_backend.checkpoints.ladder import Candidate
from router_backend.errors import CandidateError

_log = logging.getLogger(__name__)
_TELL_EVERY = 10.0  # seconds


@dataclass(frozen=True, slots=True)
class Download:
    """The files of a commit that loading needs."""

    candidate: Candidate
    commit: str
    files: Sequence[HubFile]

    @property
    def snapshot(self) -> Path:
        """Where the cache has them."""
        return home_of(self.candidate.repo) / "snapshots" / self.commit

    def check_disk(self) -> None:
        """Raises CandidateError where what is still to be fetched does not fit."""
        if short := disk_shortfall(self._left(), Path(constants.HF_HUB_CACHE)):
            raise CandidateError(f"the download {short}: make room, or let HF_HOME name a larger disk")

    def run(self, api: HubApi) -> Path:
        """Fetches what the cache lacks of these files: the folder that has them. Raises CandidateError."""
        try:
            self.check_disk()
            if self._missing():
                self._tell("fetching")
                patience = Patience(api.timeout)
                api.patiently(self.candidate, lambda: self._attempt(api, patience), patience)
                self._tell("fetched")
            self._note()
        except OSError as error:
            raise api.explained(self.candidate, Trouble.of(error)) from error
        return self.snapshot

    def _attempt(self, api: HubApi, patience: Patience) -> None:
        """Runs the process that downloads. Raises Trouble."""
        patience.reached(1 + sum(file.size for file in self.files) - self._left())  # complete files are kept
        files = [(file.name, file.etag) for file in self._missing()]
        process = subprocess.Popen(  # noqa: S603 - our own file
            [sys.executable, child.__file__, json.dumps([self.candidate.repo, self.commit, api.timeout, files])],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # the library's warnings repeat addresses that may be signed
            env=os.environ | api.environment,
        )
        with process:
            try:
                while True:
                    try:
                        said, _ = process.communicate(timeout=_TELL_EVERY)
                        break
                    except subprocess.TimeoutExpired:
                        self._tell("fetching")
            finally:
                process.kill()
        if process.returncode:
            raise Trouble(**json.loads(said)) if said else Trouble("strange", f"exit code {process.returncode}")

    def _missing(self) -> list[HubFile]:
        return [file for file in self.files if not (self.snapshot / file.name).exists()]

    def _left(self) -> int:
        """Bytes that are still to come."""
        blobs = home_of(self.candidate.repo) / "blobs"
        return sum(file.size for file in self._missing() if not (blobs / file.etag).exists())

    def _tell(self, word: str) -> None:
        blobs, total = home_of(self.candidate.repo) / "blobs", sum(file.size for file in self.files)
        under_way = sum(each.stat().st_size for each in blobs.glob("*.incomplete") if each.exists())
        done = min(total, total - self._left() + under_way)
        _log.info("%s %s: %s of %s GB", word, self.candidate.name, gigabytes(done), gigabytes(total))

    def _note(self) -> None:
        """Keeps which commit a branch or tag stands for, as the library does. A cache may be there to be read only."""
        revision = self.candidate.revision or constants.DEFAULT_REVISION
        ref = home_of(self.candidate.repo) / "refs" / revision
        if revision != self.commit and not (ref.is_file() and ref.read_text() == self.commit):
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(self.commit)
