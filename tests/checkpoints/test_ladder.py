from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from router_backend.checkpoints.description import Checkpoint
from router_backend.checkpoints.ladder import (
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
from router_backend.checkpoints.machine import Accelerator, Machine
from router_backend.errors import CandidateError, LoadError, RungError
from router_backend.settings import STRATEGIES, Settings, load_settings

DEFAULTS = [
    "Alovestocode/router-gemma3-merged",
    "Alovestocode/router-llama31-merged",
    "Alovestocode/router-qwen3-32b-merged",
]
CPU_ONLY = Machine(processor="x86_64", cores=2, total_bytes=8 << 30, free_bytes=4 << 30)
WITH_GPU = Machine("x86_64", 2, 8 << 30, 4 << 30, (Accelerator("Some GPU", 80 << 30, 79 << 30),))
# A billion parameters, a tenth of them outside of the blocks; a config without figures, so no cache.
BILLION = Checkpoint({}, 2_000_000_000, linear=900_000_000, rows=100_000, matrices=100, other=100_000_000)


def every_rung(
    settings: Settings, machine: Machine, missing: Callable[[str, str | None], str | None] = lambda *_: None
) -> list[Rung]:
    """Of all candidates, without foresight."""
    return [rung for each in candidates(settings) for rung in rungs(each, settings, machine, missing=missing)]


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


def test_embedded_is_the_last_resort_on_a_space_and_wherever_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    last = Candidate("embedded", "embedded", last_resort=True)
    assert candidates(load_settings(model_repo="a/one", embedded_fallback=True))[-1] == last
    assert names(load_settings(embedded_fallback=False)) == DEFAULTS
    monkeypatch.setenv("SPACE_ID", "acme/router")
    assert candidates(load_settings(model_repo="a/one"))[-1] == last
    assert names(load_settings(model_fallbacks="a/one,embedded")) == ["a/one", "embedded"]
    monkeypatch.setenv("EMBEDDED_FALLBACK", "0")
    assert names(load_settings(model_repo="a/one")) == ["a/one"] and names(load_settings()) == DEFAULTS


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
        found = every_rung(load_settings(model_repo="a/one", model_device=device), WITH_GPU)
        assert [(rung.strategy, rung.skip) for rung in found] == [(name, None) for name in STRATEGIES]


def test_without_an_accelerator_only_cpu_is_tried_and_the_reason_is_told() -> None:
    found = every_rung(load_settings(model_repo="a/one"), CPU_ONLY)
    assert [rung.strategy for rung in found] == list(STRATEGIES)
    assert [rung.strategy for rung in found if rung.skip is None] == ["cpu"]
    for rung in found[:-1]:
        assert rung.skip is not None
        assert "no accelerator" in rung.skip
        assert "MODEL_DEVICE=cpu" in rung.skip


def test_cpu_asked_for_by_name_loads_every_rung() -> None:
    found = every_rung(load_settings(model_repo="a/one", model_device="cpu"), CPU_ONLY)
    assert [(rung.strategy, rung.skip) for rung in found] == [(name, None) for name in STRATEGIES]


def test_cuda_asked_for_by_name_does_not_fall_to_the_cpu() -> None:
    found = every_rung(load_settings(model_repo="a/one", model_device="cuda"), CPU_ONLY)
    assert [rung.strategy for rung in found] == list(STRATEGIES)
    assert all(rung.skip and "MODEL_DEVICE=cuda" in rung.skip for rung in found)


def test_every_precision_of_a_candidate_comes_before_the_next_candidate() -> None:
    settings = load_settings(model_repo="a/one", model_fallbacks="embedded,b/two", model_load_strategy="bf16")
    found = [(rung.candidate.name, rung.strategy) for rung in every_rung(settings, WITH_GPU)]
    order = ["bf16", "8bit", "4bit", "fp16", "cpu"]
    assert found == [*(("a/one", s) for s in order), ("embedded", "gguf"), *(("b/two", s) for s in order)]


@pytest.mark.parametrize("machine", [CPU_ONLY, WITH_GPU])
@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_a_gguf_is_one_rung_on_any_machine(machine: Machine, device: str) -> None:
    settings = load_settings(model_repo="owner/repo:file.gguf", model_device=device, model_load_strategy="4bit")
    assert every_rung(settings, machine) == [Rung(Candidate("owner/repo:file.gguf", "hub-gguf"), "gguf")]


def test_the_echo_engine_is_one_rung() -> None:
    assert [rung.strategy for rung in every_rung(load_settings(engine="echo"), CPU_ONLY)] == ["native"]


def test_an_engine_that_is_missing_takes_one_rung_that_says_so() -> None:
    settings = load_settings(model_repo="a/one", model_fallbacks="embedded", model_load_strategy="bf16")
    found = every_rung(settings, WITH_GPU, lambda engine, method: "not installed" if engine == "transformers" else None)
    assert [(rung.candidate.name, rung.strategy, rung.skip) for rung in found] == [
        ("a/one", "bf16", "not installed"),
        ("embedded", "gguf", None),
    ]
    found = every_rung(settings, WITH_GPU, lambda engine, method: f"no {engine}")
    assert [rung.skip for rung in found] == ["no transformers", "no llamacpp"]


# Foresight


def foreseen(known: Checkpoint, machine: Machine, **settings: object) -> dict[str, str | None]:
    """Precision → why it is skipped."""
    configured = load_settings(**{"model_repo": "a/one", **settings})
    (candidate,) = candidates(configured)
    return {rung.strategy: rung.skip for rung in rungs(candidate, configured, machine, describe=lambda _: known)}


def card(*free: float) -> Machine:
    """A machine with so many GB free on its cards, and 16 GB of memory."""
    cards = tuple(Accelerator("Some GPU", int(80e9), int(each * 1e9)) for each in free)
    return Machine("x86_64", 8, int(64e9), int(16e9), cards)


def test_what_cannot_fit_is_skipped_with_its_arithmetic() -> None:
    # 2 bytes for each parameter and half a GB of runtime: 2.5 GB. On the CPU 4 bytes, 4.5 GB.
    found = foreseen(BILLION, card(2.0), model_load_strategies="bf16,8bit,4bit,fp16")
    assert found == {
        "bf16": "needs 2.5 GB at bf16: 2.0 weights, 0.50 runtime; 2.0 GB free on cuda:0",
        "8bit": None,  # 1.6 GB
        "4bit": None,
        "fp16": "needs 2.5 GB at fp16: 2.0 weights, 0.50 runtime; 2.0 GB free on cuda:0",
        "cpu": None,
    }


def test_the_cpu_rung_is_compared_with_memory() -> None:
    little = Machine("x86_64", 2, int(8e9), int(4e9))
    assert foreseen(BILLION, little)["cpu"] == ("needs 4.5 GB at cpu: 4.0 weights, 0.50 runtime; 4.0 GB of memory free")
    fast = Machine("x86_64", 2, int(8e9), int(4e9), features=frozenset({"avx512_bf16"}))
    assert foreseen(BILLION, fast)["cpu"] is None


def test_every_rung_is_compared_with_memory_where_the_cpu_is_asked_for() -> None:
    found = foreseen(BILLION, Machine("x86_64", 8, int(8e9), int(2e9), card(79).accelerators), model_device="cpu")
    assert found["bf16"] == "needs 2.5 GB at bf16: 2.0 weights, 0.50 runtime; 2.0 GB of memory free"
    assert found["4bit"] is None


def test_a_checkpoint_may_be_spread_over_several_cards() -> None:
    assert foreseen(BILLION, card(1.6, 1.6))["bf16"] is None
    found = foreseen(BILLION, card(1.4, 1.4))["bf16"]
    assert found is not None and found.endswith("1.4 GB free on cuda:0 and 1.4 GB free on cuda:1")


def test_without_an_accelerator_that_is_the_reason_and_not_the_arithmetic() -> None:
    found = foreseen(BILLION, CPU_ONLY)
    assert all("no accelerator" in (found[name] or "") for name in ("8bit", "4bit", "bf16", "fp16"))


@pytest.mark.parametrize("machine", [CPU_ONLY, WITH_GPU])
@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_a_quantised_checkpoint_has_one_rung(machine: Machine, device: str) -> None:
    known = Checkpoint({}, 700_000_000, linear=1, other=1, quantized="awq")
    assert foreseen(known, machine, model_device=device) == {"native": None}
    assert foreseen(known, card(1.0)) == {
        "native": "needs 1.2 GB at native: 0.70 weights, 0.50 runtime; 1.0 GB free on cuda:0"
    }


def test_a_gguf_may_go_to_the_card_or_to_memory() -> None:
    known = Checkpoint({}, 20_000_000_000, quantized="gguf")
    name = "owner/repo:file.gguf"
    assert foreseen(known, card(79), model_repo=name) == {"gguf": None}
    roomy = Machine("x86_64", 2, int(64e9), int(32e9), card(1).accelerators)
    assert foreseen(known, roomy, model_repo=name) == {"gguf": None}
    assert foreseen(known, card(2), model_repo=name) == {
        "gguf": "needs 20.5 GB at gguf: 20.0 weights, 0.50 runtime; 2.0 GB free on cuda:0"
    }


def test_a_rung_tells_what_it_needs() -> None:
    settings = load_settings(model_repo="a/one")
    (first, *_) = rungs(Candidate("a/one", "hub"), settings, card(79), describe=lambda _: BILLION)
    assert str(first.needs) == "needs 1.6 GB at 8bit: 1.1 weights, 0.50 runtime"


def test_only_what_may_be_tried_is_described() -> None:
    def describe(candidate: Candidate) -> Checkpoint:
        raise AssertionError("nobody asked")

    settings = load_settings(model_repo="a/one", model_device="cuda")
    assert all(rung.skip for rung in rungs(Candidate("a/one", "hub"), settings, CPU_ONLY, describe=describe))
    settings = load_settings(model_repo="a/one")
    (only,) = rungs(Candidate("a/one", "hub"), settings, WITH_GPU, missing=lambda *_: "none", describe=describe)
    assert only.skip == "none"


@pytest.mark.parametrize(
    ("name", "repo", "revision", "file"),
    [
        ("a/one", "a/one", None, None),
        ("a/one@v1", "a/one", "v1", None),
        ("a/one@refs/pr/1", "a/one", "refs/pr/1", None),
        ("a/one:q/one.gguf", "a/one", None, "q/one.gguf"),
        ("a/one@0123abc:one.gguf", "a/one", "0123abc", "one.gguf"),
        ("one@v1", "me/one", "v1", None),
    ],
)
def test_a_revision_may_be_pinned(name: str, repo: str, revision: str | None, file: str | None) -> None:
    candidate = parse_candidate(name, "me")
    assert (candidate.repo, candidate.revision, candidate.file) == (repo, revision, file)
    assert candidate.kind == ("hub-gguf" if file else "hub")


# The walk

ONE, TWO = Candidate("a/one", "hub"), Candidate("b/two", "hub")
LADDER = [Rung(ONE, "8bit"), Rung(ONE, "cpu"), Rung(TWO, "8bit"), Rung(TWO, "cpu")]


def climb(ladder: Sequence[Rung], load: Callable[[Rung], str], **options: Any) -> Loaded[str]:  # noqa: ANN401
    """Walks rungs that are known before."""
    order = dict.fromkeys(rung.candidate for rung in ladder)
    return first_that_loads(order, lambda each: [rung for rung in ladder if rung.candidate == each], load, **options)


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

    return climb(ladder, load, report=reported.append), tried, reported


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


def test_row_20_a_rung_error_moves_on_to_the_next_rung() -> None:
    loaded, tried, reported = walk({("a/one", "8bit"): RungError("out of memory")})
    assert loaded.model == "a/one@cpu"
    assert tried == LADDER[:2]
    assert [(a.strategy, a.outcome, a.reason) for a in reported] == [
        ("8bit", "failed", "out of memory"),
        ("cpu", "loaded", "ok"),
    ]
    assert loaded.reason == "the first that loads, after 1 that did not (see attempts)"


def test_row_20_a_candidate_error_moves_on_to_the_next_candidate_at_once() -> None:
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
def test_row_20_any_other_exception_is_a_broken_rung(error: Exception) -> None:
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
        climb(ladder, load, report=reported.append)
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
        climb([], lambda rung: rung.strategy)
    assert caught.value.attempts == ()


def test_each_attempt_has_its_own_seconds() -> None:
    now = 100.0
    takes = {LADDER[0]: 1.5, LADDER[1]: 0.25, LADDER[2]: 2.0, LADDER[3]: 30.12345}
    ends: dict[Rung, Exception] = {
        LADDER[0]: RungError("out of memory"),
        LADDER[1]: CandidateError("broken"),
        LADDER[2]: ValueError("other"),
    }

    def load(rung: Rung) -> str:
        nonlocal now
        now += takes[rung]
        if rung in ends:
            raise ends[rung]
        return "loaded"

    loaded = climb(LADDER, load, clock=lambda: now)
    assert [attempt.seconds for attempt in loaded.attempts] == [1.5, 0.25, 2.0, 30.123]


def test_a_candidate_whose_rungs_cannot_be_told_fails_in_all_of_them() -> None:
    now = 0.0

    def rungs_of(candidate: Candidate) -> list[Rung]:
        nonlocal now
        if candidate == ONE:
            now += 7.5
            raise CandidateError("no such repository")
        return [Rung(TWO, "cpu")]

    loaded = first_that_loads([ONE, TWO], rungs_of, lambda rung: rung.strategy, clock=lambda: now)
    assert loaded.attempts == (
        Attempt("a/one", "any", "failed", "no such repository", 7.5),
        Attempt("b/two", "cpu", "loaded", "ok", 0.0),
    )
    with pytest.raises(NothingLoads, match=r"a/one \[any\] failed: no such repository"):
        first_that_loads([ONE], rungs_of, lambda rung: rung)


def test_row_20_trouble_with_one_candidate_does_not_keep_the_next_from_loading() -> None:
    def rungs_of(candidate: Candidate) -> list[Rung]:
        if candidate == ONE:
            raise KeyError("hidden_size")
        return [Rung(candidate, "cpu")]

    loaded = first_that_loads([ONE, TWO], rungs_of, lambda rung: rung.candidate)
    assert loaded.model == TWO
    assert loaded.attempts[0].reason == "KeyError: 'hidden_size'"


def test_later_candidates_are_not_looked_at() -> None:
    looked: list[Candidate] = []

    def rungs_of(candidate: Candidate) -> list[Rung]:
        looked.append(candidate)
        return [Rung(candidate, "cpu")]

    first_that_loads([ONE, TWO], rungs_of, lambda rung: rung)
    assert looked == [ONE]


def test_attempts_are_reported_as_they_happen() -> None:
    events: list[str] = []

    def load(rung: Rung) -> str:
        events.append(f"load {rung.strategy}")
        if rung.strategy == "8bit":
            raise RungError("out of memory")
        return "loaded"

    climb(LADDER, load, report=lambda attempt: events.append(f"{attempt.outcome} {attempt.strategy}"))
    assert events == ["load 8bit", "failed 8bit", "load cpu", "loaded cpu"]


def test_the_last_resort_says_so() -> None:
    last = Rung(Candidate("embedded", "embedded", last_resort=True), "gguf")
    loaded, _, _ = walk({("a/one", "8bit"): CandidateError("no network")}, [LADDER[0], last])
    assert loaded.reason.startswith(
        "a stand-in answers: the embedded model, since no checkpoint of the list loads here"
    )
    assert loaded.reason.endswith("(a/one: no network)")
    named, _, _ = walk({}, [Rung(Candidate("embedded", "embedded"), "gguf")])
    assert named.reason == "the first candidate in its first precision"
