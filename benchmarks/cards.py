"""Plans a second of a card, on paper: what a pass must read and compute, and how many passes a plan has.

    python benchmarks/cards.py

Every figure of a card is its data sheet's, taken down by the two shares below; none was measured here. What a plan
costs in tokens, passes and calls was: docs/performance.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from simulation import Pace

OF_BANDWIDTH, OF_FLOPS = 0.7, 0.4  # of the data sheet's, as decoding and prefill reach on well-made kernels
MEMORY = 0.9  # what vLLM takes by default
BLOCK = 16  # tokens of a block in vLLM's prefix cache: what ends in the middle of one is computed again
FORCED = 0.17  # of a plan's tokens, which no pass decodes
CALL = 0.002  # seconds of a call outside the card, where it is not queued


@dataclass(frozen=True)
class Card:
    """A GPU.

    Attributes:
        memory: GB.
        bandwidth: TB/s.
        flops: dense bf16, TFLOP/s.
        price: dollars an hour; an assumption to be replaced with one's own.
    """

    name: str
    memory: float
    bandwidth: float
    flops: float
    price: float


@dataclass(frozen=True)
class Checkpoint:
    """Billions of parameters, bytes for each of them, and bytes that a token keeps in the KV cache (bf16)."""

    name: str
    billions: float
    bytes_each: float
    kv_bytes: int

    @property
    def weights(self) -> float:
        """GB."""
        return self.billions * self.bytes_each


@dataclass(frozen=True)
class Demand:
    """What one plan asks of a card.

    Attributes:
        tokens: of the plan, forced ones included; query: of the prompt, without what all prompts begin with.
        passes_a_token: below 1, because forced text is prefilled, and with drafts because several tokens pass at once.
        drafts: tokens tried in a pass besides the one that is written.
        calls: one for each stage, which begins with what the call before it had not in the cache.
        keeps: whether a plan's calls reach the card that has its prefix.
    """

    tokens: int = 571
    query: int = 90
    instructions: int = 130
    passes_a_token: float = 1 - FORCED
    drafts: float = 0.0
    calls: int = 28
    keeps: bool = True

    @property
    def passes(self) -> float:
        """A call waits for the pass that is at work, half of one in the mean."""
        return self.passes_a_token * self.tokens + self.calls / 2

    @property
    def prefilled(self) -> float:
        """Tokens that are computed again or for the first time, and not decoded."""
        if self.keeps:
            return self.query + FORCED * self.tokens + self.calls * BLOCK / 2
        return self.calls * (self.query + self.tokens / 2)

    @property
    def context(self) -> float:
        """Tokens in the cache, in the mean over its passes."""
        return self.instructions + self.query + self.tokens / 2


CARDS = (
    Card("L4", 24, 0.30, 121, 0.8),
    Card("RTX Pro 6000", 96, 1.79, 500, 2.0),
    Card("H100", 80, 3.35, 989, 3.0),
    Card("2 × H100", 160, 2 * 0.85 * 3.35, 2 * 0.85 * 989, 6.0),  # tensor parallel: what two reach together
    Card("H200", 141, 4.8, 989, 4.0),
)
LLAMA = Checkpoint("Llama 3.1 8B, bf16", 8.0, 2, 131_072)
GEMMA = Checkpoint("Gemma 3 27B, bf16", 27.4, 2, 507_904)
GEMMA_8 = replace(GEMMA, name="Gemma 3 27B, 8 bits", bytes_each=1)
QWEN_4 = Checkpoint("Qwen3 32B, 4 bits", 32.8, 0.56, 262_144)
COLD, DRAFTED = Demand(), Demand(passes_a_token=0.45, drafts=3.0)


def card(name: str) -> Card:
    return next(each for each in CARDS if each.name == name)


def pace(checkpoint: Checkpoint, on: Card, demand: Demand = COLD) -> Pace:
    """Seconds of a pass on a card: the weights are read once for all, each plan's cache and sums are its own."""
    read = on.bandwidth * 1e12 * OF_BANDWIDTH
    token = 2 * checkpoint.billions * 1e9 / (on.flops * 1e12 * OF_FLOPS)
    each = demand.context * checkpoint.kv_bytes / read + token * (1 + demand.drafts)
    each += token * demand.prefilled / demand.passes
    return Pace(checkpoint.weights * 1e9 / read, each, CALL * demand.calls / demand.passes)


def seats(checkpoint: Checkpoint, on: Card, demand: Demand = COLD) -> int:
    """Plans whose whole cache fits beside the weights."""
    whole = demand.instructions + demand.query + demand.tokens
    return max(0, int((on.memory * MEMORY - checkpoint.weights) * 1e9 / (whole * checkpoint.kv_bytes)))


def rate(checkpoint: Checkpoint, on: Card, plans: int, demand: Demand = COLD) -> float:
    """Plans a second with so many at once."""
    return plans / (demand.passes * pace(checkpoint, on, demand).seconds(plans))


def best(checkpoint: Checkpoint, on: Card, demand: Demand = COLD, most: int = 64) -> int:
    """The batch to plan with: what fits, and no more than gives a plan in decent time."""
    return min(most, seats(checkpoint, on, demand))


def main() -> None:
    print("| checkpoint | card | at once | s a plan, alone | s a plan | plans/s | $ for 1,000 | ", end="")
    print("alone, with drafts | plans/s, with drafts | plans/s, without affinity |\n" + "|---" * 10 + "|")
    for checkpoint in (LLAMA, GEMMA, GEMMA_8, QWEN_4):
        for on in CARDS:
            if not (plans := best(checkpoint, on)):
                continue
            each = rate(checkpoint, on, plans)
            alone, hurried = 1 / rate(checkpoint, on, 1), 1 / rate(checkpoint, on, 1, DRAFTED)
            print(
                f"| {checkpoint.name} | {on.name} | {plans} | {alone:.1f} | {plans / each:.1f} | {each:.2f} "
                f"| {1000 * on.price / 3600 / each:.2f} | {hurried:.1f} | {rate(checkpoint, on, plans, DRAFTED):.2f} "
                f"| {rate(checkpoint, on, plans, replace(COLD, keeps=False)):.2f} |"
            )


if __name__ == "__main__":
    main()
