import re
from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from router_backend.plan import grammar
from router_backend.plan.schema import DIFFICULTIES
from router_backend.writing.clip import ELLIPSIS, clean, escape, split_at_quote
from router_backend.writing.grammar import allows, as_regex, choice, problem_of

TOOLS = ("/general-search", "/math", "/code")
ENDS = ('"', '",', '"]', '"}', '"],', '"]}', '"]}}', '"}}', '"]},')
ALL_OF_UNICODE = (
    "日本語の計画",
    "خطة التوجيه",
    "план",
    "πλάνο",
    "emoji 😀👩‍👩‍👧",
    "sep\u2028arators\u2029",
    "a\u00a0no-break",
    "zero\u200bwidth\u200d",
    "top \U0010ffff",
    "combi\u0301ning",
    "last of two bytes \u07ff",
    "last before the surrogates \ud7ff, first after \ue000",
)
CONTROLS = tuple(map(chr, [*range(0x20), *range(0x7F, 0xA0)]))
QUICK = settings(max_examples=60, deadline=None)


@cache
def tokenizer() -> LLTokenizer:
    return LLTokenizer("byte")


@cache
def matcher(rules: str) -> LLMatcher:
    found = LLMatcher(tokenizer(), rules, log_level=0)
    assert not found.is_error(), found.get_error()
    return found


def state(rules: str, said: str | bytes) -> str:
    """What the grammar makes of an answer: `refused`, `open` (more must come) or `whole`."""
    tokens = list(said.encode() if isinstance(said, str) else said)
    match = matcher(rules).deep_copy()
    if match.try_consume_tokens(tokens) < len(tokens):
        return "refused"
    assert not match.is_error()
    return "whole" if match.is_accepting() else "open"


ALL_KINDS = {
    "text": grammar.text(),
    "text with a lead": grammar.text(leads=(" ",)),
    "text without a word": grammar.text(banned=["/math"]),
    "text without many words": grammar.text(leads=(" ",), banned=[f"/tool-{index}" for index in range(63)]),
    "text that may be empty": grammar.text(leads=(" ",), optional=True),
    "argument": grammar.text(call=True),
    "everything": grammar.text(leads=(" ",), banned=TOOLS, optional=True, call=True),
    "first tag": grammar.tag([]),
    "fourth tag": grammar.tag(["ai", "ai-ml", "math-2"]),
    "tool": choice([f"{tool}(" for tool in TOOLS]),
    "one tool": choice(["/math("]),
    "64 tools": choice([f"/tool-{index}(" for index in range(64)]),
    "difficulty": choice([f'{word}"' for word in DIFFICULTIES]),
    "end of a list": choice(['",', '"]']),
    "end of the metrics": choice(['"]}}', '"], "guidance": "', '"], "diagnostic": "']),
}


@pytest.mark.parametrize("rules", ALL_KINDS.values(), ids=ALL_KINDS)
def test_every_kind_compiles_without_a_warning(rules: str) -> None:
    assert LLMatcher.validate_grammar(rules, tokenizer()) == ""
    assert LLMatcher.validate_grammar_with_warnings(rules, tokenizer()) == (False, [])


# Free text


@pytest.mark.parametrize("end", ENDS)
def test_a_text_ends_with_its_quote_and_what_may_follow_it(end: str) -> None:
    assert state(grammar.text(), f"Solve it{end}") == "whole"


@pytest.mark.parametrize("end", ['"x', '" ', '""', '",,', '":', '"}]', '"]]', '"\n'])
def test_nothing_else_follows_the_quote(end: str) -> None:
    assert state(grammar.text(), f"Solve it{end}") == "refused"


def test_an_open_text_is_not_whole() -> None:
    for said in ("", "S", "Solve it", 'Solve \\"it\\"', "Solve it\\"):
        assert state(grammar.text(), said) == "open"


@pytest.mark.parametrize("said", ALL_OF_UNICODE)
@pytest.mark.parametrize("kind", ["text", "argument", "everything"])
def test_all_of_unicode_is_welcome(said: str, kind: str) -> None:
    lead = " " if kind == "everything" else ""
    assert state(ALL_KINDS[kind], f'{lead}{said}"') == "whole"


@pytest.mark.parametrize("control", CONTROLS, ids=[f"U+{ord(char):04X}" for char in CONTROLS])
def test_control_characters_are_refused(control: str) -> None:
    rules = grammar.text()
    assert state(rules, f'a{control}b"') == "refused"
    assert state(rules, f'{control}b"') == "refused"
    assert state(grammar.text(banned=["/math"]), f'a{control}b"') == "refused"


@pytest.mark.parametrize("said", ['\\""', '\\\\"', 'a \\"b\\" c"', 'C:\\\\x"', 'a\\\\\\""', '\\\\\\\\"'])
def test_escaped_quotes_and_backslashes(said: str) -> None:
    assert state(grammar.text(), said) == "whole"


@pytest.mark.parametrize("said", ["\\n", "\\t", "\\u0041", "\\/", "\\b", "a\\x", 'a"b', 'a\\\\"b'])
def test_other_escapes_and_lone_quotes_are_refused(said: str) -> None:
    assert state(grammar.text(), f'{said}"') == "refused"


@pytest.mark.parametrize(
    "said", [b'\xff"', b'a\xc0\x80"', b'a\xed\xa0\x80"', b'a\xf4\x90\x80\x80"', b'a\x80"', b'\xe6"']
)
def test_what_is_no_utf_8_is_refused(said: bytes) -> None:
    assert state(grammar.text(), said) == "refused"


@pytest.mark.parametrize("blank", [" ", "  ", "\u00a0", "\u3000", "\u2028"])
def test_blanks_at_the_end_are_none_of_the_characters_that_must_be(blank: str) -> None:
    rules = grammar.text(least=4)
    assert state(rules, f'abc{blank}"') == "refused"
    assert state(rules, f'abc{blank}d"') == "whole"
    assert state(grammar.text(least=2), 'ab"') == "whole"


@pytest.mark.parametrize("blank", ['"', ' "', '  "', ' a"', '\u00a0a"', '\u2003"', '\u3000a"', '\u2028"'])
def test_a_text_is_never_blank_nor_starts_with_a_blank(blank: str) -> None:
    assert state(grammar.text(), blank) == "refused"
    assert state(grammar.text(leads=(" ",)), f" {blank}") == "refused"


def test_blanks_inside_are_fine() -> None:
    assert state(grammar.text(), 'a  b\u00a0c "') == "whole"


def test_a_lead_is_forced_and_no_text_by_itself() -> None:
    rules = grammar.text(leads=(" ",))
    assert state(rules, ' Solve it"') == "whole"
    assert state(rules, 'Solve it"') == "refused"
    assert state(rules, ' "') == "refused"
    assert state(grammar.text(leads=("1. ",)), '1. Solve"') == "whole"
    assert state(grammar.text(leads=("1. ",)), '2. Solve"') == "refused"


def test_an_optional_text_may_be_empty_but_not_blank() -> None:
    rules = grammar.text(leads=(" ",), optional=True)
    for end in ENDS:
        assert state(rules, end) == "whole"
        assert state(rules, f" then done{end}") == "whole"
    assert state(rules, ' "') == "refused"
    assert state(rules, 'then"') == "refused"
    assert state(grammar.text(leads=(" ",)), '"') == "refused"


@pytest.mark.parametrize("said", ["…", "a…", "…a", "a … b", '\\"…'])
def test_the_mark_of_a_clipped_text_is_not_for_the_checkpoint(said: str) -> None:
    for rules in (grammar.text(), grammar.text(call=True), grammar.rest(), grammar.text(banned=["/math"])):
        assert state(rules, f'{said}"') == "refused"
        assert state(rules, f'{said.replace("…", "...")}"') == "whole"


# Banned words


@pytest.mark.parametrize(
    "said", ["use /math", "/math", "a/mathb", "use /code now", "/code", "/general-search", "//math"]
)
def test_banned_words_are_refused_wherever_they_stand(said: str) -> None:
    rules = grammar.text(banned=TOOLS)
    assert state(rules, f'{said}"') == "refused"
    assert state(grammar.text(leads=(" ",), banned=TOOLS, optional=True), f' {said}"') == "refused"


@pytest.mark.parametrize("said", ["/mat", "math", "/ math", "/Math", "general-search", "/cod e", "/"])
def test_what_is_not_quite_a_banned_word_is_fine(said: str) -> None:
    assert state(grammar.text(banned=TOOLS), f'{said}"') == "whole"


def test_only_what_is_banned_is_banned() -> None:
    rules = grammar.text(banned=["/math"])
    assert state(rules, 'use /code"') == "whole"
    assert state(rules, 'use /math"') == "refused"


def test_banned_words_that_begin_each_other() -> None:
    for banned in (["/code", "/code-review"], ["/code-review", "/code"]):
        rules = grammar.text(banned=banned)
        assert state(rules, 'use /code"') == "refused"
        assert state(rules, 'use /code-review"') == "refused"
        assert state(rules, 'use /cod-review"') == "whole"
    rules = grammar.text(banned=["/code-review"])
    assert state(rules, 'use /code"') == "whole"
    assert state(rules, 'use /code-revie"') == "whole"
    assert state(rules, 'use /code-review"') == "refused"


def test_a_banned_word_after_an_escape_or_a_line_separator() -> None:
    rules = grammar.text(banned=["/math"])
    for said in ('\\"/math\\"', "\\\\/math", "a\u2028/math", "😀/math"):
        assert state(rules, f'{said}"') == "refused"


@pytest.mark.parametrize("mark", [char for char in map(chr, range(0x21, 0x7F)) if char not in '"\\'])
def test_a_banned_word_is_taken_as_it_is_written(mark: str) -> None:
    rules = grammar.text(banned=[f"a{mark}b"])
    assert LLMatcher.validate_grammar(rules, tokenizer()) == ""
    assert state(rules, f'xa{mark}by"') == "refused"
    assert state(rules, f'xa {mark}b {mark}{mark}"') == "whole"


# Arguments


@pytest.mark.parametrize("said", [')"', ')x"', ')", "/math(x)"', ' x"', '"'])
def test_an_argument_is_never_empty(said: str) -> None:
    assert state(grammar.text(call=True), said) == "refused"


@pytest.mark.parametrize(
    "said", ['x)"', 'f(x))"', '(x))"', 'query=\\"a (b)\\", mode=rag)",', '\\"a\\")"]', '(a)(b) c"']
)
def test_arguments(said: str) -> None:
    assert state(grammar.text(call=True), said) == "whole"


def test_only_an_argument_may_not_start_with_a_parenthesis() -> None:
    assert state(grammar.text(), ')"') == "whole"


# Tags


@pytest.mark.parametrize("word", ["a", "ai", "linear-algebra", "2d", "a-1-b2", "x" * 60])
def test_kebab_case_is_a_tag(word: str) -> None:
    assert state(grammar.tag([]), f'{word}"') == "whole"
    assert state(grammar.tag([]), f'{word}"],') == "whole"


@pytest.mark.parametrize("word", ["", "-a", "a-", "a--b", "A", "a b", "a_b", "é", "a.b", "日本", 'a\\"', "a/b"])
def test_anything_else_is_none(word: str) -> None:
    assert state(grammar.tag([]), f'{word}"') == "refused"


def test_a_taken_tag_is_refused_and_longer_ones_are_not() -> None:
    rules = grammar.tag(["ai", "ai-ml"])
    for taken in ("ai", "ai-ml"):
        assert state(rules, f'{taken}"') == "refused"
    for free in ("a", "aim", "ai-m", "ai-mls", "ml-ai", "ai-ml-ai"):
        assert state(rules, f'{free}"') == "whole"


# Choices


@pytest.mark.parametrize(
    "options",
    [
        [f"{tool}(" for tool in TOOLS],
        ["/code(", "/code-review("],
        ["/code-review", "/code"],
        ["/only("],
        ['",', '"]'],
        [" /math:", " router QA:"],
        ['"]}}', '"], "guidance": "', '"], "primary_guidance": "'],
        ["back\\slash", 'quo"te', "new\nline", "é 日本 😀"],
    ],
)
def test_exactly_one_of_the_options(options: Sequence[str]) -> None:
    rules = choice(options)
    for option in options:
        assert state(rules, option) == "whole"
        assert state(rules, f"{option}x") == "refused"
        assert state(rules, f"{option}{option}") == "refused"
    for wrong in ("", "x", " ", "/"):
        assert state(rules, wrong) != "whole"


def test_a_beginning_is_no_choice() -> None:
    rules = choice(["/code(", "/code-review("])
    assert state(rules, "/code") == "open"
    assert state(rules, "/code-review") == "open"
    assert state(rules, "/code-(") == "refused"


# The grammar and what reads its texts must agree


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40))
@QUICK
def test_every_escaped_text_is_in_the_language(text: str) -> None:
    said = f'{escape(text)}"'
    assert state(grammar.text(), said) == ("refused" if text[0].isspace() or ELLIPSIS in text else "whole")


@given(st.text(st.sampled_from('ab"\\/ \n\x00\x7f\x85é😀)n'), min_size=1, max_size=8))
@QUICK
def test_whatever_is_in_the_language_can_be_read(said: str) -> None:
    rules = grammar.text()
    if state(rules, f'{said}"') == "whole":
        assert split_at_quote(f'{said}"') == (said, "")
        assert clean(said)
        assert escape(clean(said)) == said.strip()


RULES = (
    grammar.text(),
    grammar.text(leads=("(",), call=True),
    grammar.text(leads=(" ", ". "), optional=True),
    grammar.text(leads=(" ",), banned=("/math",), least=12),
    grammar.rest(),
    grammar.tag(("taken",)),
    choice(["/math(", "/code("]),
    choice([' "a\\b"', "?*+"]),
)
SAID = (
    *('say it", ', 'say it"', '"', '(x)"', ' a lead",', '. of two"]', '/math("', "/math(", "/code(", ' "a\\b"', "?*+"),
    *('kebab-case"', 'taken"', 'Kebab"', 'an escape \\" inside"', 'half \\"', "…", 'nine char"', ' at least twelve"'),
)


@pytest.mark.parametrize("rules", RULES)
def test_a_regular_expression_says_the_same_but_for_what_is_taken_away(rules: str) -> None:
    regex = as_regex(rules)
    assert regex is not None and problem_of(rules) is None
    both = 0
    for said in SAID:
        machine = LLMatcher(tokenizer(), rules)
        whole = machine.try_consume_tokens(list(said.encode())) == len(said.encode()) and machine.is_accepting()
        matched = re.fullmatch(regex, said) is not None
        assert matched or not whole, said
        if matched and not whole:
            assert said == 'taken"', "forbidden, which an expression cannot say"
        both += whole
        assert allows(rules, said) or not whole
    assert both, "one of them at least is allowed"


def test_what_has_no_regular_expression_has_none() -> None:
    assert as_regex('start: number\nnumber: %json {"type": "integer"}\n') is None
    assert as_regex("start: NOWHERE\n") is None
    assert problem_of("start: NOWHERE\n") and not allows(choice(["a"]), "b")
