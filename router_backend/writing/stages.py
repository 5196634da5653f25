"""Stages: a text that is written piece by piece, what is known by code and the rest by the model.

A script yields an `Ask` for each piece that the model writes, is sent the `Reply`, and meanwhile its `text` grows by
what will stand. `writer.StageRun` brings a script and a model together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from router_backend.errors import RouterError
from router_backend.types import Chunk, Odds, Step
from router_backend.writing import clip, grammar

Count = Callable[[str], int]
# Two texts side by side may take a token more than each alone: the tokenizer may cut them elsewhere.
JOIN = 1
# A text's last token may be the one that holds its closing quote.
QUOTE = 1
TRIES = 2


@dataclass(frozen=True, slots=True)
class Ask:
    """What the checkpoint is to write next, after the script's `text` and `said`, which does not stand yet.

    Attributes:
        attempt: 0, or 1 where nothing usable came.
        weighed: answers whose odds are asked for first.
        free_after: characters after which running in circles ends it; None where its grammar ends it by itself.
        options: what it is one of, where it is a choice.
    """

    field: str
    max_tokens: int
    grammar: str
    stop: tuple[str, ...]
    attempt: int = 0
    said: str = ""
    free_after: int | None = None
    options: tuple[str, ...] = ()
    weighed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """What it wrote, without the stop text. `ended`: by itself, rather than by the limit or for repeating itself.

    `odds` are those of what was `weighed`; None where the engine has none.
    """

    text: str
    ended: bool
    odds: Odds | None = None


Stages = Generator[Ask, Reply, None]


@dataclass
class Script(ABC):
    """One text in the making.

    Attributes:
        limit: its budget in tokens, as `count` counts them.
        text: what was written so far; never taken back.
        clipped: the texts in it that their limit stopped, as `field[index]` of a plan, as `.steps[2].title` of JSON.
        steps: of its plan's route, as far as their odds are known.
        failure: raised where the checkpoint gives nothing usable, twice.
    """

    limit: int
    count: Count
    text: str = field(default="", kw_only=True)
    clipped: list[str] = field(default_factory=list, kw_only=True)
    steps: list[Step] = field(default_factory=list, kw_only=True)
    failure: ClassVar[type[RouterError]]

    @abstractmethod
    def stages(self) -> Stages:
        """Writes the whole text. Raises `failure`."""

    def since(self, at: int) -> Iterator[Chunk]:
        """What was written after the first `at` characters, as it leaves."""
        if len(self.text) > at:
            yield Chunk(self.text[at:], route=tuple(self.steps))

    def _write_by(self, script: Script) -> Stages:
        """Lets another script go on, which begins with this one's text."""
        stages, script.steps = script.stages(), self.steps
        try:
            ask = next(stages)
            while True:
                self.text = script.text
                ask = stages.send((yield ask))
        except StopIteration:
            self.text = script.text
        self.clipped += script.clipped

    def _choose(
        self, field: str, options: Sequence[str], *, stop: str = "", said: str = "", tools: Sequence[str] = ()
    ) -> Generator[Ask, Reply, str]:
        """One of the options; no stage at all where there is but one.

        `stop` follows them all, and is not kept; nor is `said`, which the checkpoint reads before them. `tools` that
        the options stand for make it one of the `steps`.
        """
        if len(options) == 1:
            self.steps += [Step(tool, Odds((tool,), (0.0,))) for tool in tools]
            return options[0]
        # Stopping before the last character that all options share saves the pass that would draw the end token.
        last = options[0][-1] if len({option[-1] for option in options}) == 1 and options[0][-1] in ":(" else ""
        ends = (stop or last,) if stop or last else ()
        offered, odds = [option + stop for option in options], None
        for attempt in range(TRIES):
            weighed = tuple(offered) if tools and not attempt else ()
            rules = grammar.choice(offered)
            reply = yield Ask(
                field, tokens_of(offered), rules, ends, attempt, said, options=tuple(offered), weighed=weighed
            )
            odds = reply.odds or odds
            for at, option in enumerate(options):
                if reply.text in (option, option + stop, option.removesuffix(last)):
                    if odds is not None:
                        self.steps.append(Step(tools[at], replace(odds, options=tuple(tools))))
                    return option
        raise self._chose_none(field)

    def _chose_none(self, field: str) -> RouterError:
        return self.failure(
            f"the checkpoint chose none of what {field or 'the answer'} offers, twice: the engine ignores grammars"
        )

    def _left(self) -> int:
        return self.limit - self.count(self.text)

    def _fits(self, tokens: int, characters: int | None, lead: str, text: str) -> bool:
        return self._tokens(lead + text) <= tokens and (characters is None or len(lead + text) <= characters)

    def _tokens(self, text: str) -> int:
        """Tokens of a text inside a JSON string."""
        return self.count(clip.escape(text))


def tokens_of(options: Sequence[str]) -> int:
    """The most that one of them takes: it may be spelt a byte a token. What counts is the text that comes of it."""
    return max(len(option.encode()) for option in options) + 1
