"""The ladder: which checkpoint, in which precision, and why not the ones above it. Pure: what it does is handed in."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Literal, TypeVar

from router_backend.checkpoints.description import Checkpoint
from router_backend.checkpoints.footprint import Device, Footprint, cpu_dtype, estimate, shortfall
from router_backend.checkpoints.machine import Machine
from router_backend.errors import CandidateError, LoadError
from router_backend.settings import DEFAULT_FALLBACKS, STRATEGIES, Settings, is_url, split_list

Kind = Literal["hub", "folder", "gguf", "hub-gguf", "embedded", "echo", "upstream"]
Outcome = Literal["loaded", "failed", "skipped"]
T = TypeVar("T")
_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)  # of a repository


@dataclass(frozen=True, slots=True)
class Candidate:
    """A checkpoint that may be served.

    Attributes:
        name: as the operator wrote it, owner added: a path, or `owner/repo`, `owner/repo/folder@revision`,
            `owner/repo@revision:file.gguf`, or the URL of a server, with `#model` where that is named.
        kind: where it is and in which form.
        last_resort: whether nobody asked for it by name.
    """

    name: str
    kind: Kind
    last_resort: bool = False

    @property
    def engine(self) -> str:
        named = {"hub": "transformers", "folder": "transformers", "echo": "echo", "upstream": "upstream"}
        return named.get(self.kind, "llamacpp")

    @property
    def repo(self) -> str:
        """`owner/repo`, of a candidate on a hub."""
        return "/".join(self.name.partition(":")[0].partition("@")[0].split("/")[:2])

    @property
    def folder(self) -> str:
        """The folder inside the repository, `""` for all of it."""
        return "/".join(self.name.partition(":")[0].partition("@")[0].split("/")[2:])

    @property
    def revision(self) -> str | None:
        """The branch, tag or commit that is pinned."""
        return self.name.partition(":")[0].partition("@")[2] or None

    @property
    def file(self) -> str | None:
        """The GGUF file inside the repository."""
        return self.name.partition(":")[2] or None


@dataclass(frozen=True, slots=True)
class Rung:
    """One candidate in one precision; `skip` says why it is not even tried, `needs` what it takes, if that is known."""

    candidate: Candidate
    strategy: str
    skip: str | None = None
    needs: Footprint | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """What became of a rung, for `/health` and the log."""

    candidate: str
    strategy: str
    outcome: Outcome
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Loaded(Generic[T]):
    model: T
    rung: Rung
    attempts: tuple[Attempt, ...]

    @property
    def reason(self) -> str:
        """Why this one: a sentence for `/health`."""
        failed = [attempt for attempt in self.attempts if attempt.outcome != "loaded"]
        if self.rung.candidate.last_resort:
            first: dict[str, str] = {}
            for attempt in failed:
                first.setdefault(attempt.candidate, attempt.reason)
            why = "; ".join(reason if name in reason else f"{name}: {reason}" for name, reason in first.items())
            return f"a stand-in answers: the embedded model, since no checkpoint of the list loads here ({why})"
        if not failed:
            return "the first candidate in its first precision"
        return f"the first that loads, after {len(failed)} that did not (see attempts)"


class NothingLoads(LoadError):
    """Every rung failed or was skipped; `attempts` tells each one."""

    def __init__(self, attempts: tuple[Attempt, ...]) -> None:
        lines = [f"  {a.candidate} [{a.strategy}] {a.outcome}: {a.reason}" for a in attempts]
        super().__init__("\n".join(["no checkpoint could be loaded:", *lines]))
        self.attempts = attempts


def parse_candidate(name: str, owner: str) -> Candidate:
    """Tells a hub repo, a local folder, a `.gguf` file, `repo:file.gguf`, a URL and `embedded` apart."""
    if name == "embedded":
        return Candidate(name, "embedded")
    if is_url(name):
        return Candidate(name, "upstream")
    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return Candidate(str(path), "gguf")
    if path.is_dir():
        return Candidate(str(path), "folder")
    full = name if "/" in name.partition(":")[0] else f"{owner}/{name}"
    return Candidate(full, "hub-gguf" if full.endswith(".gguf") else "hub")


def candidates(settings: Settings) -> tuple[Candidate, ...]:
    """The checkpoints to consider, in order of preference, each once."""
    if settings.engine == "echo":
        return (Candidate("echo", "echo"),)
    repo = settings.model_repo or ""
    first = split_list(repo) if is_url(repo) else filter(None, [repo])
    named = (*first, *split_list(settings.model_fallbacks or ""))
    names = named or split_list(DEFAULT_FALLBACKS)
    found = tuple(dict.fromkeys(parse_candidate(name, settings.model_owner) for name in names))
    last = not named if settings.embedded_fallback is None else settings.embedded_fallback
    if not last or any(candidate.kind == "embedded" for candidate in found):
        return found
    return (*found, Candidate("embedded", "embedded", last_resort=True))


def strategies(settings: Settings) -> tuple[str, ...]:
    """The order of precisions: `MODEL_LOAD_STRATEGY`, the list, the booleans, then every one, each once."""
    asked = [settings.model_load_strategy] if settings.model_load_strategy else []
    listed = split_list(settings.model_load_strategies)
    booleans = [name for name, on in (("8bit", settings.load_in_8bit), ("4bit", settings.load_in_4bit)) if on]
    return tuple(dict.fromkeys([*asked, *listed, *booleans, *STRATEGIES]))


def rungs(
    candidate: Candidate,
    settings: Settings,
    machine: Machine,
    *,
    missing: Callable[[str, str | None], str | None] = lambda engine, method: None,
    describe: Callable[[Candidate], Checkpoint | None] = lambda candidate: None,
) -> tuple[Rung, ...]:
    """A candidate's rungs in the order in which they are tried, those that cannot work marked with the reason.

    `missing` says why an engine, or what it needs for a method of quantisation, is not there; the candidate then has
    one rung, which says so. `describe` is asked only where a rung is left to try; without what it knows, there is no
    foresight.

    Raises:
        CandidateError: what `describe` raises.
    """
    own = {"llamacpp": ("gguf",), "echo": ("native",), "upstream": ("served",)}.get(
        candidate.engine, strategies(settings)
    )
    if reason := missing(candidate.engine, None):
        odd = candidate.kind == "hub" and (not _NAME.fullmatch(candidate.repo) or "gguf" in candidate.repo.lower())
        if candidate.kind == "folder" or odd:
            describe(candidate)  # what is wrong with it is told first: no engine would help
        return (Rung(candidate, own[0], skip=reason),)
    no_card = _no_accelerator(settings, machine) if candidate.engine == "transformers" else None
    if no_card and settings.model_device == "cuda":
        return tuple(Rung(candidate, strategy, skip=no_card) for strategy in own)
    known = describe(candidate)
    if known is None:
        return tuple(Rung(candidate, strategy, no_card if strategy != "cpu" else None) for strategy in own)
    if known.quantized and candidate.engine == "transformers":
        if reason := missing(candidate.engine, known.quantized):
            return (Rung(candidate, "native", skip=reason),)
        own, no_card = ("native",), None  # never quantised twice; some methods run on the CPU
    return tuple(_foreseen(Rung(candidate, strategy), known, settings, machine, no_card) for strategy in own)


def _no_accelerator(settings: Settings, machine: Machine) -> str | None:
    if settings.model_device == "cpu" or machine.accelerators:
        return None
    if settings.model_device == "cuda":
        return "MODEL_DEVICE=cuda, and no accelerator on this machine"
    return "no accelerator on this machine (MODEL_DEVICE=cpu loads this rung on the CPU)"


def _foreseen(rung: Rung, known: Checkpoint, settings: Settings, machine: Machine, no_card: str | None) -> Rung:
    """The rung with what it needs, and skipped where that is not there."""
    where = devices(rung, settings, machine)
    dtype = cpu_dtype(machine)[0] if where == ("cpu",) else "bfloat16"
    needs = estimate(known, rung.strategy, settings.context_length, settings.slots, dtype=dtype)
    if no_card and rung.strategy != "cpu":
        return replace(rung, skip=no_card, needs=needs)
    reasons = [shortfall(needs, machine, device) for device in where]
    return replace(rung, skip=reasons[0] if all(reasons) else None, needs=needs)


def devices(rung: Rung, settings: Settings, machine: Machine) -> tuple[Device, ...]:
    """Where a rung may go. Whether llama.cpp here is built for a card is not known, so a GGUF may go to either."""
    if rung.strategy == "cpu" or settings.model_device == "cpu" or not machine.accelerators:
        return ("cpu",)
    return ("cuda", "cpu") if rung.strategy == "gguf" else ("cuda",)


def first_that_loads(
    candidates: Iterable[Candidate],
    rungs_of: Callable[[Candidate], Iterable[Rung]],
    load: Callable[[Rung], T],
    *,
    report: Callable[[Attempt], None] = lambda attempt: None,
    clock: Callable[[], float] = time.monotonic,
) -> Loaded[T]:
    """Walks the ladder: a `RungError` falls to the next rung, a `CandidateError` to the next candidate.

    `rungs_of` is asked when a candidate's turn has come; where it raises, the candidate fails in every precision.
    Anything else that is raised is trouble of this rung or candidate too, as is a panic of a library in Rust: it must
    not keep the next from loading.

    Raises:
        NothingLoads: with every attempt.
    """
    attempts: list[Attempt] = []

    def note(candidate: Candidate, strategy: str, outcome: Outcome, reason: str, seconds: float = 0.0) -> None:
        attempts.append(Attempt(candidate.name, strategy, outcome, reason, round(seconds, 3)))
        report(attempts[-1])

    for candidate in candidates:
        start = clock()
        try:
            steps = tuple(rungs_of(candidate))
        except BaseException as error:
            note(candidate, "any", "failed", _reason(error), clock() - start)
            continue
        for rung in steps:
            if rung.skip is not None:
                note(candidate, rung.strategy, "skipped", rung.skip)
                continue
            start = clock()
            try:
                model = load(rung)
            except BaseException as error:
                note(candidate, rung.strategy, "failed", _reason(error), clock() - start)
                if isinstance(error, CandidateError):
                    break
            else:
                note(candidate, rung.strategy, "loaded", "ok", clock() - start)
                return Loaded(model, rung, tuple(attempts))
    raise NothingLoads(tuple(attempts))


def _reason(error: BaseException) -> str:
    """What it says. Raises it again where it is to end the process."""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        raise error
    return error.message if isinstance(error, LoadError) else f"{type(error).__name__}: {error}"
