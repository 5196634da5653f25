from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from router_backend.engines.conversation import shared
from router_backend.engines.transformers.runner import TorchRunner
from tests.fakes import tiny

pytestmark = pytest.mark.torch
CLOSE = 2e-3  # of logits whose spread is above 1: float32, summed in another order
MODELS = {name: tiny.model(name) for name in tiny.NAMES}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


class Passes:
    """Tokens of each forward pass of a model, by a hook."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.sizes: list[int] = []
        self._hook = model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: object, args: object, kwargs: dict[str, Any]) -> None:
        self.sizes.append(kwargs["input_ids"].shape[1])

    def take(self) -> list[int]:
        taken, self.sizes = self.sizes, []
        return taken

    def remove(self) -> None:
        self._hook.remove()


@pytest.fixture
def passes(model: PreTrainedModel) -> Iterator[Passes]:
    counted = Passes(model)
    yield counted
    counted.remove()


def never() -> bool:
    return False


def fresh(model: PreTrainedModel, ids: Sequence[int]) -> NDArray[np.float32]:
    """Logits of all positions, by one pass without any cache."""
    with torch.inference_mode():
        logits: NDArray[np.float32] = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()
    return logits


def check(runner: TorchRunner, model: PreTrainedModel, sequence: list[int], draft: list[int]) -> None:
    """Each row that the pass foresaw is that of a full pass, and there is none that it did not."""
    expected = fresh(model, [*sequence, *draft])
    for size in range(len(draft) + 1):
        row = runner.row([*sequence, *draft[:size]])
        assert row is not None and row.dtype == np.float32
        np.testing.assert_allclose(row, expected[len(sequence) - 1 + size], atol=CLOSE, rtol=0)
    assert runner.row(sequence[:-1]) is None
    assert runner.row([*sequence, *draft, 5]) is None
    assert runner.row([sequence[0] ^ 1, *sequence[1:]]) is None


def ids(count: int, seed: int) -> list[int]:
    chosen = random.Random(seed)
    return [chosen.randrange(5, 500) for _ in range(count)]


@every_model
@pytest.mark.parametrize("chunk", [512, 7])
def test_rows_are_those_of_a_fresh_pass_whatever_came_before(model: PreTrainedModel, chunk: int) -> None:
    """Drafts right and wrong, far steps back, other prompts with and without a common head; past the window."""
    chosen = random.Random(chunk)
    runner = TorchRunner(model, kept_tokens=400, branches=3, chunk=chunk)
    head = ids(30, 0)
    prompts = [[*head, *ids(40, 1)], [*head, *ids(25, 2)], ids(50, 3), ids(3, 4)]
    sequence = prompts[0]
    for _ in range(30):
        draft = ids(chosen.choice([0, 1, 4, 16]), chosen.randrange(99))
        runner.run(sequence, draft, never)
        check(runner, model, sequence, draft)
        step = chosen.random()
        if step < 0.5:  # some of the draft is right, and something else follows
            sequence = [*sequence, *draft[: chosen.randint(0, len(draft))], *ids(1, chosen.randrange(99))]
        elif step < 0.7:  # far back, and on from there
            sequence = [*sequence[: chosen.randint(1, len(sequence))], *ids(chosen.randint(0, 5), chosen.randrange(99))]
        else:
            sequence = list(chosen.choice(prompts))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["gemma3", "gemma3-sees"])
def test_window_that_has_moved_on_is_taken_back(name: str, attention: str) -> None:
    """Four windows on, then back to each place before, and on from there."""
    model = tiny.model(name)
    model.set_attn_implementation(attention)
    runner = TorchRunner(model, kept_tokens=1000, branches=1)
    whole = ids(5 * tiny.WINDOW, 1)
    runner.run(whole, ids(8, 2), never)
    for length in range(4 * tiny.WINDOW, 2, -5):
        other, draft = [*whole[:length], *ids(3, length)], ids(4, length + 1)
        runner.run(other, draft, never)
        check(runner, model, other, draft)


def test_wrong_window_would_be_noticed() -> None:
    """What the tolerance is measured by: a window of one token more or less is far outside it."""
    model, sequence = MODELS["gemma3"], ids(60, 1)
    right = fresh(model, sequence)[-1]
    for window in (tiny.WINDOW - 1, tiny.WINDOW + 1):
        other = tiny.model("gemma3")
        other.config.sliding_window = window
        assert np.abs(fresh(other, sequence)[-1] - right).max() > 20 * CLOSE


# What a run costs


@every_model
def test_passes_are_counted_as_they_are_made(model: PreTrainedModel, passes: Passes) -> None:
    runner = TorchRunner(model, kept_tokens=500, chunk=10)
    sequence = ids(25, 1)
    for draft, expected in ((ids(4, 2), [10, 10, 9]), ([], [1])):
        made = runner.run(sequence, draft, never)
        assert passes.take() == expected and made == len(expected)
        sequence = [*sequence, 9]
    assert runner.run([*sequence, 8], [1, 2], never) == len(passes.take()) == 1


@pytest.mark.parametrize("model", [MODELS["llama31"]], ids=["llama31"])
@pytest.mark.parametrize("length", range(1, 40))
def test_row_is_there_whatever_the_length_of_prompt_and_draft(
    model: PreTrainedModel, passes: Passes, length: int
) -> None:
    """Chunks never part the draft from the sequence's last token."""
    runner = TorchRunner(model, kept_tokens=500, chunk=8)
    sequence, draft = ids(length, 1), ids(5, 2)
    made = runner.run(sequence, draft, never)
    assert made == len(passes.take()) == -(-length // 8)
    check(runner, model, sequence, draft)


@pytest.mark.parametrize("model", [MODELS["gemma3"]], ids=["gemma3"])
def test_what_was_seen_is_not_run_again(model: PreTrainedModel, passes: Passes) -> None:
    runner = TorchRunner(model, kept_tokens=500)
    sequence, draft = ids(40, 1), ids(6, 2)
    assert runner.cached(sequence) == 0
    runner.run(sequence, draft, never)
    assert passes.take() == [46]
    assert runner.cached([*sequence, *draft, 3]) == 46
    runner.run([*sequence, *draft[:4], 9], [], never)
    assert passes.take() == [1], "after the right part of the draft"
    runner.run([*sequence, *draft[:4], 9], [], never)
    assert passes.take() == [1], "a row that was let go costs its own token again"
    assert runner.row([*sequence, *draft[:4], 9]) is not None
    assert passes.take() == []


@pytest.mark.parametrize("model", [MODELS["llama31"]], ids=["llama31"])
def test_prompt_with_the_same_head_costs_only_its_tail(model: PreTrainedModel, passes: Passes) -> None:
    runner = TorchRunner(model, kept_tokens=500)
    head = ids(60, 1)
    runner.run([*head, *ids(30, 2)], [], never)
    passes.take()
    second = [*head, *ids(20, 3)]
    assert runner.cached(second) == 60
    runner.run(second, [], never)
    assert passes.take() == [20]
    check(runner, model, second, [])


@pytest.mark.parametrize("model", [MODELS["gemma3"]], ids=["gemma3"])
def test_several_prompts_stay_and_short_heads_are_shared(model: PreTrainedModel, passes: Passes) -> None:
    runner = TorchRunner(model, kept_tokens=500, branches=3)
    head = ids(10, 1)
    prompts = [[*head, *ids(50, seed)] for seed in (2, 3, 4)]
    for prompt in prompts:
        runner.run(prompt, [], never)
    assert passes.take() == [60, 50, 50]
    for prompt in prompts * 2:
        runner.run([*prompt, 7], [], never)
        check(runner, model, [*prompt, 7], [])
    assert passes.take()[::2] == [1] * 6
    for prompt in prompts:
        assert runner.cached(prompt) == 60


@pytest.mark.parametrize("model", [MODELS["llama31"]], ids=["llama31"])
@pytest.mark.parametrize(("branches", "kept"), [(1, 300), (2, 300), (4, 300), (4, 120), (4, 10)])
def test_row_24_what_is_kept_is_bounded(model: PreTrainedModel, branches: int, kept: int) -> None:
    runner = TorchRunner(model, kept_tokens=kept, branches=branches)
    for seed in range(12):
        prompt = ids(20 + 7 * (seed % 5), seed)
        runner.run(prompt, ids(3, 50), never)
        held = runner._branches
        assert 1 <= len(held) <= branches
        assert len(held) == 1 or sum(len(branch.ids) for branch in held) <= kept
        for branch in held:
            for layer in branch.cache.layers:
                assert layer.keys.shape[-2] == layer.values.shape[-2] == len(branch.ids)
                assert layer.keys.untyped_storage().nbytes() == layer.keys.numel() * layer.keys.element_size()
        assert runner.cached(prompt) == len(prompt), "the one in use is always kept"
    for left, right in pairwise(runner._branches):
        assert shared(left.ids, right.ids) < len(left.ids)


@every_model
def test_forgotten_is_forgotten(model: PreTrainedModel) -> None:
    runner = TorchRunner(model, kept_tokens=500)
    sequence = ids(30, 1)
    runner.run(sequence, [], never)
    runner.forget()
    assert runner.row(sequence) is None and runner.cached(sequence) == 0
    runner.run(sequence, [4, 5], never)
    check(runner, model, sequence, [4, 5])


@every_model
def test_measured_pace_leaves_nothing_behind(model: PreTrainedModel) -> None:
    runner = TorchRunner(model, kept_tokens=500)
    pace = runner.pace(17)
    assert 0 <= pace.step < 10 and 0 <= pace.slope < 10
    assert runner.cached([0] * 64) == 0 and runner.row([0] * 64) is None


def test_pace_is_that_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which a pass of one token takes 60 ms, one of several another 30, and 9 for each token more."""
    model = next(iter(MODELS.values()))
    now = [0.0]
    monkeypatch.setattr("router_backend.engines.transformers.runner.time.perf_counter", lambda: now[0])

    def slow(module: object, args: object, kwargs: dict[str, Any]) -> None:
        tokens = kwargs["input_ids"].shape[1]
        now[0] += 0.06 + (0.03 if tokens > 1 else 0) + 0.009 * (tokens - 1)

    with model.register_forward_pre_hook(slow, with_kwargs=True):
        pace = TorchRunner(model, kept_tokens=500).pace(17)
    assert pace.step == pytest.approx(0.5) and pace.slope == pytest.approx(0.15)


# Cancel


@pytest.mark.parametrize("model", [MODELS["gemma3"]], ids=["gemma3"])
def test_row_18_long_prefill_is_cancelled_between_two_passes(model: PreTrainedModel, passes: Passes) -> None:
    runner = TorchRunner(model, kept_tokens=500, chunk=10)
    sequence = ids(95, 1)
    assert runner.run(sequence, [3, 4], lambda: len(passes.sizes) == 3) == 3
    assert passes.take() == [10, 10, 10]
    assert runner.row(sequence) is None and runner.cached(sequence) == 30
    assert runner.run(sequence, [3, 4], never) == 7, "it goes on where it was left"
    assert sum(passes.take()) == 67
    check(runner, model, sequence, [3, 4])


@pytest.mark.parametrize("model", [MODELS["llama31"]], ids=["llama31"])
def test_last_pass_is_not_lost_to_a_cancel(model: PreTrainedModel) -> None:
    runner = TorchRunner(model, kept_tokens=500, chunk=10)
    assert runner.run(ids(10, 1), [2], lambda: True) == 1
    assert runner.row(ids(10, 1)) is not None
