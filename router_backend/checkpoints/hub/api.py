"""HubApi: what is asked of a hub without its weights, how long it is waited for, and what went wrong in words."""

from __future__ import annotations

import ipaddress
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import HfApi, constants, get_session, get_token, hf_hub_url
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined] # exported lazily

from router_backend import __version__
from router_backend.checkpoints.hub.child import Trouble
from router_backend.checkpoints.ladder import Candidate
from router_backend.errors import CandidateError
from router_backend.settings import Settings

T = TypeVar("T")
_NAME = "router-backend"
_WORTH_A_RETRY = {408, 429, 500, 502, 503, 504}
_TOKEN = re.compile(r"[\x21-\x7e]+")
COMMIT = re.compile(r"[0-9a-f]{40}")
_HASH = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")  # git's, or SHA-256

# Else the library would first ask the public hub for a list, only to name its user agent.
constants.HF_HUB_DISABLE_TELEMETRY = True


@dataclass(frozen=True, slots=True)
class HubFile:
    """`etag`: of a large file its SHA-256, of others git's hash of it."""

    name: str
    size: int
    etag: str


class Unreachable(CandidateError):
    """No hub answers: the next candidate of this walk need not ask."""


class Patience:
    """How long a hub that sends nothing new is waited for: `HUB_TIMEOUT` seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._most, self._since, self._pause = 0, time.monotonic(), 0.5

    def reached(self, count: int) -> None:
        """So many bytes are there. Fewer than before, after a new beginning, are nothing new."""
        if count > self._most:
            self._most, self._since, self._pause = count, time.monotonic(), 0.5

    def wait(self, trouble: Trouble) -> bool:
        """Waits before the next try, longer each time unless told how long. False, at once, where that cannot help.

        A hub that cannot be reached is waited for only where it could be before.
        """
        may_pass = trouble.kind in ("silent", "broke off", "cut short")
        may_pass |= trouble.kind == "refused" and trouble.status in _WORTH_A_RETRY
        may_pass |= trouble.kind == "unreachable" and self._most > 0
        self._pause *= 2
        pause = self._pause if trouble.retry_after is None else trouble.retry_after
        if not may_pass or time.monotonic() - self._since + pause >= self._seconds:
            return False
        time.sleep(pause)
        return True


class HubApi:
    def __init__(self, settings: Settings) -> None:
        self._endpoint = (settings.hf_endpoint or constants.ENDPOINT).rstrip("/")
        self._given_token = settings.hf_token.get_secret_value() if settings.hf_token else None
        self.timeout = settings.hub_timeout
        self.host = urlsplit(self._endpoint).netloc.rpartition("@")[2]
        self.offline = "HF_HUB_OFFLINE is set" if settings.hf_hub_offline or constants.HF_HUB_OFFLINE else None

    def listing(self, candidate: Candidate) -> tuple[str, dict[str, HubFile]]:
        """The commit that a revision stands for, and its files. Raises CandidateError."""
        api = HfApi(self._endpoint, self._token or False, _NAME, __version__)
        revision = candidate.revision or constants.DEFAULT_REVISION

        def ask() -> tuple[str, dict[str, HubFile]]:
            found = api.model_info(candidate.repo, revision=revision, timeout=self.timeout, files_metadata=True)
            files = {}
            for each in found.siblings or ():
                etag = str(each.lfs.sha256 if each.lfs else each.blob_id)
                if leaves_its_folder(each.rfilename) or not _HASH.fullmatch(etag):
                    raise CandidateError(
                        f"{self.host} lists a file of {candidate.repo} that would be kept outside of its folder: "
                        f"{each.rfilename!r} ({etag}); nothing of it is fetched"
                    )
                files[each.rfilename] = HubFile(each.rfilename, int(each.size or 0), etag)
            if not COMMIT.fullmatch(found.sha or ""):
                raise ValueError("no commit")
            return str(found.sha), files

        try:
            return self.patiently(candidate, ask, Patience(self.timeout))
        except HFValidationError:
            raise CandidateError(f"{candidate.repo} is no name of a repository: write owner/name") from None
        except (ValueError, TypeError, KeyError, AttributeError):
            raise self.explained(candidate, Trouble("strange")) from None

    def read(self, candidate: Candidate, commit: str, name: str, start: int, count: int) -> bytes:
        """At most `count` bytes of a file. Raises CandidateError."""
        url = hf_hub_url(candidate.repo, name, revision=commit, endpoint=self._endpoint)
        # The session leaves the token out where a redirect leads to another host.
        headers = build_hf_headers(token=self._token or False, library_name=_NAME, library_version=__version__)
        headers |= {"accept-encoding": "identity", "range": f"bytes={start}-{start + count - 1}"}

        def ask() -> bytes:
            with get_session().stream("GET", url, headers=headers, timeout=self.timeout) as answer:
                if answer.is_error:
                    raise Trouble.refused(answer)
                skip = 0 if answer.status_code == httpx2.codes.PARTIAL_CONTENT else start
                found = bytearray()
                for block in answer.iter_bytes():
                    found += block
                    if len(found) >= skip + count:
                        break
                return bytes(found[skip : skip + count])

        return self.patiently(candidate, ask, Patience(self.timeout)) if count > 0 else b""

    @property
    def environment(self) -> dict[str, str]:
        """What huggingface_hub is told in another process. Raises CandidateError where the token cannot be one."""
        seconds = str(max(1, math.ceil(self.timeout)))
        return {
            "HF_ENDPOINT": self._endpoint,
            "HF_TOKEN": self._token or "",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "" if self._token else "1",
            "HF_HUB_CACHE": constants.HF_HUB_CACHE,
            "HF_HUB_OFFLINE": "",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": seconds,
            "HF_HUB_ETAG_TIMEOUT": seconds,
        }

    def patiently(self, candidate: Candidate, ask: Callable[[], T], patience: Patience) -> T:
        """Asks again where that can help and patience lasts.

        Raises:
            Unreachable: there is no answer at all.
            CandidateError: in words that name what to do.
        """
        while True:
            try:
                return ask()
            except (httpx2.HTTPError, httpx2.InvalidURL, Trouble) as error:  # noqa: PERF203
                trouble = Trouble.of(error)
                if not patience.wait(trouble):
                    raise self.explained(candidate, trouble) from None

    def explained(self, candidate: Candidate, trouble: Trouble) -> CandidateError:
        seconds = f"{self.timeout:g} seconds (HUB_TIMEOUT)"
        host, text = self.host, trouble.text
        kind = "cut short" if trouble.status == 416 else trouble.kind
        said = {
            "silent": f"{host} did not answer within {seconds}: try again later",
            "unreachable": f"cannot reach {host} ({text}): check the network, or HF_ENDPOINT",
            "broke off": f"{host} broke off ({text}): try again later",
            "cut short": f"{host} has less of a file of {candidate.repo} than it lists: try again later",
            "damaged": f"{text} arrived damaged (its hash is wrong): try again",
            "disk": f"cannot keep {candidate.repo} in {constants.HF_HUB_CACHE} ({text}): "
            "make room there, or let HF_HOME name another folder",
            "strange": f"{host} does not answer as a hub does{text and f' ({text})'}: check HF_ENDPOINT",
        }
        away = kind in ("silent", "unreachable", "broke off")
        return (Unreachable if away else CandidateError)(said.get(kind) or self._refusal(candidate, trouble))

    @property
    def _token(self) -> str | None:
        """`HF_TOKEN`, or the one that was stored by a login; none for a hub that would get it in plain text."""
        token = self._given_token or (None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token())
        if token and not _TOKEN.fullmatch(token):  # httpx would refuse it, and repeat it in its message
            raise CandidateError("HF_TOKEN has characters that no token has: copy it again")
        return token if may_have_token(self._endpoint) else None

    def _refusal(self, candidate: Candidate, refused: Trouble) -> str:
        """A hub says 401 or 404 for what is private, whether it exists or not."""
        repo, host, status, ours = candidate.repo, self.host, refused.status, self._token is not None
        unset = "HF_TOKEN is not set" if may_have_token(self._endpoint) else "a token is sent over https only"
        set_it = "set HF_TOKEN" if may_have_token(self._endpoint) else "let HF_ENDPOINT begin with https"
        if refused.code == "GatedRepo":
            then = "the token in use belongs to an account without it" if ours else f"then {set_it}"
            return f"{repo} is gated: ask for access on its page on {host}; {then}"
        if refused.code == "RevisionNotFound":
            return f"{repo} has no revision {candidate.revision}: check what follows the @"
        if refused.code == "EntryNotFound":
            return f"{repo} lost a file while it was read: try again"
        if refused.code == "RepoNotFound" or status == 404 or (status == 401 and not ours):
            then = "the token in use may not read it" if ours else f"{unset}, and a private one needs it"
            return f"no repository {repo} on {host}, or it is private: check the name; {then}"
        if status == 401:
            return f"{host} does not accept the token in use: HF_TOKEN is wrong or has expired, make a new one"
        if status == 403:
            return f"{host} forbids {repo}: " + ("give HF_TOKEN the right to read it" if ours else set_it)
        if status == 429:
            when = "later" if refused.retry_after is None else f"in {refused.retry_after:g} seconds"
            return f"{host} limits how often it is asked: try again {when}" + ("" if ours else f", or {set_it}")
        return f"{host} fails with HTTP {status} for {repo}: try again later"


def may_have_token(endpoint: str) -> bool:
    """Whether a token may be sent there: over https, or in plain text to this machine."""
    url = urlsplit(endpoint)
    if url.scheme == "https" or url.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(url.hostname or "").is_loopback
    except ValueError:
        return False


def leaves_its_folder(name: str) -> bool:
    """Whether a name out of a listing, read as a path here or on Windows, leads out of the folder that it is put in."""
    parts = re.split(r"[/\\]", name)
    return any(part in ("", ".", "..") or ":" in part or not part.isprintable() for part in parts)
