from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from router_backend.errors import CandidateError, LoadError, RungError
from router_backend.ladder import (
    Attempt,
    Candidate,
    Kind,
    Loaded,
    NothingLoads,
    Rung,
    candidates,
    first_that_loads,
    parse_candidate,
    rungs,
    strategies,
)
from router_backend.machine import Accelerator, Machine
from router_backend.settings import STRATEGIES, Settings, load_settings

DEFAULTS = [
    "Alovestocode/router-gemma3-merged",
    "Alovestocode/router-llama31-merged",
    "Alovestocode/router-qwen3-32b-merged",
]
CPU_ONLY = Machine(processor="x86_64", cores=2, total_bytes=8 << 30, free_bytes=4 << 30)
WITH_GPU = Machine("x86_64", 2, 8 << 30, 4 << 30, (Accelerator("Some GPU", 80 << 30, 79 << 30),))


def names(settings: Settings) -> list[str]:
    return [candidate.name for candidate in candidates(settings)]


# Candidates


@pytest.mark.parametrize(
    ("repo", "fallbacks", "expected"),
    [
        ("me/pinned", None, ["me/pinned"]),
        ("me/pinned", "a/one,b/two", ["me/pinned", "a/one", "b/two"]),
        (None, "a/one,b/two", ["a/one", "b/two"]),
        (None, None, [*DEFAULTS, "embedded"]),
        ("", "", [*DEFAULTS, "embedded"]),
        ("  ", "  ", [*DEFAULTS, "embedded"]),
        ("pinned", None, ["Alovestocode/pinned"]),
        ("pinned", "", ["Alovestocode/pinned"]),
        ("", "one", ["Alovestocode/one"]),
        (None, "one, b/two ,three", ["Alovestocode/one", "b/two", "Alovestocode/three"]),
        (None, ",one,,two,", ["Alovestocode/one", "Alovestocode/two"]),
        ("a/one", "b/two,a/one,b/two", ["a/one", "b/two"]),
        ("one", "Alovestocode/one,two", ["Alovestocode/one", "Alovestocode/two"]),
        ("embedded", None, ["embedded"]),
        ("a/one", "embedded", ["a/one", "embedded"]),
        ("embedded", "a/one,embedded", ["embedded", "a/one"]),
    ],
)
def test_candidates_in_order_of_preference(repo: str | None, fallbacks: str | None, expected: list[str]) -> None:
    assert names(load_settings(model_repo=repo, model_fallbacks=fallbacks)) == expected


def test_bare_names_get_the_owner_of_the_settings() -> None:
    settings = load_settings(model_repo="pinned", model_fallbacks="one,b/two", model_owner="acme")
    assert names(settings) == ["acme/pinned", "acme/one", "b/two"]


def test_the_default_list_has_its_own_owner() -> None:
    """The contract spells the default with its owner; `MODEL_OWNER` is for names without one."""
    assert names(load_settings(model_owner="acme")) == [*DEFAULTS, "embedded"]


def test_a_list_of_nothing_but_commas_is_no_list() -> None:
    assert names(load_settings(model_fallbacks=" , ,")) == [*DEFAULTS, "embedded"]


def test_blanks_around_the_pin_are_no_part_of_it() -> None:
    assert names(load_settings(model_repo=" embedded ")) == ["embedded"]
    assert names(load_settings(model_repo=" me/pinned\n")) == ["me/pinned"]


def test_embedded_is_the_last_resort_only_where_nobody_named_it() -> None:
    *listed, last = candidates(load_settings())
    assert last == Candidate("embedded", "embedded", last_resort=True)
    assert not any(candidate.last_resort for candidate in listed)
    for settings in (
        load_settings(model_repo="embedded"),
        load_settings(model_fallbacks="a/one,embedded"),
        load_settings(model_repo="a/one"),
        load_settings(model_fallbacks="a/one"),
    ):
        assert not any(candidate.last_resort for candidate in candidates(settings))


def test_the_echo_engine_needs_no_checkpoint() -> None:
    assert candidates(load_settings(engine="echo", model_repo="a/one")) == (Candidate("echo", "echo"),)


@pytest.mark.parametrize(
    ("name", "expected", "kind", "engine"),
    [
        ("embedded", "embedded", "embedded", "llamacpp"),
        ("owner/repo", "owner/repo", "hub", "transformers"),
        ("repo", "me/repo", "hub", "transformers"),
        ("owner/repo:file.gguf", "owner/repo:file.gguf", "hub-gguf", "llamacpp"),
        ("repo:file.gguf", "me/repo:file.gguf", "hub-gguf", "llamacpp"),
        ("owner/repo:quants/file.gguf", "owner/repo:quants/file.gguf", "hub-gguf", "llamacpp"),
        ("repo:quants/file.gguf", "me/repo:quants/file.gguf", "hub-gguf", "llamacpp"),
    ],
)
def test_kinds_of_remote_candidates(name: str, expected: str, kind: Kind, engine: str) -> None:
    candidate = parse_candidate(name, "me")
    assert (candidate.name, candidate.kind, candidate.engine) == (expected, kind, engine)


def test_kinds_of_local_candidates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    (tmp_path / "notes.txt").write_text("no checkpoint")
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "odd.gguf.d").mkdir()
    assert parse_candidate(str(tmp_path / "tiny.gguf"), "me") == Candidate(str(tmp_path / "tiny.gguf"), "gguf")
    assert parse_candidate("tiny.gguf", "me") == Candidate("tiny.gguf", "gguf")
    assert parse_candidate("./tiny.gguf", "me").kind == "gguf"
    assert parse_candidate("./tiny.gguf", "me").engine == "llamacpp"
    assert parse_candidate("checkpoint", "me") == Candidate("checkpoint", "folder")
    assert parse_candidate(f"{tmp_path}/checkpoint/", "me") == Candidate(str(tmp_path / "checkpoint"), "folder")
    assert parse_candidate("checkpoint", "me").engine == "transformers"
    assert parse_candidate("notes.txt", "me").kind == "hub"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_candidate("~/tiny.gguf", "me") == Candidate(str(tmp_path / "tiny.gguf"), "gguf")


def test_a_local_file_named_twice_is_tried_once(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    settings = load_settings(model_repo="tiny.gguf", model_fallbacks="./tiny.gguf,embedded")
    assert names(settings) == ["tiny.gguf", "embedded"]


# Strategies


@pytest.mark.parametrize(
    ("strategy", "listed", "in_8bit", "in_4bit", "expected"),
    [
        (None, "", None, None, "8bit 4bit bf16 fp16 cpu"),
        ("4bit", "", None, None, "4bit 8bit bf16 fp16 cpu"),
        ("cpu", "", None, None, "cpu 8bit 4bit bf16 fp16"),
        ("NF4", "", None, None, "4bit 8bit bf16 fp16 cpu"),
        (None, "fp16,bf16", None, None, "fp16 bf16 8bit 4bit cpu"),
        (None, "8bit,4bit,cpu", None, None, "8bit 4bit cpu bf16 fp16"),
        (None, "half, int4 ,half", None, None, "fp16 4bit 8bit bf16 cpu"),
        (None, "", True, None, "8bit 4bit bf16 fp16 cpu"),
        (None, "", None, True, "4bit 8bit bf16 fp16 cpu"),
        (None, "", True, True, "8bit 4bit bf16 fp16 cpu"),
        (None, "", False, True, "4bit 8bit bf16 fp16 cpu"),
        (None, "", False, False, "8bit 4bit bf16 fp16 cpu"),
        ("cpu", "", None, True, "cpu 4bit 8bit bf16 fp16"),
        (None, "cpu", None, True, "cpu 4bit 8bit bf16 fp16"),
        ("bf16", "fp16", None, True, "bf16 fp16 4bit 8bit cpu"),
        ("fp16", "cpu,bf16,fp16", True, True, "fp16 cpu bf16 8bit 4bit"),
    ],
)
def test_the_order_of_precisions(
    strategy: str | None, listed: str, in_8bit: bool | None, in_4bit: bool | None, expected: str
) -> None:
    settings = load_settings(
        model_load_strategy=strategy, model_load_strategies=listed, load_in_8bit=in_8bit, load_in_4bit=in_4bit
    )
    assert strategies(settings) == tuple(expected.split())
    assert sorted(strategies(settings)) == sorted(STRATEGIES)


# Rungs


def test_with_an_accelerator_no_rung_is_skipped() -> None:
    for device in ("auto", "cuda", "cpu"):
        found = list(rungs(load_settings(model_repo="a/one", model_device=device), WITH_GPU))
        assert [(rung.strategy, rung.skip) for rung in found] == [(name, None) for name in STRATEGIES]


def test_without_an_accelerator_only_cpu_is_tried_and_the_reason_is_told() -> None:
    found = list(rungs(load_settings(model_repo="a/one"), CPU_ONLY))
    assert [rung.strategy for rung in found] == list(STRATEGIES)
    assert [rung.strategy for rung in found if rung.skip is None] == ["cpu"]
    for rung in found[:-1]:
        assert rung.skip is not None
        assert "no accelerator" in rung.skip
        assert "MODEL_DEVICE=cpu" in rung.skip


def test_cpu_asked_for_by_name_loads_every_rung() -> None:
    found = list(rungs(load_settings(model_repo="a/one", model_device="cpu"), CPU_ONLY))
    assert [(rung.strategy, rung.skip) for rung in found] == [(name, None) for name in STRATEGIES]


def test_cuda_asked_for_by_name_does_not_fall_to_the_cpu() -> None:
    found = list(rungs(load_settings(model_repo="a/one", model_device="cuda"), CPU_ONLY))
    assert [rung.strategy for rung in found] == list(STRATEGIES)
    assert all(rung.skip and "MODEL_DEVICE=cuda" in rung.skip for rung in found)


def test_every_precision_of_a_candidate_comes_before_the_next_candidate() -> None:
    settings = load_settings(model_repo="a/one", model_fallbacks="embedded,b/two", model_load_strategy="bf16")
    found = [(rung.candidate.name, rung.strategy) for rung in rungs(settings, WITH_GPU)]
    order = ["bf16", "8bit", "4bit", "fp16", "cpu"]
    assert found == [*(("a/one", s) for s in order), ("embedded", "gguf"), *(("b/two", s) for s in order)]


@pytest.mark.parametrize("machine", [CPU_ONLY, WITH_GPU])
@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_a_gguf_is_one_rung_on_any_machine(machine: Machine, device: str) -> None:
    settings = load_settings(model_repo="owner/repo:file.gguf", model_device=device, model_load_strategy="4bit")
    assert list(rungs(settings, machine)) == [Rung(Candidate("owner/repo:file.gguf", "hub-gguf"), "gguf")]


def test_the_echo_engine_is_one_rung() -> None:
    assert [rung.strategy for rung in rungs(load_settings(engine="echo"), CPU_ONLY)] == ["native"]


def test_an_engine_that_is_missing_takes_one_rung_that_says_so() -> None:
    settings = load_settings(model_repo="a/one", model_fallbacks="embedded", model_load_strategy="bf16")
    found = list(rungs(settings, WITH_GPU, lambda engine: "not installed" if engine == "transformers" else None))
    assert [(rung.candidate.name, rung.strategy, rung.skip) for rung in found] == [
        ("a/one", "bf16", "not installed"),
        ("embedded", "gguf", None),
    ]
    found = list(rungs(settings, WITH_GPU, lambda engine: f"no {engine}"))
    assert [rung.skip for rung in found] == ["no transformers", "no llamacpp"]


# The walk

ONE, TWO = Candidate("a/one", "hub"), Candidate("b/two", "hub")
LADDER = [Rung(ONE, "8bit"), Rung(ONE, "cpu"), Rung(TWO, "8bit"), Rung(TWO, "cpu")]


def ticks(*seconds: float) -> Callable[[], float]:
    """A clock that moves on by `seconds`, one after the other, between start and end of each load."""

    def times() -> Iterator[float]:
        now = 100.0
        for step in seconds:
            yield now
            now += step
            yield now

    return times().__next__


def walk(
    outcomes: dict[tuple[str, str], BaseException], ladder: Sequence[Rung] = LADDER
) -> tuple[Loaded[str], list[Rung], list[Attempt]]:
    tried: list[Rung] = []
    reported: list[Attempt] = []

    def load(rung: Rung) -> str:
        tried.append(rung)
        if error := outcomes.get((rung.candidate.name, rung.strategy)):
            raise error
        return f"{rung.candidate.name}@{rung.strategy}"

    return first_that_loads(ladder, load, report=reported.append), tried, reported


def test_the_first_rung_that_loads_ends_the_walk() -> None:
    loaded, tried, reported = walk({})
    assert loaded.model == "a/one@8bit"
    assert loaded.rung == tried[-1] == LADDER[0]
    assert len(tried) == 1
    assert [(a.candidate, a.strategy, a.outcome, a.reason) for a in loaded.attempts] == [
        ("a/one", "8bit", "loaded", "ok")
    ]
    assert list(loaded.attempts) == reported
    assert loaded.reason == "the first candidate in its first precision"


def test_a_rung_error_moves_on_to_the_next_rung() -> None:
    loaded, tried, reported = walk({("a/one", "8bit"): RungError("out of memory")})
    assert loaded.model == "a/one@cpu"
    assert tried == LADDER[:2]
    assert [(a.strategy, a.outcome, a.reason) for a in reported] == [
        ("8bit", "failed", "out of memory"),
        ("cpu", "loaded", "ok"),
    ]
    assert loaded.reason == "the first that loads, after 1 that did not (see attempts)"


def test_a_candidate_error_moves_on_to_the_next_candidate_at_once() -> None:
    loaded, tried, reported = walk({("a/one", "8bit"): CandidateError("no such repo")})
    assert loaded.model == "b/two@8bit"
    assert tried == [LADDER[0], LADDER[2]]
    assert [(a.candidate, a.outcome, a.reason) for a in reported] == [
        ("a/one", "failed", "no such repo"),
        ("b/two", "loaded", "ok"),
    ]


def test_a_candidate_error_after_a_rung_error() -> None:
    outcomes: dict[tuple[str, str], BaseException] = {
        ("a/one", "8bit"): RungError("out of memory"),
        ("a/one", "cpu"): CandidateError("broken config"),
        ("b/two", "8bit"): RungError("unsupported"),
    }
    loaded, tried, _ = walk(outcomes)
    assert loaded.model == "b/two@cpu"
    assert tried == LADDER
    assert loaded.reason == "the first that loads, after 3 that did not (see attempts)"


@pytest.mark.parametrize("error", [ValueError("bad header"), MemoryError("no room"), OSError(28, "disk full")])
def test_any_other_exception_is_a_broken_rung(error: Exception) -> None:
    loaded, tried, reported = walk({("a/one", "8bit"): error})
    assert loaded.model == "a/one@cpu"
    assert tried == LADDER[:2]
    assert reported[0].outcome == "failed"
    assert reported[0].reason == f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
def test_a_wish_to_stop_is_not_swallowed(error: BaseException) -> None:
    with pytest.raises(type(error)):
        walk({("a/one", "8bit"): error})


def test_skipped_rungs_are_told_and_not_loaded() -> None:
    ladder = [Rung(ONE, "8bit", skip="no accelerator"), Rung(ONE, "cpu")]
    loaded, tried, reported = walk({}, ladder)
    assert tried == ladder[1:]
    assert reported[0] == Attempt("a/one", "8bit", "skipped", "no accelerator", 0.0)
    assert loaded.reason == "the first that loads, after 1 that did not (see attempts)"


def test_a_given_up_candidate_is_not_even_skipped_again() -> None:
    ladder = [Rung(ONE, "8bit"), Rung(ONE, "4bit", skip="no accelerator"), Rung(TWO, "cpu")]
    _, _, reported = walk({("a/one", "8bit"): CandidateError("gated")}, ladder)
    assert [(a.candidate, a.strategy) for a in reported] == [("a/one", "8bit"), ("b/two", "cpu")]


def test_nothing_loads_lists_every_attempt() -> None:
    ladder = [Rung(ONE, "8bit", skip="no accelerator"), *LADDER[1:]]
    reported: list[Attempt] = []

    def load(rung: Rung) -> str:
        raise RungError(f"{rung.strategy} of {rung.candidate.name} is broken")

    with pytest.raises(NothingLoads) as caught:
        first_that_loads(ladder, load, report=reported.append)
    assert isinstance(caught.value, LoadError)
    assert list(caught.value.attempts) == reported
    assert len(reported) == len(ladder)
    assert caught.value.message.splitlines()[1:] == [
        "  a/one [8bit] skipped: no accelerator",
        "  a/one [cpu] failed: cpu of a/one is broken",
        "  b/two [8bit] failed: 8bit of b/two is broken",
        "  b/two [cpu] failed: cpu of b/two is broken",
    ]
    assert str(caught.value) == caught.value.message


def test_an_empty_ladder_loads_nothing() -> None:
    with pytest.raises(NothingLoads) as caught:
        first_that_loads([], lambda rung: rung)
    assert caught.value.attempts == ()


def test_each_attempt_has_its_own_seconds() -> None:
    def load(rung: Rung) -> str:
        if rung == LADDER[0]:
            raise RungError("out of memory")
        if rung == LADDER[1]:
            raise CandidateError("broken")
        if rung == LADDER[2]:
            raise ValueError("other")
        return "loaded"

    loaded = first_that_loads(LADDER, load, clock=ticks(1.5, 0.25, 2.0, 30.12345))
    assert [attempt.seconds for attempt in loaded.attempts] == [1.5, 0.25, 2.0, 30.123]


def test_attempts_are_reported_as_they_happen() -> None:
    events: list[str] = []

    def load(rung: Rung) -> str:
        events.append(f"load {rung.strategy}")
        if rung.strategy == "8bit":
            raise RungError("out of memory")
        return "loaded"

    first_that_loads(LADDER, load, report=lambda attempt: events.append(f"{attempt.outcome} {attempt.strategy}"))
    assert events == ["load 8bit", "failed 8bit", "load cpu", "loaded cpu"]


def test_the_last_resort_says_so() -> None:
    last = Rung(Candidate("embedded", "embedded", last_resort=True), "gguf")
    loaded, _, _ = walk({("a/one", "8bit"): CandidateError("no network")}, [LADDER[0], last])
    assert "last resort" in loaded.reason
    assert "MODEL_REPO" in loaded.reason
    assert "MODEL_FALLBACKS" in loaded.reason
    named, _, _ = walk({}, [Rung(Candidate("embedded", "embedded"), "gguf")])
    assert named.reason == "the first candidate in its first precision"
