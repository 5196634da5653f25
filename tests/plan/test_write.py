"""Plans are whole, valid and inside their budget, whatever the model does."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from router_backend.engines.echo import EchoModel
from router_backend.errors import BudgetTooSmall, ContextOverflow, PlanError
from router_backend.plan import grammar
from router_backend.plan.budget import Costs
from router_backend.plan.rules import validate
from router_backend.plan.schema import KEYS
from router_backend.plan.script import PlanScript
from router_backend.plan.write import PlanWriter
from router_backend.types import Chunk, GenerateRequest, ModelInfo, SamplingParams
from router_backend.writing.stages import Ask, Reply

PIECES = ("word ", "é", "漢字", "😀 ", "\\\\", '\\"', '\\", ', ". ", "x", "\u2028", "قلم ")
TOOLS = ("/general-search", "/math", "/code")
MANY = ("/general-search", "/math", "/code", "/code-review", "/vision", "/sql", "/mathematics", "/x")


def words(text: str) -> int:
    return len(text.split()) + sum(map(text.count, '"():,.-/[]{}…\\'))


def by_bytes(text: str) -> int:
    return len(text.encode())


def by_threes(text: str) -> int:
    return -(-len(text.encode()) // 3)


class Wild:
    """Answers every ask as badly as a mask allows: any script, any length, ends and choices at random."""

    def __init__(self, seed: int, count: Callable[[str], int], *, greedy: bool = False) -> None:
        self._random = random.Random(seed)
        self._count = count
        self._greedy = greedy

    def reply(self, ask: Ask) -> Reply:
        if "CHOICE" in ask.grammar:
            options = [json.loads(part) for part in ask.grammar.partition("CHOICE: ")[2].split(" | ")]
            option = str(self._random.choice(options))
            return Reply(option.removesuffix(ask.stop[0]) if ask.stop else option, ended=True)
        said = " " if ask.grammar.startswith('start: " "') else ""
        tag = "TAG" in ask.grammar
        length = 10_000 if self._greedy else self._random.choice([1, 3, 20, 80, 400])
        pieces = ("a", "b-", "z9") if tag else PIECES
        while len(said) < length:
            piece = self._random.choice(pieces)
            if not said.strip() and not piece.strip():
                continue  # the grammar forbids a blank beginning
            if self._count(said + piece) > ask.max_tokens:
                return Reply(said or "x", ended=False)
            said += piece
        if said.strip() in ("", "-"):
            said += "x"
        return Reply(said + self._random.choice(["", '"]', '"}', '"],']), ended=True)


def write(limit: int, costs: Costs, count: Callable[[str], int], wild: Wild) -> PlanScript:
    script = PlanScript(limit, count, costs)
    stages = script.stages()
    try:
        ask = next(stages)
        while True:
            assert ask.max_tokens >= 1, ask
            assert count(script.text) <= limit
            before = script.text
            ask = stages.send(wild.reply(ask))
            assert script.text.startswith(before), "what stands must not change"
    except StopIteration:
        return script


def assert_whole(script: PlanScript, limit: int, count: Callable[[str], int], tools: tuple[str, ...]) -> dict[str, Any]:
    value = json.loads(script.text)
    plan, findings = validate(value, tools)
    assert plan is not None and not findings, findings
    assert tuple(value) == KEYS
    assert json.dumps(value, ensure_ascii=False) == script.text, "the reference form"
    assert count(script.text) <= limit
    return dict(value)


COUNTS = {"words": words, "bytes": by_bytes, "threes": by_threes}
COSTS = {(name, size): Costs(count, MANY[:size]) for name, count in COUNTS.items() for size in range(1, 9)}


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32),
    extra=st.integers(0, 2048),
    size=st.integers(1, 8),
    name=st.sampled_from(sorted(COUNTS)),
    greedy=st.booleans(),
)
@pytest.mark.slow
def test_row_14_every_plan_is_whole_in_its_budget(seed: int, extra: int, size: int, name: str, greedy: bool) -> None:
    count, costs = COUNTS[name], COSTS[name, size]
    limit = max(costs.smallest, min(2048, costs.smallest + extra))
    script = write(limit, costs, count, Wild(seed, count, greedy=greedy))
    assert_whole(script, limit, count, MANY[:size])


@pytest.mark.parametrize("size", range(1, 9))
@pytest.mark.parametrize("name", sorted(COUNTS))
def test_row_14_the_longest_path_fits_every_budget(name: str, size: int) -> None:
    """A model that always writes up to every limit: no path through the grammar takes more."""
    count, costs = COUNTS[name], COSTS[name, size]
    for limit in [*range(costs.smallest, costs.smallest + 12), *range(costs.smallest + 12, 2049, 173)]:
        script = write(limit, costs, count, Wild(limit, count, greedy=True))
        assert_whole(script, limit, count, MANY[:size])
        assert script.clipped


def test_rules_hold_for_every_route() -> None:
    count, costs = words, COSTS["words", 8]
    routes = set()
    for seed in range(60):
        script = write(1200, costs, count, Wild(seed, count))
        value = assert_whole(script, 1200, count, MANY)
        routes.add(tuple(script.route))
        assert value["handoff_plan"].startswith(" -> ".join([*script.route, "router QA"]))
        for tool in script.route:
            assert any(item.startswith(f"- [ ] {tool}:") for item in value["todo_list"])
    assert len(routes) > 20


def test_more_budget_gives_more_items_before_longer_ones() -> None:
    count, costs = words, COSTS["words", 3]
    items = []
    for limit in (costs.smallest, 500, 800, 1200):
        value = assert_whole(write(limit, costs, count, Wild(1, count, greedy=True)), limit, count, TOOLS)
        items.append(sum(len(each) for each in value.values() if isinstance(each, list)))
    assert items == sorted(items) and items[0] < items[-1]


# PlanWriter over the echo engine


def request(limit: int = 600, seed: int = 0) -> GenerateRequest:
    return GenerateRequest("r", "a prompt", SamplingParams(max_new_tokens=limit, seed=seed), output="plan")


def obedient(asked: GenerateRequest) -> str:
    grammar = asked.grammar or ""
    if "CHOICE" in grammar:
        options = [json.loads(part) for part in grammar.partition("CHOICE: ")[2].split(" | ")]
        return str(options[len(asked.prefix) % len(options)])
    if "TAG" in grammar:
        return f'tag-{len(asked.prefix)}",'
    return (" " if grammar.startswith('start: " "') else "") + 'do this and then that",'


def run(model: EchoModel, limit: int = 600) -> tuple[str, Chunk]:
    chunks = list(PlanWriter(model, TOOLS).write(request(limit), lambda: False))
    return "".join(chunk.text for chunk in chunks), chunks[-1]


def test_writer_says_what_it_spent() -> None:
    text, last = run(EchoModel(script=obedient))
    assert last.finish_reason == "stop" and last.budget is not None
    assert last.budget.limit == 600 and last.budget.used == EchoModel().count_tokens(text) <= 600
    assert last.usage.completion_tokens == last.budget.used and last.usage.prompt_tokens == 2
    assert last.budget.calls > 10 and last.budget.clipped == () and last.budget.retries == 0
    assert set(last.budget.fields) == set(KEYS) - {"difficulty"}
    assert all(spent.used <= spent.given < 600 for spent in last.budget.fields.values())


def test_text_stopped_by_its_limit_is_reported_and_ends_in_an_ellipsis() -> None:
    text, last = run(EchoModel(script=lambda asked: obedient(asked).replace("that", "that thing " * 200)))
    value = json.loads(text)
    assert last.budget is not None and "route_rationale" in last.budget.clipped
    assert value["route_rationale"].endswith("…") and not value["route_rationale"].endswith(" thing…thing…")


def test_runaway_repetition_is_not_paid_for() -> None:
    loop = "one two three four five six seven eight " * 100
    model = EchoModel(script=lambda asked: obedient(asked).replace("that", loop))
    _, last = run(model, 4000 - 100)
    assert last.budget is not None and "route_rationale" in last.budget.clipped
    longest = max(asked.sampling.max_new_tokens for asked in model.seen)
    assert last.timings.forward_passes < last.budget.calls * 40 < last.budget.calls * longest


def test_escaped_quote_before_a_comma_does_not_end_a_text() -> None:
    def script(asked: GenerateRequest) -> str:
        return obedient(asked).replace("this", 'say \\"this\\", and').removesuffix("" if asked.prefix else "x")

    said: list[str] = []

    def goes_on(asked: GenerateRequest) -> str:
        whole = script(asked)
        head = whole.partition('",')[0] + '",' if '\\",' in whole else whole
        said.append(asked.prefix)
        return whole[len(head) :] if asked.prefix.endswith('\\",') else whole

    text, _ = run(EchoModel(script=goes_on), 1400)
    assert json.loads(text)["route_rationale"] == 'do say "this", and and then that'


@pytest.mark.parametrize("limit", [1, 2, 50])
def test_row_14_budget_below_the_smallest_is_refused_by_name(limit: int) -> None:
    writer = PlanWriter(EchoModel(script=obedient), TOOLS)
    assert limit < writer.smallest_budget
    with pytest.raises(BudgetTooSmall, match=str(writer.smallest_budget)):
        next(writer.write(request(limit), lambda: False))


def test_row_14_smallest_budget_gives_a_whole_plan() -> None:
    model = EchoModel(script=obedient)
    text, last = run(model, PlanWriter(model, TOOLS).smallest_budget)
    assert validate(json.loads(text), TOOLS)[1] == [] and last.finish_reason == "stop"


def test_budget_over_the_context_is_refused() -> None:
    model = EchoModel(ModelInfo("echo", "native", "echo", 600, 1), script=obedient)
    with pytest.raises(ContextOverflow, match="context of 600"):
        run(model, 600)


HOSTILE: dict[str, Callable[[GenerateRequest], str]] = {
    "garbage": lambda asked: "\x00\x1b[31m}{]['\"\\\ud7ff\n" * 5,
    "nothing": lambda asked: "",
    "blanks": lambda asked: " \n\t ",
    "a whole other plan": lambda asked: '{"route_plan": ["/rm(all)"]}',
    "thinks aloud": lambda asked: "<think>well, /math then</think>" + obedient(asked),
    "thinks for ever": lambda asked: "<think>well " * 100,
    "fences": lambda asked: "```json\n" + obedient(asked) + "\n```",
    "another tool": lambda asked: obedient(asked).replace("this", "/general-search /math /code"),
    "quotes": lambda asked: '"""""',
    "backslashes": lambda asked: "\\" * 31,
    "control characters": lambda asked: obedient(asked).replace("this", "\x00\x07\x85"),
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_row_15_hostile_engine_never_gets_a_broken_plan_out(name: str) -> None:
    def texts_only(asked: GenerateRequest) -> str:
        return obedient(asked) if "CHOICE" in (asked.grammar or "") else HOSTILE[name](asked)

    assert_whole_or_refused(EchoModel(script=HOSTILE[name]))
    assert_whole_or_refused(EchoModel(script=texts_only))


def assert_whole_or_refused(model: EchoModel) -> None:
    try:
        text, last = run(model)
    except PlanError as error:
        assert error.status == 502 and error.message
    else:
        assert last.budget is not None and last.budget.used <= 600
        assert validate(json.loads(text), TOOLS)[1] == []
        assert "<think>" not in text and "\\u0000" not in text


def test_engine_that_stops_early_is_asked_once_more() -> None:
    asked: list[GenerateRequest] = []

    def script(each: GenerateRequest) -> str:
        asked.append(each)
        first = "TEXT" in (each.grammar or "") and sum(each.prefix == other.prefix for other in asked) == 1
        return "" if first else obedient(each)

    text, last = run(EchoModel(script=script), 1000)
    assert validate(json.loads(text), TOOLS)[1] == []
    assert last.budget is not None and last.budget.retries > 5
    seeds = [each.sampling.seed for each in asked]
    assert len(set(seeds)) == len(seeds), "asking again with the same seed would get the same answer"


def test_cancel_ends_the_plan() -> None:
    model = EchoModel(script=obedient)
    calls = iter(range(1000))
    chunks = list(PlanWriter(model, TOOLS).write(request(), lambda: next(calls) > 30))
    assert chunks[-1].finish_reason == "cancelled" and model.active == set()


def test_stream_only_holds_what_stands() -> None:
    model = EchoModel(script=obedient)
    pieces = [chunk.text for chunk in PlanWriter(model, TOOLS).write(request(), lambda: False)]
    whole = "".join(pieces)
    assert len([piece for piece in pieces if piece]) > 10
    json.loads(whole)


# What clients look for before they parse

MARKS = ("```", "</json>", "<|end_of_plan|>", "<think>", "</think>", "</THINK>", "<|im_end|>", "<json>")


@pytest.mark.parametrize("mark", MARKS)
def test_texts_hold_nothing_that_clients_cut_by(mark: str) -> None:
    """An engine that ignores grammars says it in every text, whole, and put together by what is cut out of it."""
    for said in (mark, f"{mark[:2]}<think>hm</think>{mark[2:]}"):

        def script(asked: GenerateRequest, words: str = f"this {said} it") -> str:
            return obedient(asked).replace("this", words)

        text, _ = run(EchoModel(script=script), 900)
        assert mark not in text
        assert validate(json.loads(text), TOOLS)[1] == []
        # As the router UI reads an answer: thoughts dropped, the first fence's inside, the first balanced object.
        bare = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
        fence = re.search(r"```(?:json)?(.*?)```", bare, re.DOTALL)
        value, _ = json.JSONDecoder().raw_decode(fence[1] if fence else bare)
        assert tuple(value) == KEYS


@pytest.mark.parametrize("mark", MARKS)
def test_grammars_of_texts_allow_no_mark(mark: str) -> None:
    tokenizer = LLTokenizer("byte")
    for rules in (grammar.text(), grammar.rest(), grammar.text(leads=(" ",), banned=["/math"], call=True)):
        lead = " " if rules.startswith('start: (" ")') else ""
        for said, whole in ((f'{lead}so{mark}"', False), (f'{lead}so `` <thin </jso> "', True)):
            matcher = LLMatcher(tokenizer, rules, log_level=0)
            tokens = list(said.encode())
            assert (matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()) is whole, said
