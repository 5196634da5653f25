"""The ladder: which checkpoint, in which precision, and why not the ones above it. Pure; `load` is handed in."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

from router_backend.errors import CandidateError, LoadError, RungError
from router_backend.machine import Machine
from router_backend.settings import DEFAULT_FALLBACKS, STRATEGIES, Settings, split_list

Kind = Literal["hub", "folder", "gguf", "hub-gguf", "embedded", "echo"]
Outcome = Literal["loaded", "failed", "skipped"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A checkpoint that may be served.

    Attributes:
        name: as the operator wrote it, owner added.
        kind: where it is and in which form.
        last_resort: whether nobody asked for it by name.
    """

    name: str
    kind: Kind
    last_resort: bool = False

    @property
    def engine(self) -> str:
        return {"hub": "transformers", "folder": "transformers", "echo": "echo"}.get(self.kind, "llamacpp")


@dataclass(frozen=True, slots=True)
class Rung:
    """One candidate in one precision; `skip` says why it is not even tried."""

    candidate: Candidate
    strategy: str
    skip: str | None = None


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
            return (
                "the embedded model, as the last resort: neither MODEL_REPO nor MODEL_FALLBACKS is set, "
                "and no checkpoint of the default list loads here (see attempts)"
            )
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
    """Tells a hub repo, a local folder, a `.gguf` file, `repo:file.gguf` and `embedded` apart."""
    if name == "embedded":
        return Candidate(name, "embedded")
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
    if settings.model_repo is None and not split_list(settings.model_fallbacks or ""):
        names = split_list(DEFAULT_FALLBACKS)
        return (
            *(parse_candidate(name, settings.model_owner) for name in names),
            Candidate("embedded", "embedded", last_resort=True),
        )
    names = (*filter(None, [settings.model_repo]), *split_list(settings.model_fallbacks or ""))
    return tuple(dict.fromkeys(parse_candidate(name, settings.model_owner) for name in names))


def strategies(settings: Settings) -> tuple[str, ...]:
    """The order of precisions: `MODEL_LOAD_STRATEGY`, the list, the booleans, then every one, each once."""
    asked = [settings.model_load_strategy] if settings.model_load_strategy else []
    listed = split_list(settings.model_load_strategies)
    booleans = [name for name, on in (("8bit", settings.load_in_8bit), ("4bit", settings.load_in_4bit)) if on]
    return tuple(dict.fromkeys([*asked, *listed, *booleans, *STRATEGIES]))


def rungs(
    settings: Settings, machine: Machine, missing: Callable[[str], str | None] = lambda engine: None
) -> Iterator[Rung]:
    """Every rung in the order in which it is tried, those that cannot work marked with the reason.

    `missing` says why an engine is not there; its candidates have one rung, which says so.
    """
    no_accelerator = None
    if settings.model_device != "cpu" and not machine.accelerators:
        no_accelerator = "no accelerator on this machine (MODEL_DEVICE=cpu loads this rung on the CPU)"
        if settings.model_device == "cuda":
            no_accelerator = "MODEL_DEVICE=cuda, and no accelerator on this machine"
    for candidate in candidates(settings):
        own = {"llamacpp": ("gguf",), "echo": ("native",)}.get(candidate.engine, strategies(settings))
        reason = missing(candidate.engine)
        if reason is not None or candidate.engine != "transformers":
            yield Rung(candidate, own[0], skip=reason)
            continue
        for strategy in own:
            wants_cuda = strategy != "cpu" or settings.model_device == "cuda"
            yield Rung(candidate, strategy, skip=no_accelerator if wants_cuda else None)


def first_that_loads(
    ladder: Sequence[Rung],
    load: Callable[[Rung], T],
    *,
    report: Callable[[Attempt], None] = lambda attempt: None,
    clock: Callable[[], float] = time.monotonic,
) -> Loaded[T]:
    """Walks the ladder: a `RungError` falls to the next rung, a `CandidateError` to the next candidate.

    Anything else that `load` raises is a broken rung too: one checkpoint's trouble must not keep the next from loading.

    Raises:
        NothingLoads: with every attempt.
    """
    attempts: list[Attempt] = []
    given_up: Candidate | None = None

    def note(rung: Rung, outcome: Outcome, reason: str, seconds: float = 0.0) -> None:
        attempts.append(Attempt(rung.candidate.name, rung.strategy, outcome, reason, round(seconds, 3)))
        report(attempts[-1])

    for rung in ladder:
        if rung.candidate == given_up:
            continue
        if rung.skip is not None:
            note(rung, "skipped", rung.skip)
            continue
        start = clock()
        try:
            model = load(rung)
        except CandidateError as error:
            given_up = rung.candidate
            note(rung, "failed", error.message, clock() - start)
        except RungError as error:
            note(rung, "failed", error.message, clock() - start)
        except Exception as error:
            note(rung, "failed", f"{type(error).__name__}: {error}", clock() - start)
        else:
            note(rung, "loaded", "ok", clock() - start)
            return Loaded(model, rung, tuple(attempts))
    raise NothingLoads(tuple(attempts))
