from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher

from router_backend.engines.transformers import guide
from router_backend.engines.transformers.guide import Guide, Guides
from router_backend.engines.transformers.tokens import Tokens
from router_backend.errors import EngineError, InvalidRequest
from router_backend.plan import grammar
from tests.fakes import tiny

pytestmark = pytest.mark.torch
TOKENS = {name: Tokens(tiny.tokenizer(name), [], vocabulary=576) for name in ("gemma3", "llama31", "qwen3")}
each_tokenizer = pytest.mark.parametrize("tokens", TOKENS.values(), ids=TOKENS)
FIXED = (
    '"route_plan": ["/general-search(',
    "- [ ] router QA: ",
    '"], "thinking_outline": ["1. ',
    "/math -> /code -> router QA",
    "Выведите 证明 😀",
    "a",
)


def literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'start: "{escaped}"'


def begin(tokens: Tokens, rules: str) -> Guide:
    return Guides(tokens.grammar, tokens.vocabulary).begin(rules)


def by_trial(tokens: Tokens, rules: str, said: list[int]) -> set[int]:
    """Each token tried by itself on a matcher of its own."""
    matcher = LLMatcher(tokens.grammar, rules, log_level=0)
    assert matcher.consume_tokens(said)
    return {token for token in range(tokens.grammar.vocab_size) if matcher.deep_copy().try_consume_tokens([token]) == 1}


@each_tokenizer
@pytest.mark.parametrize("text", FIXED)
def test_forced_text_is_tokenised_as_the_checkpoint_knows_it(tokens: Tokens, text: str) -> None:
    found = begin(tokens, literal(text))
    assert found.forced() == list(tokens.encode(text))
    found.advance(found.forced())
    assert found.ended and found.forced() == []


@each_tokenizer
@pytest.mark.parametrize("ends", [("x", "y"), ("ath(", "aths("), (" one", " two")])
def test_forced_beginning_fits_every_end_that_may_follow(tokens: Tokens, ends: tuple[str, str]) -> None:
    head = '"tool": "/m'
    escaped = head.replace('"', '\\"')
    found = begin(tokens, f'start: "{escaped}" ("{ends[0]}" | "{ends[1]}")')
    forced = found.forced()
    assert forced
    assert all(list(tokens.encode(head + end))[: len(forced)] == forced for end in ends)
    found.advance(forced)
    assert not found.ended


@each_tokenizer
@pytest.mark.parametrize("text", FIXED)
def test_mask_leads_through_the_same_tokens_as_forcing(tokens: Tokens, text: str) -> None:
    """So that writing forced tokens without asking the model changes nothing."""
    found, said = begin(tokens, literal(text)), list[int]()
    while not found.ended:
        (only,) = np.flatnonzero(found.allowed()).tolist()
        found.advance([only])
        said.append(only)
    assert said == begin(tokens, literal(text)).forced()


SMALL = {
    "choice": ('start: "/math(" | "/code(" | "/general-search("', ("", "/", "/c")),
    "class": ("start: /[a-z]{1,3}(-[0-9])*/", ("", "a", "the", "a-1")),
    "optional end": ('start: "a" "b"?', ("", "a")),
    "string": ('start: TEXT "\\""\nTEXT: /[^"\\n]{1,40}/', ("", "Prove that ", "é")),
    "plan's text": (grammar.text(leads=(" ",), banned=["/math"]), ("", " ", " Prove", " /mat")),
}


@each_tokenizer
@pytest.mark.parametrize(("rules", "beginnings"), SMALL.values(), ids=SMALL)
def test_allowed_tokens_are_those_that_can_be_consumed(tokens: Tokens, rules: str, beginnings: tuple[str, ...]) -> None:
    for beginning in beginnings:
        said = list(tokens.encode(beginning))
        found = begin(tokens, rules)
        found.advance(said)
        allowed = found.allowed()
        assert allowed.shape == (tokens.vocabulary,) and allowed.dtype == np.bool_
        forced = found.forced()
        fitting = by_trial(tokens, rules, said)
        assert set(forced[:1]) <= fitting
        # Where text is forced, its other tokenisations are not allowed either.
        assert set(np.flatnonzero(allowed).tolist()) == (set(forced[:1]) or fitting), beginning


@each_tokenizer
def test_end_token_is_allowed_where_the_answer_may_end(tokens: Tokens) -> None:
    found = begin(tokens, 'start: "a" "b"?')
    assert not found.allowed()[list(tokens.ends)].any()
    found.advance(tokens.encode("a"))
    assert found.allowed()[list(tokens.ends)].all() and not found.ended
    found.advance(tokens.encode("b"))
    assert found.ended


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_walk_stays_inside_the_grammar(data: st.DataObject) -> None:
    """Forced where it is forced, else any allowed token: what comes out is what the grammar says."""
    tokens = TOKENS[data.draw(st.sampled_from(sorted(TOKENS)))]
    found, said = begin(tokens, 'start: "- [ ] " ("/math" | "/code") ": " /[a-z ]{0,9}/ "."'), list[int]()
    while not found.ended:
        step = found.forced() or [data.draw(st.sampled_from(np.flatnonzero(found.allowed()).tolist()))]
        found.advance(step)
        said += step
    text = tokens.bytes_of(said).decode()
    assert text.startswith(("- [ ] /math: ", "- [ ] /code: ")) and text.endswith(".")
    assert len(text) <= 13 + 9 + 1


def test_token_that_is_not_allowed_is_an_error() -> None:
    tokens = TOKENS["qwen3"]
    found = begin(tokens, literal("abc"))
    with pytest.raises(EngineError, match="refused a token"):
        found.advance(tokens.encode("x"))


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ("start: NOWHERE", 'unknown name: "NOWHERE"'),
        ("start: /(/", "invalid regex"),
        ("", "Empty grammar"),
        ('start: "a"\nstart: "b"', "duplicate rule"),
        ("plain words", "Expected token"),
    ],
)
def test_row_12_grammar_that_does_not_compile_is_refused_in_the_compilers_words(rules: str, words: str) -> None:
    guides = Guides(TOKENS["qwen3"].grammar)
    for _ in range(2):  # a failure is no compiled grammar that the second time is taken from memory
        with pytest.raises(InvalidRequest, match="does not compile") as caught:
            guides.begin(rules)
        assert words in caught.value.message and caught.value.param == "grammar"
        assert "\n" not in caught.value.message


def test_guides_of_one_grammar_do_not_disturb_each_other() -> None:
    tokens = TOKENS["qwen3"]
    guides = Guides(tokens.grammar)
    first, second = guides.begin('start: "ab" | "cd"'), guides.begin('start: "ab" | "cd"')
    first.advance(tokens.encode("ab"))
    assert first.ended and not second.ended
    second.advance(tokens.encode("cd"))
    assert second.ended and not guides.begin('start: "ab" | "cd"').ended


def test_row_24_few_compiled_grammars_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []

    def counted(tokenizer: object, rules: str, log_level: int) -> LLMatcher:
        compiled.append(rules)
        return LLMatcher(TOKENS["qwen3"].grammar, rules, log_level=log_level)

    monkeypatch.setattr(guide, "LLMatcher", counted)
    guides = Guides(TOKENS["qwen3"].grammar)
    for index in [*range(300), 299, 298, 299]:
        guides.begin(literal(str(index)))
    assert len(compiled) == 300, "those used last are kept"
    guides.begin(literal("0"))
    assert len(compiled) == 301, "and the oldest given up"
    assert guides._compiled.cache_info().currsize == guide._COMPILED


def test_mask_is_as_wide_as_the_logits_where_the_tokenizer_has_more_tokens() -> None:
    """As checkpoints have it whose tokenizer got tokens that the model was never widened for."""
    made = tiny.tokenizer("llama31")
    narrow = Tokens(made, [], vocabulary=len(made) - 1)
    assert narrow.ends <= set(range(narrow.vocabulary))
    found = begin(narrow, 'start: "a" "b"?')
    found.advance(narrow.encode("a"))
    assert found.allowed().shape == (len(made) - 1,)
    assert {*narrow.encode("b"), *narrow.ends} == set(np.flatnonzero(found.allowed()).tolist())
