"""`POST /v1/decisions` and `POST /v1/systemone`: questions answered as probabilities, without decoding."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from fastapi import Request
from fastapi.responses import Response

from unmask.decisions.answers import Decisions
from unmask.decisions.asking import DecisionRequests
from unmask.decisions.canvases import RowLimits
from unmask.decisions.questions import DecisionQuestion, QuestionAnswer, choice, predicate, score
from unmask.engine.text_stream import StopCriteria
from unmask.errors import ConfigError, PromptError
from unmask.server.decision_models import (
    ChoiceAnswer,
    DecisionFields,
    DecisionMethod,
    DecisionReply,
    DecisionRequest,
    DecisionUsage,
    LegendAnswer,
    LevelShare,
    NoulAnswer,
    OptionAnswer,
    PredicateAnswer,
    QuestionFields,
    ScoreAnswer,
    SystemOneQuestion,
    SystemOneReply,
    SystemOneRequest,
    ValueShare,
    content_text,
    parts_text,
)
from unmask.server.errors import library_error
from unmask.server.openapi import Api
from unmask.server.reply_models import ReplyModel, ReplyResponse
from unmask.server.request_parsing import parse_body, read_json
from unmask.server.request_planner import GenerationPlan
from unmask.server.response_models import InputDetails, OutputDetails

if TYPE_CHECKING:
    from unmask.server.service import Service

MAX_ROWS = 1024
"""Maximum number of canvases of one request; they are decoded in waves."""
Body = TypeVar("Body", bound=DecisionFields)
Questions = tuple[str, list[DecisionQuestion]]
"""A text, and the questions about it."""


def add_decision_routes(app: Api, service: Service) -> None:
    """Add both routes to an app."""

    async def answer(
        request: Request,
        model: type[Body],
        read: Callable[[Body], Questions],
        make: Callable[[Body, str, Decisions, DecisionMethod], ReplyModel],
    ) -> Response:
        raw = await read_json(request, service.settings.limits)
        arrived_s = time.monotonic()
        body, _ = parse_body(model, raw, takes_knobs=False)
        name = service.check_model(body.model)
        service.check_open()
        timeout_s = service.timeout_s(body.timeout_s)
        plan = partial(plan_decisions, service, body, partial(read, body))
        asked = await service.planning.run(plan, timeout_s, arrived_s)
        request_id = f"dec_{secrets.token_hex(12)}"
        plans = reading_plans(asked)
        generation = service.submit(
            request, plans, timeout_s, request_id, body.user, arrived_s, in_waves=True
        )
        await service.wait(request, generation)
        readings = [each.reading for each in generation.answers if each.reading is not None]
        has_new_weights = any(each.weights_version for each in generation.answers)
        calibration = None if has_new_weights else service.settings.calibration
        decisions = asked.decisions(readings, calibration)
        options = body.options
        method = DecisionMethod(
            independent=options.independent,
            orders=options.orders,
            layout=options.layout,
            estimator=options.estimator,
            temperature=1.0 if calibration is None else calibration.temperature,
        )
        return ReplyResponse(make(body, name, decisions, method))

    async def decide(request: Request) -> Response:
        return await answer(request, DecisionRequest, asked_of, decision_reply)

    async def system_one(request: Request) -> Response:
        return await answer(request, SystemOneRequest, system_asked_of, system_reply)

    app.add_decoding_route(
        "/v1/decisions",
        decide,
        summary="Answer questions about an input with probabilities (OpenAI's Decisions).",
        body=DecisionRequest,
        reply=DecisionReply,
    )
    app.add_decoding_route(
        "/v1/systemone",
        system_one,
        summary="Answer questions about an input with probabilities (System One's form).",
        body=SystemOneRequest,
        reply=SystemOneReply,
    )


def plan_decisions(
    service: Service, body: DecisionFields, read: Callable[[], Questions]
) -> DecisionRequests:
    """Return the canvases to read for a body. Raises ApiError."""
    try:
        text, questions = read()
        limits = RowLimits(service.planner.max_length, MAX_ROWS)
        return DecisionRequests.about(service.llm.requests, text, questions, body.options, limits)
    except (ConfigError, PromptError) as error:
        raise library_error(error, "questions") from None


def reading_plans(asked: DecisionRequests) -> list[GenerationPlan]:
    """Return a plan for each canvas, of which the reading is kept."""
    return [
        GenerationPlan(
            index=index,
            prompt=index,
            request=request,
            num_prompt=int(request.canvas.fixed.sum()),
            ends=StopCriteria(frozenset()),
            start=0,
            keeps_reading=True,
        )
        for index, request in enumerate(asked.requests)
    ]


def asked_of(body: DecisionRequest) -> Questions:
    """Return the input and the questions of a body. Raises ConfigError."""
    return body.text(), [_question(each) for each in body.questions]


def _question(fields: QuestionFields) -> DecisionQuestion:
    instructions, name = parts_text(fields.instructions), fields.name
    if fields.choices is not None:
        pairs = [(each.value, each.description) for each in fields.choices]
        return choice(instructions, pairs, name=name)
    if fields.levels is not None:
        levels = [(each.label, each.description) for each in fields.levels]
        return score(instructions, levels, name=name)
    return predicate(instructions, name=name)


def system_asked_of(body: SystemOneRequest) -> Questions:
    """Return the state and the questions of a body. Raises ConfigError."""
    questions = [_system_question(name, each) for name, each in body.questions.items()]
    return content_text(body.state), questions


def _system_question(name: str, fields: SystemOneQuestion) -> DecisionQuestion:
    instructions = content_text(fields.instructions) or name
    criteria = fields.criteria
    if fields.type == "score":
        assert isinstance(criteria, list), "checked by the model"
        return score(instructions, [content_text(each) for each in criteria], name=name)
    options = criteria if isinstance(criteria, dict) else {}
    texts = {key: content_text(value) or None for key, value in options.items()}
    if fields.type == "choice":
        return choice(instructions, texts, name=name)
    true, false = texts.get("true"), texts.get("false")
    return predicate(instructions, if_true=true, if_false=false, name=name)


def decision_reply(
    body: DecisionRequest, name: str, decisions: Decisions, method: DecisionMethod
) -> DecisionReply:
    """Return the reply of `/v1/decisions`."""
    answers = [_answer(each) for each in decisions.answers]
    return DecisionReply(answers=answers, model=name, usage=usage_of(decisions), unmask=method)


def _answer(answer: QuestionAnswer) -> PredicateAnswer | ChoiceAnswer | ScoreAnswer:
    question, mass = answer.question, answer.label_mass
    pairs = list(zip(question.values, answer.probabilities, strict=True))
    if question.kind == "predicate":
        share = dict(pairs)[True]
        return PredicateAnswer(
            type="predicate", name=question.name, probability=share, label_mass=mass
        )
    if question.kind == "choice":
        return ChoiceAnswer(
            type="choice",
            name=question.name,
            choice=answer.value,
            confidence=answer.confidence,
            probabilities=[ValueShare(value=value, probability=share) for value, share in pairs],
            label_mass=mass,
        )
    return ScoreAnswer(
        type="score",
        name=question.name,
        score=answer.score,
        confidence=answer.confidence,
        probabilities=[
            LevelShare(label=str(value), value=at, probability=share)
            for at, (value, share) in enumerate(pairs)
        ],
        label_mass=mass,
    )


def system_reply(
    body: SystemOneRequest, name: str, decisions: Decisions, method: DecisionMethod
) -> SystemOneReply:
    """Return the reply of `/v1/systemone`."""
    answers = {
        key: _system_answer(fields, answer)
        for (key, fields), answer in zip(body.questions.items(), decisions.answers, strict=True)
    }
    return SystemOneReply(model=name, answers=answers, usage=usage_of(decisions), unmask=method)


def _system_answer(
    fields: SystemOneQuestion, answer: QuestionAnswer
) -> NoulAnswer | OptionAnswer | LegendAnswer:
    shares, mass = answer.probabilities, answer.label_mass
    if fields.type == "noul":
        return NoulAnswer(type="noul", noul=shares[0], label_mass=mass)
    if fields.type == "choice":
        return OptionAnswer(
            type="choice",
            choice=str(answer.value),
            confidence=answer.confidence,
            probabilities={
                str(value): share
                for value, share in zip(answer.question.values, shares, strict=True)
            },
            label_mass=mass,
        )
    assert isinstance(fields.criteria, list), "checked by the model"
    return LegendAnswer(
        type="score",
        score=answer.score,
        legend={str(at): level for at, level in enumerate(fields.criteria)},
        confidence=answer.confidence,
        probabilities={str(at): share for at, share in enumerate(shares)},
        label_mass=mass,
    )


def usage_of(decisions: Decisions) -> DecisionUsage:
    """Return the usage of a request; no canvas is cached."""
    count = decisions.num_input_tokens
    return DecisionUsage(
        input_tokens=count,
        input_tokens_details=InputDetails(cached_tokens=0, cache_write_tokens=0),
        output_tokens=0,
        output_tokens_details=OutputDetails(reasoning_tokens=0),
        total_tokens=count,
        num_rows=decisions.num_rows,
    )
