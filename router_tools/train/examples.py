"""Token sequences to learn from: the prompt in the checkpoint's chat template, and a plan for a drawn budget."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import IterableDataset

from router_backend.plan.budget import Costs
from router_backend.plan.prompt import with_budget
from router_tools.train.rows import Row
from router_tools.train.shorten import shorten

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONTRACT = 600
BUDGETS = tuple(range(300, 1201, 50))
# Shares of the draws: the contract's budget, the reference as it is (with and without a line); the rest any budget.
AT_CONTRACT, WHOLE_BARE, WHOLE_BUDGETED = 0.40, 0.15, 0.10
_WINDOW = 16
IGNORED = -100  # what PyTorch's cross-entropy leaves out


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids; those from `start` on are the completion with its end token, which alone counts in the loss."""

    ids: tuple[int, ...]
    start: int

    @property
    def completion_tokens(self) -> int:
        return len(self.ids) - self.start


class Examples:
    """Makes examples of rows for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tools: Sequence[str], longest: int) -> None:
        self._tokenizer = tokenizer
        self._count = lru_cache(maxsize=200_000)(lambda text: len(self._ids(text)))
        self._costs = Costs(self._count, tools)
        self._longest = longest

    @property
    def end(self) -> int:
        return int(self._tokenizer.eos_token_id)

    def text(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids))

    def reference(self, row: Row) -> Example | None:
        """The reference plan as it is, without a budget line. None where it is too long."""
        return self._example(row.prompt, row.completion)

    def budgeted(self, row: Row, budget: int) -> Example | None:
        """The row's plan for a budget. None where it has no such plan, or where it is too long."""
        text = shorten(row.plan, budget, self._costs, self._count)
        return None if text is None else self._example(with_budget(row.prompt, budget), text)

    def whole(self, row: Row) -> Example | None:
        """The reference plan with its own length as the budget, rounded up to the next 50."""
        budget = -(-self._count(row.completion) // 50) * 50
        return self._example(with_budget(row.prompt, budget), row.completion)

    def draw(self, row: Row, chance: random.Random) -> Example | None:
        """One example of the mix. A budget too small for the row's route becomes the next one that is not."""
        share = chance.random()
        budget = chance.choice(BUDGETS)
        if not row.mended and share < WHOLE_BARE:
            return self.reference(row)
        if not row.mended and share < WHOLE_BARE + WHOLE_BUDGETED:
            return self.whole(row)
        if share >= 1 - AT_CONTRACT:
            budget = CONTRACT
        tries = (self.budgeted(row, each) for each in BUDGETS if each >= budget)
        return next(filter(None, tries), None)

    def prompt_ids(self, prompt: str) -> list[int]:
        """Token ids of the prompt inside the chat template, up to where the answer begins."""
        if not self._tokenizer.chat_template:
            return self._ids(prompt)
        message = [{"role": "user", "content": prompt}]
        text = self._tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        return self._ids(str(text))

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)

    def _example(self, prompt: str, completion: str) -> Example | None:
        head = self.prompt_ids(prompt)
        ids = (*head, *self._ids(completion), self.end)
        return Example(ids, len(head)) if len(ids) <= self._longest else None


class Batches(IterableDataset[list[Example]]):
    """The batches of one epoch after the other, without end."""

    def __init__(self, examples: Examples, rows: Sequence[Row], *, size: int, seed: int) -> None:
        self._examples, self._rows = examples, rows
        self._size, self._seed = size, seed

    def __iter__(self) -> Iterator[list[Example]]:
        for number in count():
            yield from self.epoch(number)

    def epoch(self, number: int) -> Iterator[list[Example]]:
        """Each row once, with a budget of its own, examples of similar length together: the same for the same seed."""
        chance = random.Random(f"{self._seed}/{number}")  # noqa: S311 - nothing secret
        order, size = list(self._rows), self._size
        chance.shuffle(order)
        window = _WINDOW * size
        for start in range(0, len(order), window):
            drawn = [each for row in order[start : start + window] if (each := self._examples.draw(row, chance))]
            drawn.sort(key=lambda example: len(example.ids))
            made = [drawn[at : at + size] for at in range(0, len(drawn), size)]
            chance.shuffle(made)
            yield from made


def collate(batch: Sequence[Example]) -> dict[str, torch.Tensor | int]:
    """The arguments of a causal LM for a batch: `input_ids` (rows, width), `labels` (rows, kept) and how many are kept.

    The rows are padded on the right: under a causal mask no token sees what is after it, so no other one is needed. The
    logits are asked for from the first completion on, since prompts do not count in the loss.
    """
    ids = [torch.tensor(example.ids) for example in batch]
    labels = [torch.tensor((*[IGNORED] * example.start, *example.ids[example.start :])) for example in batch]
    padded = pad_sequence(labels, batch_first=True, padding_value=IGNORED)
    kept = padded.shape[1] - min(example.start for example in batch) + 1
    return {"input_ids": pad_sequence(ids, batch_first=True), "labels": padded[:, -kept:], "logits_to_keep": kept}
