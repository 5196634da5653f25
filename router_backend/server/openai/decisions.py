"""`/v1/decisions`: questions about an input, answered by the checkpoint's own probabilities."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Discriminator, Field, StrictBool, Tag

from router_backend.decisions import questions
from router_backend.decisions.questions import Value
from router_backend.errors import InvalidRequest
from router_backend.server.body import ERRORS, Body, NonEmptyText, Prompt, Text, asked, post, unless
from router_backend.server.disconnect import unless_gone
from router_backend.server.middleware import access_log
from router_backend.server.openai import work
from router_backend.server.openai.bodies import OneOr, RefusalPart, type_of
from router_backend.service.caller import caller
from router_backend.service.service import GenerationService
from router_backend.settings import Settings
from router_backend.types import Answer, Call, GenerateRequest, Odds, Question, Role, SamplingParams, Turn, is_blank

MOST_QUESTIONS, MOST_CHOICES, MOST_LEVELS, MOST_ITEMS = 400, 255, 255, 256
_CHARACTERS_A_TOKEN = 3
_ALIKE = "must differ from each other"


class TextPart(Body):
    type: Literal["input_text", "output_text"]
    text: Text
    prompt_cache_breakpoint: dict[str, Any] | None = None


class JsonPart(Body):
    type: Literal["input_json"]
    data: dict[str, Any] | list[dict[str, Any]]

    @property
    def text(self) -> str:
        try:
            return json.dumps(self.data, ensure_ascii=False)
        except RecursionError:
            raise InvalidRequest("the JSON nests too deep", param="input") from None


Part = Annotated[TextPart | JsonPart | RefusalPart, Field(discriminator="type")]
_Parts = Annotated[list[Part], Field(min_length=1, max_length=256)]
Content: TypeAlias = OneOr[Text, _Parts]


class MessageItem(Body):
    type: Literal["message"] = "message"
    role: Literal["user", "developer", "system", "assistant"]
    content: Content
    phase: Literal["commentary", "final_answer"] | None = None


class CallItem(Body):
    """A call of a tool that was made; `namespace` and `status` are taken and not read."""

    type: Literal["function_call", "custom_tool_call"]
    call_id: Text
    name: Text
    arguments: Text = ""
    input: Text = ""
    id: Text | None = None
    namespace: Text | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class OutputItem(Body):
    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: Text
    output: Content
    id: Text | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


def _item(value: Any) -> str:  # noqa: ANN401 - any JSON
    kind = str(type_of(value))
    return "(output)" if kind.endswith("_output") else "(call)" if kind.endswith("_call") else "(message)"


Item = Annotated[
    Annotated[MessageItem, Tag("(message)")]
    | Annotated[CallItem, Tag("(call)")]
    | Annotated[OutputItem, Tag("(output)")],
    Discriminator(_item),
]
Name = Annotated[Text | None, Field(description="Comes back with the answer.")]
Instructions: TypeAlias = OneOr[Prompt, _Parts]


class QuestionBody(Body):
    instructions: Instructions
    name: Name = None


class PredicateBody(QuestionBody):
    """How likely is it that a statement about the input is true?"""

    type: Literal["predicate"]

    def question(self, settings: Settings, *, routable: bool) -> Question:
        return questions.states(_said(self.instructions))

    def answer(self, odds: Odds) -> dict[str, Any]:
        return {"probability": odds.probabilities[0]}


class ChoiceBody(Body):
    value: Annotated[
        Annotated[StrictBool, Tag("(truth)")] | Annotated[NonEmptyText, Tag("(one)")],
        Discriminator(lambda value: "(truth)" if isinstance(value, bool) else "(one)"),
        Field(description="A text and a truth value are never the same."),
    ]
    description: Text | None = None


class ChoicesBody(QuestionBody):
    """Which of these is it?"""

    type: Literal["choice"]
    choices: Annotated[
        list[ChoiceBody],
        Field(min_length=2, max_length=MOST_CHOICES),
        unless(lambda choices, _: len({each.value for each in choices}) < len(choices), _ALIKE),
    ]

    @property
    def described(self) -> dict[Value, str | None]:
        return {each.value: each.description for each in self.choices}

    def question(self, settings: Settings, *, routable: bool) -> Question:
        tools = settings.tools if routable else ()
        return questions.chooses(_said(self.instructions), self.described, tools, settings.max_new_tokens)

    def answer(self, odds: Odds) -> dict[str, Any]:
        worth = dict(zip(questions.ordered(self.described), odds.probabilities, strict=True))
        likely = max(self.choices, key=lambda each: worth[each.value]).value
        shares = [{"value": each.value, "probability": worth[each.value]} for each in self.choices]
        return {"choice": likely, "confidence": worth[likely], "probabilities": shares}


class LevelBody(Body):
    label: NonEmptyText
    description: Text | None = None


class ScoreBody(QuestionBody):
    """Which of these levels, from the lowest to the highest, does the input reach?"""

    type: Literal["score"]
    levels: Annotated[
        list[LevelBody],
        Field(min_length=2, max_length=MOST_LEVELS),
        unless(lambda levels, _: len({each.label for each in levels}) < len(levels), _ALIKE),
    ]

    def question(self, settings: Settings, *, routable: bool) -> Question:
        return questions.asks(
            _said(self.instructions), {each.label: each.description for each in self.levels}, ranked=True
        )

    def answer(self, odds: Odds) -> dict[str, Any]:
        shares = [
            {"label": level.label, "probability": share, "value": value}
            for value, (level, share) in enumerate(zip(self.levels, odds.probabilities, strict=True))
        ]
        score = sum(value * share for value, share in enumerate(odds.probabilities))
        return {"score": score, "confidence": max(odds.probabilities), "probabilities": shares}


class DecisionBody(Body):
    model: Annotated[str, Field(max_length=512)] | None = Field(
        None, description="The served model's id, or `router`. Default: whatever is served."
    )
    input: OneOr[Prompt, Annotated[list[Item], Field(min_length=1, max_length=MOST_ITEMS)]]
    questions: Annotated[
        list[Annotated[PredicateBody | ChoicesBody | ScoreBody, Field(discriminator="type")]],
        Field(min_length=1, max_length=MOST_QUESTIONS),
    ]
    # Taken and without effect: none of them changes an answer.
    prompt_cache_key: Text | None = None
    prompt_cache_options: dict[str, Any] | None = None
    safety_identifier: Text | None = None


class Decision(BaseModel):
    """`answers` are in the order of the questions; each has the type and the name of its question."""

    answers: list[dict[str, Any]]
    model: str
    usage: dict[str, Any]


def decisions_router(service: GenerationService) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["openai"])

    what = "Answer questions about an input with probabilities"

    @post(router, "/decisions", DecisionBody, Decision, what, {**ERRORS, 404: ERRORS[400]})
    async def decisions(request: Request) -> Response:
        def work_of(body: DecisionBody) -> GenerateRequest:
            work.check_model(body.model, service)
            return request_of(body, service.settings)

        body, asked_for = await asked(request, service, DecisionBody, work_of)
        answer = await unless_gone(request, service.answer(asked_for))
        access_log.note(request, answer.last, asked_for.prompt)
        return JSONResponse(content_of(body, answer))

    return router


def request_of(body: DecisionBody, settings: Settings) -> GenerateRequest:
    """By cheap checks alone. Raises InvalidRequest: an output without its call, or nothing that could be read."""
    turns = _turns(body.input)
    last = turns.pop() if turns[-1].role in ("user", "tool") else Turn("user", "")
    if all(is_blank(turn.content) and not turn.calls for turn in (*turns, last)):
        raise InvalidRequest("the input is blank", param="input")
    routable = last.role == "user" and not is_blank(last.content)
    asked_for = tuple(each.question(settings, routable=routable) for each in body.questions)
    # What the queue reckons with: a pass for each token of each answer.
    passes = sum(
        len(each.texts) * (1 + len(answer) // _CHARACTERS_A_TOKEN) for each in asked_for for answer in each.answers
    )
    return GenerateRequest(
        caller.get().request_id,
        last.content,
        SamplingParams(passes, temperature=0.0),
        "decision",
        history=tuple(turns),
        result_of=last.name if last.role == "tool" else None,
        questions=asked_for,
    )


def _turns(said: str | Sequence[MessageItem | CallItem | OutputItem]) -> list[Turn]:
    if isinstance(said, str):
        return [Turn("user", said)]
    names: dict[str, str] = {}
    turns: list[Turn] = []
    for item in said:
        if isinstance(item, MessageItem):
            role: Role = "system" if item.role == "developer" else item.role
            turns.append(Turn(role, _said(item.content)))
        elif isinstance(item, CallItem):
            names[item.call_id] = item.name
            turns.append(Turn("assistant", "", (Call(item.name, item.arguments or json.dumps(item.input)),)))
        elif item.call_id in names:
            turns.append(Turn("tool", _said(item.output), name=names[item.call_id]))
        else:
            raise InvalidRequest(f"there is no call {item.call_id!r} before its output", param="input")
    return turns


def _said(content: str | Sequence[TextPart | JsonPart | RefusalPart]) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


def content_of(body: DecisionBody, answer: Answer) -> dict[str, Any]:
    usage = answer.last.usage
    return {
        "answers": [
            {"type": question.type, "name": question.name, **question.answer(odds)}
            for question, odds in zip(body.questions, answer.last.odds, strict=True)
        ],
        "model": answer.info.model,
        "usage": {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.total_tokens,
        },
    }
