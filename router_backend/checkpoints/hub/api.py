"""HubApi: what is asked of a hub over HTTP, how long it is waited for, and what went wrong in words.

It uses huggingface_hub's session and addresses, and none of its calls: those wait for minutes where a hub hangs, repeat
the answer's address in their messages, which may be signed, and ask the hub for a list first to name their user agent.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import httpx2
from huggingface_hub import constants, get_session, get_token, hf_hub_url

from router_backend import __version__
from router_backend.checkpoints.ladder import Candidate
from router_backend.errors import CandidateError
from router_backend.settings import Settings

T = TypeVar("T")
_WORTH_A_RETRY = {408, 429, 500, 502, 503, 504}
_TOKEN = re.compile(r"[\x21-\x7e]+")


class Unreachable(CandidateError):
    """No hub answers: the next candidate of this walk need not ask."""


class CutShort(Exception):
    """A file ended too early."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """`etag`: of a large file its SHA-256, of others git's hash of it."""

    name: str
    size: int
    etag: str


class Patience:
    """How long a hub that sends nothing new is waited for: `HUB_TIMEOUT` seconds."""

    def __init__(self, seconds: float, stop: threading.Event | None = None) -> None:
        self._seconds, self._stop = seconds, stop or threading.Event()
        self._most, self._since, self._pause = 0, time.monotonic(), 0.5

    @property
    def rewarded(self) -> bool:
        return self._most > 0

    def reached(self, count: int) -> None:
        """So many bytes are there. Fewer than before, after a new beginning, are nothing new."""
        if count > self._most:
            self._most, self._since, self._pause = count, time.monotonic(), 0.5

    def wait(self, seconds: float | None) -> bool:
        """Waits before the next try, longer each time unless told how long. False, at once, where that is too long."""
        self._pause *= 2
        pause = self._pause if seconds is None else seconds
        if time.monotonic() - self._since + pause >= self._seconds:
            return False
        return not self._stop.wait(pause)


class HubApi:
    def __init__(self, settings: Settings) -> None:
        self._endpoint = (settings.hf_endpoint or constants.ENDPOINT).rstrip("/")
        self._given_token = settings.hf_token.get_secret_value() if settings.hf_token else None
        self.timeout = settings.hub_timeout
        self.host = urlsplit(self._endpoint).netloc.rpartition("@")[2]
        self.offline = "HF_HUB_OFFLINE is set" if settings.hf_hub_offline or constants.HF_HUB_OFFLINE else None

    def listing(self, candidate: Candidate) -> tuple[str, dict[str, HubFile]]:
        """The commit that a revision stands for, and its files. Raises CandidateError."""
        revision = quote(candidate.revision or constants.DEFAULT_REVISION, safe="")
        url = f"{self._endpoint}/api/models/{candidate.repo}/revision/{revision}?blobs=true"

        def ask() -> tuple[str, dict[str, HubFile]]:
            with self._get(url) as answer:
                answer.read()
                return _listed(answer.json())

        try:
            return self.patiently(candidate, ask, Patience(self.timeout))
        except (ValueError, TypeError, KeyError, AttributeError):
            raise CandidateError(f"{self.host} does not answer as a hub does: check HF_ENDPOINT") from None

    def read(self, candidate: Candidate, commit: str, name: str, start: int, count: int) -> bytes:
        """At most `count` bytes of a file. Raises CandidateError."""

        def ask() -> bytes:
            with self.open(candidate, commit, name, start, start + count - 1) as answer:
                skip = 0 if answer.status_code == httpx2.codes.PARTIAL_CONTENT else start
                found = bytearray()
                for block in answer.iter_bytes():
                    found += block
                    if len(found) >= skip + count:
                        break
                return bytes(found[skip : skip + count])

        return self.patiently(candidate, ask, Patience(self.timeout)) if count > 0 else b""

    @contextlib.contextmanager
    def open(
        self, candidate: Candidate, commit: str, name: str, start: int, end: int | None = None
    ) -> Iterator[httpx2.Response]:
        """A file's bytes from `start` to `end`, both included; with status 200 all of them."""
        url = hf_hub_url(candidate.repo, name, revision=commit, endpoint=self._endpoint)
        with self._get(url, {"range": f"bytes={start}-{'' if end is None else end}"}) as answer:
            yield answer

    def patiently(self, candidate: Candidate, ask: Callable[[], T], patience: Patience) -> T:
        """Asks again where that can help and patience lasts.

        Raises:
            Unreachable: there is no answer at all.
            CandidateError: in words that name what to do.
        """
        while True:
            try:
                return ask()
            except (httpx2.TransportError, _Refused, CutShort) as error:  # noqa: PERF203
                if not (_may_pass(error, patience) and patience.wait(getattr(error, "retry_after", None))):
                    raise self._explained(candidate, error) from None

    @contextlib.contextmanager
    def _get(self, url: str, headers: Mapping[str, str] | None = None) -> Iterator[httpx2.Response]:
        """The session leaves the token out where a redirect leads to another host."""
        own = {"user-agent": f"router-backend/{__version__}", "accept-encoding": "identity", **(headers or {})}
        if token := self._token:
            own["authorization"] = f"Bearer {token}"
        with get_session().stream("GET", url, headers=own, timeout=self.timeout) as answer:
            if answer.is_error:
                raise _Refused(answer)
            yield answer

    @property
    def _token(self) -> str | None:
        """`HF_TOKEN`, or the one that was stored by a login."""
        token = self._given_token or (None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token())
        if token and not _TOKEN.fullmatch(token):  # httpx would refuse it, and repeat it in its message
            raise CandidateError("HF_TOKEN has characters that no token has: copy it again")
        return token

    def _explained(self, candidate: Candidate, error: Exception) -> CandidateError:
        seconds = f"{self.timeout:g} seconds (HUB_TIMEOUT)"
        if isinstance(error, httpx2.TimeoutException):
            return Unreachable(f"{self.host} did not answer within {seconds}: try again later")
        if isinstance(error, httpx2.ConnectError):
            return Unreachable(f"cannot reach {self.host} ({error}): check the network, or HF_ENDPOINT")
        if isinstance(error, httpx2.TransportError):
            return Unreachable(f"{self.host} broke off ({type(error).__name__}): try again later")
        if isinstance(error, CutShort):
            return CandidateError(
                f"{self.host} {error}, and no more within {seconds}: try again, it goes on from there"
            )
        assert isinstance(error, _Refused)
        return CandidateError(self._refusal(candidate, error))

    def _refusal(self, candidate: Candidate, refused: _Refused) -> str:
        """A hub says 401 or 404 for what is private, whether it exists or not."""
        repo, host, status, ours = candidate.repo, self.host, refused.status, self._token is not None
        if refused.code == "GatedRepo":
            then = "the token in use belongs to an account without it" if ours else "then set HF_TOKEN"
            return f"{repo} is gated: ask for access on its page on {host}; {then}"
        if refused.code == "RevisionNotFound":
            return f"{repo} has no revision {candidate.revision}: check what follows the @"
        if refused.code == "EntryNotFound":
            return f"{repo} lost a file while it was read: try again"
        if refused.code == "RepoNotFound" or status == 404 or (status == 401 and not ours):
            then = "the token in use may not read it" if ours else "HF_TOKEN is not set, and a private one needs it"
            return f"no repository {repo} on {host}, or it is private: check the name; {then}"
        if status == 401:
            return f"{host} does not accept the token in use: HF_TOKEN is wrong or has expired, make a new one"
        if status == 403:
            return f"{host} forbids {repo}: " + ("give HF_TOKEN the right to read it" if ours else "set HF_TOKEN")
        if status == 416:
            return f"{host} has less of a file of {repo} than it lists: try again later"
        if status == 429:
            when = "later" if refused.retry_after is None else f"in {refused.retry_after:g} seconds"
            return f"{host} limits how often it is asked: try again {when}" + ("" if ours else ", or set HF_TOKEN")
        return f"{host} fails with HTTP {status} for {repo}: try again later"


class _Refused(Exception):
    """An answer that is none."""

    def __init__(self, answer: httpx2.Response) -> None:
        super().__init__(answer.status_code)
        self.status: int = answer.status_code
        self.code: str | None = answer.headers.get("x-error-code")
        after = answer.headers.get("retry-after", "")
        self.retry_after = float(after) if after.isdecimal() else None


def _may_pass(error: Exception, patience: Patience) -> bool:
    """Whether asking again can help. A hub that cannot be reached is waited for only where it could be before."""
    if isinstance(error, _Refused):
        return error.status in _WORTH_A_RETRY
    return patience.rewarded or not isinstance(error, httpx2.ConnectError)


def _listed(answer: dict[str, Any]) -> tuple[str, dict[str, HubFile]]:
    files = {}
    for each in answer["siblings"]:
        large = each.get("lfs") or {}
        etag = str(large.get("sha256") or each["blobId"])
        files[each["rfilename"]] = HubFile(each["rfilename"], int(each["size"]), etag)
    return str(answer["sha"]), files
