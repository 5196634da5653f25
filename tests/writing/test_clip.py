import json
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from router_backend.writing.clip import GRAM, clean, clip, escape, open_escape, repeats, shorten, split_at_quote

ANYTHING = st.text(st.characters(codec=None, exclude_categories=[]), max_size=60)
UNICODE = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=80)
PROSE = st.text(st.sampled_from("ab cdé日😀 ,.;:!?\"\\/()-–'\u2028\u00a0"), max_size=60)
BODIES = st.text(st.sampled_from('ab\\"\\"nu0d8e9f{}[],\n\x00\ud83d\ude00\ufffd '), max_size=30)
QUICK = settings(max_examples=150, deadline=None)


def shorter_than(limit: int) -> Callable[[str], bool]:
    return lambda text: len(text) <= limit


def bytes_at_most(limit: int) -> Callable[[str], bool]:
    return lambda text: len(escape(text).encode()) <= limit


# clean and escape


@given(ANYTHING | BODIES | PROSE)
@QUICK
@example("\ud83d")
@example("\\ud83d")
@example("\\u0000\\n\x85")
@example("a\\")
@example("a\\\\\\")
@example('a"b\\u12')
@example("<think>\ud83d")
def test_cleaned_text_is_safe_and_round_trips(body: str) -> None:
    text = clean(body)
    assert not any(unicodedata.category(char) in ("Cc", "Cs") for char in text)
    assert text == text.strip()
    assert json.loads(f'"{escape(text)}"') == text
    assert escape(text).encode().decode() == escape(text)
    assert split_at_quote(escape(text)) == (escape(text), None)
    assert not open_escape(escape(text))


@given(UNICODE)
@QUICK
def test_clean_undoes_escape(text: str) -> None:
    assume("<think" not in text.lower())
    assert clean(escape(text)) == text.rstrip("\ufffd").strip()


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("plain", "plain"),
        ("  blanks \t", "blanks"),
        ('a \\"quoted\\" word', 'a "quoted" word'),
        ("C:\\\\path", "C:\\path"),
        ("half an escape\\", "half an escape"),
        ("a whole one\\\\", "a whole one\\"),
        ("line\\nbreak", "line break"),
        ("line\nbreak", "line break"),
        ("nul\\u0000\x00", "nul"),
        ("bell\x07\x7f\x85end", "bell   end"),
        ("\\ud83d\\ude00", "😀"),
        ("lone \\ud83d end", "lone   end"),
        ("lone \ud83d end", "lone   end"),
        ("cut in a character \ufffd", "cut in a character"),
        ("in the \ufffd middle", "in the \ufffd middle"),
        ('bad \\x escape \\"here\\"', 'bad \\x escape "here"'),
        ("\\u12", "\\u12"),
        ("line\u2028separator", "line\u2028separator"),
        ("日本語 العربية 😀", "日本語 العربية 😀"),
        ("<think>hm</think>Solve it", "Solve it"),
        ("<thinking>h\\nm</THINKING> Solve it", "Solve it"),
        ("Solve <think>never ended", "Solve"),
        ("<think>all of it", ""),
        ("", ""),
    ],
)
def test_clean(body: str, text: str) -> None:
    assert clean(body) == text


def test_escape_is_the_reference_form() -> None:
    assert escape('é "x" \\ 😀 /') == 'é \\"x\\" \\\\ 😀 /'


# Quotes and escapes


@pytest.mark.parametrize(
    ("raw", "body", "rest"),
    [
        ("open", "open", None),
        ("", "", None),
        ('"', "", ""),
        ('end"', "end", ""),
        ('end", "next"', "end", ', "next"'),
        ('a \\"quote\\" inside"]', 'a \\"quote\\" inside', "]"),
        ('only \\"', 'only \\"', None),
        ('backslash\\\\"}', "backslash\\\\", "}"),
        ('both\\\\\\"', 'both\\\\\\"', None),
        ('both\\\\\\\\"', "both\\\\\\\\", ""),
        ('\\"', '\\"', None),
        ('\\\\"', "\\\\", ""),
        ('x\\""y"', 'x\\"', 'y"'),
        ('""', "", '"'),
    ],
)
def test_split_at_quote(raw: str, body: str, rest: str | None) -> None:
    assert split_at_quote(raw) == (body, rest)


@given(UNICODE, st.text(max_size=10))
@QUICK
def test_the_first_quote_after_an_escaped_text_ends_it(text: str, rest: str) -> None:
    assert split_at_quote(f'{escape(text)}"{rest}') == (escape(text), rest)


@given(BODIES)
@QUICK
def test_nothing_is_lost_at_the_quote(raw: str) -> None:
    body, rest = split_at_quote(raw)
    assert raw == (body if rest is None else f'{body}"{rest}')
    if rest is not None:
        assert not open_escape(body)


@pytest.mark.parametrize(("count", "half"), [(0, False), (1, True), (2, False), (3, True), (4, False)])
def test_open_escape(count: int, half: bool) -> None:
    assert open_escape("text" + "\\" * count) is half
    assert open_escape("\\" * count) is half
    assert open_escape("\\" * count + "x") is False


# clip


@given(PROSE | UNICODE, st.integers(0, 90))
@QUICK
def test_what_is_clipped_fits_and_is_a_beginning(text: str, limit: int) -> None:
    for fits in (shorter_than(limit), bytes_at_most(limit)):
        short = clip(text, fits)
        if not short:
            continue
        assert fits(short)
        assert short.endswith("…")
        start = short.removesuffix("…").rstrip()
        assert start
        assert text.startswith(start)
        assert len(start) < len(text)
        assert json.loads(f'"{escape(short)}"') == short
        assert clean(escape(short)) == short.strip() or "\ufffd" in short or "<think" in short.lower()


@given(st.lists(st.text("abé日😀", min_size=1, max_size=9), min_size=2, max_size=12), st.integers(0, 90))
@QUICK
def test_the_longest_whole_words_that_fit(words: list[str], limit: int) -> None:
    beginnings = [f"{' '.join(words[:count])}…" for count in range(1, len(words))]
    fitting = [beginning for beginning in beginnings if len(beginning) <= limit]
    assert clip(" ".join(words), shorter_than(limit)) == (fitting[-1] if fitting else "")


@given(st.text("日本語の文章", min_size=2, max_size=40), st.integers(2, 50))
@QUICK
def test_the_longest_characters_that_fit_where_there_are_no_blanks(text: str, limit: int) -> None:
    assert clip(text, shorter_than(limit)) == f"{text[: min(limit, len(text)) - 1]}…"


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("one two three four", 100, "one two three…"),
        ("one two three four", 14, "one two three…"),
        ("one two three four", 13, "one two…"),
        ("one two three four", 8, "one two…"),
        ("one two three four", 7, "one…"),
        ("one two three four", 4, "one…"),
        ("one two three four", 3, ""),
        ("one two three four", 0, ""),
        ("", 10, ""),
        ("   ", 10, ""),
        ("x", 10, ""),
        ("one", 10, "on…"),
        ("日本語の文章です", 100, "日本語の文章で…"),
        ("日本語の文章です", 4, "日本語…"),
        ("one, (two; three", 100, "one, (two…"),
        ("one - two", 100, "one…"),
        ('say "this thing', 100, 'say "this…'),
        ('say "', 100, "say…"),
        ("a path C:\\ and", 100, "a path C…"),
        ("The first sentence is long. And then", 100, "The first sentence is long. …"),
        ("The first sentence is long! And", 100, "The first sentence is long! …"),
        ("The first sentence is long. And then", 27, "The first sentence is…"),
        ("Short. And then a very long second one that", 100, "Short. And then a very long second one…"),
        ("Version 3.5 is the newest of them", 100, "Version 3.5 is the newest of…"),
        ("One is long enough here. Two is too. And", 100, "One is long enough here. Two is too. …"),
    ],
)
def test_clip(text: str, limit: int, expected: str) -> None:
    assert clip(text, shorter_than(limit)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- - - - - - word foo", "- - - - - - word…"),
        ('((((((( ,,,,,,, """"" one two', '((((((( ,,,,,,, """"" one…'),
        ('""""""""""abc', '""""""""""ab…'),
        ("((((((((((((日本語", "((((((((((((日本…"),
    ],
)
def test_opening_marks_do_not_hide_the_words_after_them(text: str, expected: str) -> None:
    assert clip(text, lambda _: True) == expected


def test_a_clip_asks_seldom() -> None:
    asked: list[str] = []

    def fits(text: str) -> bool:
        asked.append(text)
        return len(text) <= 2_000

    assert len(clip("word " * 5_000, fits)) == 2_000
    assert len(asked) <= 20


def test_another_ellipsis() -> None:
    assert clip("one two three", shorter_than(100), ellipsis="...") == "one two..."
    assert clip("one two three", shorter_than(100), ellipsis="") == "one two"


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("", 10, ""),
        ("one two three", 100, "one two…"),
        ("one two three", 4, "one…"),
        ("one two three", 3, "one"),
        ("one two three", 2, "…"),
        ("one two three", 0, "…"),
        ("x", 10, "…"),
        ('""""', 10, "…"),
    ],
)
def test_shorten_says_something_wherever_there_is_something_to_say(text: str, limit: int, expected: str) -> None:
    assert shorten(text, shorter_than(limit)) == expected


# repeats


def grams(times: int, gap: int = 0) -> list[str]:
    """An 8-gram that comes `times` times, with different pieces before and between."""
    gram = [f" word{index}" for index in range(GRAM)]
    pieces = [" before", " it"]
    for time in range(times):
        pieces += [*gram, *(f" gap{time}-{index}" for index in range(gap if time < times - 1 else 0))]
    return pieces


@pytest.mark.parametrize("gap", [0, 1, 5])
def test_the_third_time_is_cut_back_to_the_first(gap: int) -> None:
    assert repeats(grams(1, gap)) is None
    assert repeats(grams(2, gap)) is None
    cut = repeats(grams(3, gap))
    assert cut == 2 + GRAM
    assert grams(3, gap)[:cut] == grams(1)


def test_it_is_seen_at_the_very_piece_that_completes_it() -> None:
    pieces = grams(3)
    found = [repeats(pieces[:end]) for end in range(len(pieces) + 1)]
    assert found[:-1] == [None] * len(pieces)
    assert found[-1] == 2 + GRAM


def test_a_loop_shorter_than_the_gram() -> None:
    assert repeats(["a", "b"] * 5) is None
    assert repeats(["a", "b"] * 6) == GRAM
    assert repeats(["x"] * 9) is None
    assert repeats(["x"] * 10) == GRAM


def test_seven_pieces_of_eight_are_no_repetition() -> None:
    pieces = [piece for time in range(5) for piece in (*(f"w{index}" for index in range(GRAM - 1)), f"other{time}")]
    assert repeats(pieces) is None


def test_blanks_are_no_repetition() -> None:
    assert repeats([" ", "\n"] * 20) is None
    assert repeats([]) is None
