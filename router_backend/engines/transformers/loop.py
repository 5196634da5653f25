"""The decode loop: one token after the other, most of them without a forward pass of their own.

Forced tokens are written without asking the model. A draft goes through the model together with what is new, and
gives a row of logits for each of its tokens: as long as what is drawn is what was drafted, the next row is there
already. Every token that is not forced is drawn from its own row, so drafts change how many passes an answer takes and
nothing else (speculative decoding with deterministic drafts; Leviathan et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router_backend.engines.transformers.drafts import Drafter
from router_backend.engines.transformers.guide import Guide
from router_backend.engines.transformers.runner import Runner
from router_backend.engines.transformers.sampler import Sampler
from router_backend.types import FinishReason


@dataclass
class Count:
    """What an answer took, and why it ended.

    `drafted` tokens shared a pass, `accepted` ones were right; `forced` were not asked for.
    """

    passes: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    forced: int = 0
    reason: FinishReason = "stop"


class DecodeLoop:
    """Decodes one sequence at a time. `drafter` may be another for each."""

    def __init__(
        self, runner: Runner, drafter: Drafter | None, *, draft_tokens: int = 16, forcing: bool = True
    ) -> None:
        self._runner = runner
        self.drafter = drafter
        self._draft_tokens = draft_tokens
        self._forcing = forcing
        self._seen = 0  # length of the sequence whose row was asked for last
        self.weighed = 0  # rows up to this length are there because answers were weighed

    def decode(
        self,
        prompt: Sequence[int],
        guide: Guide | None,
        sampler: Sampler,
        limit: int,
        ends: frozenset[int],
        cancelled: Callable[[], bool],
        count: Count,
    ) -> Iterator[int]:
        """Yields token ids, at most `limit`; returns early after an end token (not yielded) or the grammar's end.

        `count` is kept while it goes on. Closing the iterator ends it at once.
        """
        sequence = list(prompt)
        while guide is None or not guide.ended:
            if count.tokens >= limit:
                count.reason = "length"
                return
            if cancelled():
                count.reason = "cancelled"
                return
            if forced := self._forced(guide, limit - count.tokens):
                for token in forced:
                    sequence.append(token)
                    count.tokens += 1
                    count.forced += 1
                    yield token
                continue
            row = self._row(sequence, cancelled, count)
            if row is None:
                count.reason = "cancelled"
                return
            token = sampler.draw(row, None if guide is None else guide.allowed())
            if token in ends:
                return
            if guide is not None:
                guide.advance([token])
            sequence.append(token)
            count.tokens += 1
            yield token

    def _row(self, sequence: list[int], cancelled: Callable[[], bool], count: Count) -> NDArray[np.float32] | None:
        """Logits of the token after `sequence`, with a forward pass where they are not there; None if cancelled."""
        row = self._runner.row(sequence)
        if row is None:
            # A draft may go beyond this call's limit: what comes next may begin as it foresaw.
            draft = [] if self.drafter is None else self.drafter.propose(sequence, self._draft_tokens)
            count.passes += self._runner.run(sequence, draft, cancelled)
            count.drafted += len(draft)
            self.weighed = 0
            row = self._runner.row(sequence)
        elif len(sequence) > max(self._seen, self.weighed):  # else it was asked for before, and no draft was needed
            count.accepted += 1
        self._seen = len(sequence)
        return row

    def _forced(self, guide: Guide | None, most: int) -> list[int]:
        if guide is None or not self._forcing:
            return []
        forced = guide.forced()[:most]
        if forced:
            guide.advance(forced)
        return forced
