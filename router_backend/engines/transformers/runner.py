"""Runner: forward passes of a model over a sequence, none of them twice.

It remembers the keys and values of what it has seen (the prefix cache) and the logits of the last pass. So a sequence
that goes on as the last pass foresaw costs nothing at all, also across the stages of a plan.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from router_backend.engines.conversation import shared
from router_backend.engines.transformers.drafts import Pace

# The pace is measured behind so many tokens, in turns: two at least, and no more after so many seconds.
_PACE_CONTEXT, _PACE_TURNS, _PACE_SECONDS = 64, 8, 0.5


def cache_argument(model: Any) -> str:  # noqa: ANN401 - the library's models have no type in common
    """The name under which `model` takes its keys and values: `cache`, before transformers 5.24 `past_key_values`."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


class Runner(Protocol):
    """What the decode loop needs of a model."""

    def row(self, sequence: Sequence[int]) -> NDArray[np.float32] | None:
        """Logits `(vocabulary,)` of the token after `sequence`, where the last pass saw them."""
        ...

    def cached(self, sequence: Sequence[int]) -> int:
        """How many tokens of `sequence` need no pass."""
        ...

    def run(self, sequence: Sequence[int], draft: Sequence[int], cancelled: Callable[[], bool]) -> int:
        """Passes over what is new in `sequence` and over the draft. Returns how many forward passes it took."""
        ...

    def turn_to(self, owner: str) -> None:
        """What follows is this owner's: of what others left, it serves what all know."""
        ...

    def forget(self) -> None:
        """Drops all that is cached."""
        ...


@dataclass
class _Branch:
    """A sequence whose keys and values are kept."""

    owner: str = ""
    cache: DynamicCache = field(default_factory=DynamicCache)
    ids: list[int] = field(default_factory=list)

    def crop(self, length: int) -> None:
        if length < len(self.ids):
            self.cache.crop(length - len(self.ids))
            self.ids = self.ids[:length]

    def copy(self, length: int, owner: str) -> _Branch:
        twin = _Branch(owner, ids=self.ids[:length])
        for index, layer in enumerate(self.cache.layers):
            keys, values = layer.keys[..., :length, :].clone(), layer.values[..., :length, :].clone()
            twin.cache.update(keys, values, index)
        return twin


class TorchRunner:
    """A causal language model of transformers.

    Every layer keeps its whole past, sliding windows too (the mask hides what is outside the window): a window that
    has moved on cannot be taken back, and drafts are taken back all the time.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - the library's models have no type in common
        *,
        kept_tokens: int,
        branches: int = 4,
        chunk: int = 512,
        common: Sequence[int] = (),
    ) -> None:
        """
        Args:
            kept_tokens: keys and values of at most as many tokens are kept.
            chunk: tokens of a prefill pass.
            common: what many sequences begin with, whoever's they are, as a plan's instructions.
        """
        self._model, self._cache_argument = model, cache_argument(model)
        self._kept_tokens, self._most, self._chunk = kept_tokens, max(1, branches), chunk
        self._common, self._owner = list(common), ""
        self._branches: list[_Branch] = [_Branch()]  # the one in use first
        self._rows: torch.Tensor | None = None
        self._first_row = 0

    def row(self, sequence: Sequence[int]) -> NDArray[np.float32] | None:
        place = len(sequence) - 1
        ids = self._branches[0].ids
        if self._rows is None or not self._first_row <= place < len(ids) or ids[: place + 1] != sequence:
            return None
        row: NDArray[np.float32] = self._rows[place - self._first_row].float().cpu().numpy()
        return row

    def cached(self, sequence: Sequence[int]) -> int:
        return max(self._serves(branch, sequence) for branch in self._branches)

    @torch.inference_mode()
    def run(self, sequence: Sequence[int], draft: Sequence[int], cancelled: Callable[[], bool]) -> int:
        """Stops between two passes of a long prefill where `cancelled` says so; then there is no row."""
        whole = [*sequence, *draft]
        branch = self._choose(whole)
        branch.crop(min(shared(branch.ids, whole), len(sequence) - 1))
        self._rows = None
        passes = 0
        while len(branch.ids) < len(whole):
            start = len(branch.ids)
            end = start + self._chunk
            if end >= len(sequence):  # the draft goes with the sequence's last token, whose row is wanted
                end = len(whole)
            wanted = end - max(start, len(sequence) - 1) if end == len(whole) else 1
            inputs = torch.tensor([whole[start:end]], device=self._model.device)
            cache = {self._cache_argument: branch.cache}
            output = self._model(input_ids=inputs, use_cache=True, logits_to_keep=wanted, **cache)
            branch.ids = whole[:end]
            passes += 1
            if end == len(whole):
                self._rows, self._first_row = output.logits[0], end - wanted
            elif cancelled():
                break
        return passes

    def turn_to(self, owner: str) -> None:
        if owner != self._owner:
            self._owner, self._rows = owner, None

    def forget(self) -> None:
        self._branches, self._rows = [_Branch(self._owner)], None

    def pace(self, most: int) -> Pace:
        """Measures what passes of two and of `most` tokens cost beside one of a single token. Leaves nothing cached."""
        sequence = [0] * _PACE_CONTEXT
        self.run(sequence, [], _never)
        times = dict.fromkeys((1, 2, most), math.inf)
        ends = time.perf_counter() + _PACE_SECONDS
        for turn in range(_PACE_TURNS):
            for tokens, fastest in times.items():
                sequence.append(0)
                began = time.perf_counter()
                self.run(sequence, [0] * (tokens - 1), _never)
                self.row(sequence)  # waits for the accelerator
                # Whatever else the machine does makes it longer, never shorter.
                times[tokens] = min(fastest, time.perf_counter() - began)
            if turn and time.perf_counter() > ends:
                break
        self.forget()
        one, two, many = times[1], times[2], times[most]
        slope = max(0.0, many - two) / one / max(1, most - 2)
        return Pace(step=max(0.0, two / one - 1 - slope), slope=slope)

    def _choose(self, whole: Sequence[int]) -> _Branch:
        """The branch to go on with, moved to the front.

        One that has little in common with the sequence is left as it is and copied from, so that several prompts'
        prefixes stay.
        """
        best = max(self._branches, key=lambda branch: self._serves(branch, whole))
        common = self._serves(best, whole)
        foreign = best.owner != self._owner
        if self._most > 1 and best.ids and (foreign or common < len(whole) // 2):
            best = best.copy(common, self._owner)
        else:
            self._branches = [branch for branch in self._branches if branch is not best]
            if foreign:
                best.crop(common)
                best.owner = self._owner
        self._branches.insert(0, best)
        room = self._kept_tokens - len(whole)
        kept = [best]
        for branch in self._branches[1 : self._most]:
            room -= len(branch.ids)
            if room < 0:
                break
            kept.append(branch)
        self._branches = kept
        return best

    def _serves(self, branch: _Branch, whole: Sequence[int]) -> int:
        """How many tokens of a sequence need no pass where it goes on from this branch."""
        if branch.owner == self._owner:
            return shared(branch.ids, whole)
        return min(shared(branch.ids, self._common), shared(self._common, whole))


def _never() -> bool:
    return False
