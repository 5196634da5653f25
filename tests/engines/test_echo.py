import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from router_backend import engines
from router_backend.checkpoints.ladder import Candidate, Rung
from router_backend.engines.base import LocalModel
from router_backend.engines.echo import EchoModel
from router_backend.errors import CandidateError, ContextOverflow, EngineError
from router_backend.settings import load_settings
from router_backend.types import Chunk, GenerateRequest, SamplingParams

PROMPT = "one two three four five"


def request(prompt: str = PROMPT, *, limit: int = 100, stop: tuple[str, ...] = (), prefix: str = "") -> GenerateRequest:
    return GenerateRequest("r1", prompt, SamplingParams(max_new_tokens=limit, stop=stop), prefix=prefix)


def never() -> bool:
    return False


def run(model: EchoModel, asked: GenerateRequest, cancelled: Callable[[], bool] = never) -> tuple[str, Chunk]:
    *pieces, last = model.generate(asked, cancelled)
    assert all(piece.finish_reason is None for piece in pieces)
    assert last.text == ""
    assert last.usage.completion_tokens <= asked.sampling.max_new_tokens
    return "".join(piece.text for piece in pieces), last


def says(text: str) -> EchoModel:
    return EchoModel(script=lambda _: text)


def test_it_is_a_local_model() -> None:
    model: LocalModel = EchoModel()
    assert model.info.engine == "echo"


def test_it_says_its_prompt_and_counts() -> None:
    text, last = run(EchoModel(), request())
    assert text == PROMPT
    assert last.finish_reason == "stop"
    assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.total_tokens) == (5, 5, 10)
    assert last.timings.forward_passes == 5
    assert last.timings.decode_seconds >= 0


def test_it_says_its_script() -> None:
    model = EchoModel(script=lambda asked: f"{asked.prompt}!{asked.prefix}")
    assert run(model, request("hi", prefix="there"))[0] == "hi!there"


@pytest.mark.parametrize("text", [PROMPT, "", "  a  b ", '{"a": ["b-c", 1.5]}', "日本 😀\n\tx", "a\u2028b", "___"])
def test_tokens_are_the_text_cut_up(text: str) -> None:
    model = EchoModel()
    assert "".join(model.tokenize(text)) == text
    assert model.count_tokens(text) == len(model.tokenize(text))
    assert run(says(text), request())[0] == text


@pytest.mark.parametrize("limit", [1, 2, 4])
def test_the_limit_ends_it(limit: int) -> None:
    text, last = run(EchoModel(), request(limit=limit))
    assert text.split() == PROMPT.split()[:limit]
    assert last.finish_reason == "length"
    assert last.usage.completion_tokens == limit


def test_an_answer_that_just_fits_ends_by_itself() -> None:
    text, last = run(EchoModel(), request(limit=5))
    assert text == PROMPT
    assert last.finish_reason == "stop"


@pytest.mark.parametrize(
    ("stop", "expected", "tokens"),
    [
        ((" three",), "one two", 3),
        (("three",), "one two ", 4),
        (("four", " two"), "one", 2),
        (("o",), "", 1),
        (("six",), PROMPT, 5),
        ((), PROMPT, 5),
    ],
)
def test_stop_texts_end_it_and_are_no_part_of_it(stop: tuple[str, ...], expected: str, tokens: int) -> None:
    text, last = run(EchoModel(), request(stop=stop))
    assert text == expected
    assert last.finish_reason == "stop"
    assert last.usage.completion_tokens == tokens


def test_a_stop_behind_the_limit_is_never_reached() -> None:
    text, last = run(EchoModel(), request(limit=2, stop=(" five",)))
    assert (text, last.finish_reason) == ("one two", "length")
    text, last = run(EchoModel(), request(limit=2, stop=(" three",)))
    assert (text, last.finish_reason) == ("one two", "length")


def test_cancelled_before_it_begins() -> None:
    text, last = run(EchoModel(), request(), lambda: True)
    assert (text, last.finish_reason, last.usage.completion_tokens) == ("", "cancelled", 0)


def test_cancel_is_asked_at_every_token() -> None:
    answers: Iterator[bool] = iter([False, False, True])
    text, last = run(EchoModel(), request(), lambda: next(answers))
    assert (text, last.finish_reason) == ("one two", "cancelled")
    assert last.usage.completion_tokens == 2


def test_a_fault_ends_that_request_alone() -> None:
    model = EchoModel(fail_after=2)
    pieces: list[str] = []
    with pytest.raises(EngineError):
        pieces.extend(chunk.text for chunk in model.generate(request(), never))
    model.fail_after = None
    assert run(model, request())[0] == PROMPT
    assert not model.active


@pytest.mark.parametrize(("after", "said"), [(0, []), (1, ["one"]), (4, ["one", " two", " three", " four"])])
def test_a_fault_comes_after_so_many_tokens(after: int, said: list[str]) -> None:
    stream = EchoModel(fail_after=after).generate(request(), never)
    assert [next(stream).text for _ in said] == said
    with pytest.raises(EngineError):
        next(stream)


def test_a_fault_behind_the_end_never_comes() -> None:
    assert run(EchoModel(fail_after=5), request())[1].finish_reason == "stop"
    assert run(EchoModel(fail_after=3), request(limit=3))[1].finish_reason == "length"


def test_a_slot_is_taken_while_a_request_runs() -> None:
    model = EchoModel()
    one, two = model.generate(request(), never, 1), model.generate(request(), never, 2)
    assert model.active == set()
    next(one)
    assert model.active == {1}
    next(two)
    assert model.active == {1, 2}
    list(one)
    assert model.active == {2}
    list(two)
    assert model.active == set()


def test_closing_the_iterator_frees_the_slot() -> None:
    model = EchoModel()
    stream = model.generate(request(), never, 3)
    next(stream)
    assert model.active == {3}
    stream.close()  # type: ignore[attr-defined] # it is a generator
    assert model.active == set()


def test_the_context_holds_prompt_prefix_and_answer() -> None:
    model = EchoModel()
    model.info = replace(model.info, context_length=20)
    assert run(model, request(limit=15))[0] == PROMPT
    assert run(model, request(limit=13, prefix="a b"))[0] == PROMPT
    for asked in (request(limit=16), request(limit=14, prefix="a b")):
        with pytest.raises(ContextOverflow) as caught:
            list(model.generate(asked, never))
        assert caught.value.param == "prompt"
        assert "20" in caught.value.message
        assert str(asked.sampling.max_new_tokens) in caught.value.message
        assert not model.active


def test_it_remembers_what_it_was_asked() -> None:
    model = EchoModel()
    asked = [request("a"), request("b")]
    for each in asked:
        run(model, each)
    assert model.seen == asked


def test_a_pace() -> None:
    start = time.monotonic()
    _, last = run(EchoModel(seconds_per_token=0.01), request())
    assert time.monotonic() - start >= 0.05
    assert last.timings.decode_seconds >= 0.05


def test_closed() -> None:
    model = EchoModel()
    assert not model.closed
    model.close()
    assert model.closed


def test_models_do_not_share_state() -> None:
    run(EchoModel(), request())
    assert EchoModel().seen == []
    assert EchoModel().active == set()


# By its name


def test_it_is_loaded_by_name() -> None:
    settings = load_settings(engine="echo", slots=2, context_length=512)
    model = engines.load(Rung(Candidate("echo", "echo"), "native"), settings, Path("echo"))
    assert isinstance(model, EchoModel)
    info = model.info
    assert (info.model, info.strategy, info.engine, info.context_length, info.slots) == (
        "echo",
        "native",
        "echo",
        512,
        2,
    )


def test_an_engine_that_is_not_there_is_the_candidates_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    rung = Rung(Candidate("echo", "echo"), "native")
    assert engines.missing("echo") is None
    monkeypatch.setitem(engines.PACKAGES, "echo", "no_such_package_of_anybody")
    with pytest.raises(CandidateError, match="echo needs no_such_package_of_anybody"):
        engines.load(rung, load_settings(), Path("echo"))
    monkeypatch.delitem(engines.ENGINES, "echo")
    with pytest.raises(CandidateError, match="echo is not part of this version"):
        engines.load(rung, load_settings(), Path("echo"))
