from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from router_backend.decisions import calibration, questions
from router_backend.decisions.decide import Decider
from router_backend.engines.echo import EchoModel
from router_backend.engines.llamacpp import Known, LlamaCppModel
from router_backend.errors import ContextOverflow, InvalidRequest
from router_backend.plan.prompt import router_prompt
from router_backend.plan.write import PlanWriter
from router_backend.types import Chunk, GenerateRequest, ModelInfo, Odds, Question, SamplingParams, TokenLogprob, Turn

TOOLS = ("/general-search", "/math", "/code")
FIRST = Question(("",), TOOLS, plan_budget=600)
NEWTON = "Derive the convergence rate of Newton's method and check it in Python."


def never() -> bool:
    return False


def asked(*given: Question, prompt: str = NEWTON, history: tuple[Turn, ...] = ()) -> GenerateRequest:
    return GenerateRequest("d", prompt, SamplingParams(), "decision", history=history, questions=given)


def decide(model: Any, request: GenerateRequest, cancelled: Callable[[], bool] = never) -> Chunk:  # noqa: ANN401
    (chunk,) = Decider(model).write(request, cancelled)
    return chunk


# Questions


def test_choices_are_asked_in_one_order_and_each_is_json_that_ends() -> None:
    one = questions.chooses("Which?", {"b": "last", True: None, "a": None, "true": None}, (), 600)
    other = questions.chooses("Which?", {True: None, "true": None, "a": None, "b": "last"}, (), 600)
    assert one == other
    assert one.answers == (' "a"}', ' "b"}', ' "true"}', " true}")
    assert '- "b": last\n' in one.texts[0] and one.texts[0].startswith("Which?\n")
    listed = [[line for line in text.splitlines() if line.startswith("- ")] for text in one.texts]
    assert all(len(set(places)) == 4 for places in zip(*listed, strict=True)), "each answer is in each place once"
    many = questions.asks("Which?", dict.fromkeys(map(str, range(255))))
    assert len(many.texts) <= questions.LISTINGS
    assert len(questions.asks("Which?", dict.fromkeys("abc"), ranked=True).texts) == 2
    assert [json.loads('{"answer":' + each)["answer"] for each in one.answers] == ["a", "b", "true", True]


def test_tools_of_the_router_are_asked_as_a_plan_begins() -> None:
    for names in (("math", "code"), ("/code", "/math")):
        assert questions.chooses("Who?", dict.fromkeys(names), TOOLS, 600) == Question(
            ("",), ("/code", "/math"), plan_budget=600
        )
    for others in (("/math", "/poet"), ("/math", "math"), ("/math", True)):
        assert questions.chooses("Who?", dict.fromkeys(others), TOOLS, 600).plan_budget is None


# Odds


def test_probabilities_sum_to_one_however_unlikely_all_are() -> None:
    odds = Odds(("a", "b", "c"), (-2000.0, -2001.0, -2900.0))
    assert math.fsum(odds.probabilities) == pytest.approx(1, abs=1e-12)
    assert odds.of("a") == pytest.approx(1 / (1 + math.exp(-1)))
    assert replace(odds, temperature=2.0).of("a") == pytest.approx(1 / (1 + math.exp(-0.5)))


def test_temperature_is_found_and_survives_a_file(tmp_path: Path) -> None:
    """Rows drawn at a temperature of 2: seven of ten are right where 0.845 is said."""
    said = Odds(("a", "b"), (math.log(0.845), math.log(0.155)))
    rows = [(said, "a")] * 70 + [(said, "b")] * 30
    found = calibration.fit(rows)
    assert found == pytest.approx(math.log(0.845 / 0.155) / math.log(7 / 3), abs=0.01)
    assert calibration.surprise(calibration.at(rows, found)) < calibration.surprise(rows)
    for checkpoint in (tmp_path, tmp_path / "router.Q8_0.gguf"):
        assert calibration.temperature_of(checkpoint) == 1.0
        calibration.place(checkpoint).write_text(json.dumps({"temperature": found}))
        assert calibration.temperature_of(checkpoint) == found
    assert calibration.place(tmp_path / "router.Q8_0.gguf").name == "router.Q8_0.calibration.json"


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"temperature": 0}', '{"temperature": "1"}', '{"temperature": NaN}']
)
def test_calibration_that_is_not_understood_changes_nothing(tmp_path: Path, content: str) -> None:
    calibration.place(tmp_path).write_text(content)
    assert calibration.temperature_of(tmp_path) == 1.0


# Decider


def test_echo_finds_likely_what_it_heard() -> None:
    question = Question(("Which?", "Say which."), (' "left"}', ' "right"}'))
    (odds,) = decide(EchoModel(), asked(question, prompt="Turn right.")).odds
    assert odds.of(' "right"}') > 0.5


def test_decision_is_cancelled_between_two_answers() -> None:
    calls = iter([False, True])
    chunk = decide(EchoModel(), asked(FIRST), lambda: next(calls))
    assert chunk.finish_reason == "cancelled" and not chunk.odds


def test_what_cannot_be_weighed_is_refused() -> None:
    mute = EchoModel(ModelInfo("m", "native", "other", 4096, weighs=False))
    with pytest.raises(InvalidRequest, match="gives no probabilities"):
        decide(mute, asked(FIRST))
    small = EchoModel(ModelInfo("m", "native", "echo", 10))
    with pytest.raises(ContextOverflow):
        decide(small, asked(FIRST))
    with pytest.raises(ContextOverflow):
        Decider(small).admit(asked(FIRST))


# Answers that begin alike


class Tree:
    """A language model over few tokens, which tells the `top` likeliest of them in each place."""

    def __init__(self, seed: int, top: int, sharp: float) -> None:
        self._seed, self._top, self._sharp = seed, top, sharp
        self.told: list[tuple[int, ...]] = []

    def logs(self, begun: tuple[int, ...]) -> list[float]:
        draw = random.Random(f"{self._seed} {begun}")
        weights = [math.exp(self._sharp * draw.gauss(0, 1)) for _ in range(9)]
        return [math.log(weight / sum(weights)) for weight in weights]

    def walk(self, begun: tuple[int, ...], ways: list[tuple[int, ...]]) -> list[TokenLogprob]:
        """The likeliest of the ways, token by token, to the end of one."""
        told = []
        while ways and all(ways):
            logs = self.logs(begun)
            token = max((way[0] for way in ways), key=logs.__getitem__)
            likeliest = sorted(range(9), key=logs.__getitem__, reverse=True)[: self._top]
            top = tuple(TokenLogprob("", (), logs[each], id=each) for each in likeliest)
            told.append(TokenLogprob("", (), logs[token], top, token))
            self.told.append(begun)
            ways, begun = [way[1:] for way in ways if way[0] == token], (*begun, token)
        return told


@pytest.mark.parametrize("top", [1, 3, 9])
@pytest.mark.parametrize("reach", [math.inf, 7.0])
@pytest.mark.parametrize("seed", range(20))
def test_answers_share_the_passes_of_what_they_begin_with(seed: int, reach: float, top: int) -> None:
    model, draw = Tree(seed, top, sharp=3.0), random.Random(seed)
    answers = [(*draw.choices(range(4), k=draw.randrange(1, 5)), 8) for _ in range(draw.randrange(1, 8))]
    direct = [math.fsum(model.logs(answer[:at])[token] for at, token in enumerate(answer)) for answer in answers]
    known = Known(answers)
    for begun, ways in known.walks(reach):
        known.note(begun, model.walk(begun, ways))
    assert all(found >= log - 1e-9 for found, log in zip(known.logprobs, direct, strict=True))
    options = tuple(map(str, range(len(answers))))
    odds, exact = Odds(options, known.logprobs).probabilities, Odds(options, tuple(direct)).probabilities
    if reach == math.inf:
        assert known.logprobs == pytest.approx(direct)
    assert all(
        found == pytest.approx(right, rel=len(answers) * math.exp(-reach) + 1e-9) or found <= math.exp(-reach)
        for found, right in zip(odds, exact, strict=True)
    )
    if top == 9:
        assert len(model.told) == len(set(model.told)), "no place is passed twice"


# The embedded checkpoint


@pytest.mark.real
def test_llamacpp_weighs_all_tokens_of_an_answer(embedded: LlamaCppModel) -> None:
    """By another way: after each token, what llama.cpp says of the next one without any grammar."""
    request = GenerateRequest("w", router_prompt(NEWTON), prefix='{"route_plan": ["/')
    answers = ("general-search(", "math(")
    (odds,) = embedded.weigh(request, answers, never).odds
    for answer, log in zip(answers, odds.logprobs, strict=True):
        said, prefix = 0.0, request.prefix
        for token in embedded._tokenize(answer):
            sampling = SamplingParams(1, 0.0, logprobs=20)
            step = replace(request, prefix=prefix, sampling=sampling)
            (told,) = [each for chunk in embedded.generate(step, never) for each in chunk.logprobs]
            piece = next(each for each in told.top if embedded._tokenize(each.token) == (token,))
            said, prefix = said + piece.logprob, prefix + piece.token
        assert log == pytest.approx(said, abs=0.01)


@pytest.mark.real
def test_unlikely_tools_cost_no_passes_and_next_to_nothing(embedded: LlamaCppModel) -> None:
    request = GenerateRequest("w", router_prompt(NEWTON), prefix='{"route_plan": ["')
    answers = [f"{tool}(" for tool in TOOLS]
    exact, short = (embedded.weigh(replace(request, reach=reach), answers, never) for reach in (math.inf, 7.0))
    assert short.odds[0].probabilities == pytest.approx(exact.odds[0].probabilities, abs=0.01)
    alone = sum(embedded.weigh(request, [answer], never).timings.forward_passes for answer in answers)
    assert short.timings.forward_passes <= exact.timings.forward_passes < alone
    assert exact.odds[0].logprobs[0] > embedded.weigh(request, [f"{TOOLS[0]}x"], never).odds[0].logprobs[0]


@pytest.mark.real
def test_decision_says_what_the_report_of_a_plan_says(embedded: LlamaCppModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_info", replace(embedded.info, temperature=1.2))
    (odds,) = decide(embedded, asked(FIRST)).odds
    request = GenerateRequest("p", router_prompt(NEWTON), SamplingParams(600, seed=1), "plan")
    last = list(PlanWriter(embedded, TOOLS).write(request, never))[-1]
    assert last.route[0].odds.probabilities == pytest.approx(odds.probabilities, abs=0.01)
    assert odds.temperature == last.route[0].odds.temperature == 1.2
    assert [step.tool for step in last.route] and all(step.tool in step.odds.options for step in last.route)


@pytest.mark.real
def test_several_questions_share_what_was_read_of_the_input(embedded: LlamaCppModel) -> None:
    likes = [questions.states(f"It is about {each}.") for each in ("numbers", "horses", "cooking")]
    chunk = decide(embedded, asked(*likes, prompt=NEWTON * 20, history=(Turn("system", "Read it."),)))
    assert len(chunk.odds) == 3 and all(sum(odds.probabilities) == pytest.approx(1) for odds in chunk.odds)
    assert chunk.usage.cached_tokens > 0.6 * 0.66 * chunk.usage.prompt_tokens
