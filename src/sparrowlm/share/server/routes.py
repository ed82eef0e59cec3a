"""The routes, each in a few lines: ask, wait or stream, answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from fastapi import Request as HttpRequest
from fastapi.concurrency import run_in_threadpool

from sparrowlm.infer.engine import Request
from sparrowlm.share.server.answers import ChatRow, TextRow
from sparrowlm.share.server.asked import DEFAULTS, chat_prompt, completions_of, text_prompts
from sparrowlm.share.server.faults import ApiFault
from sparrowlm.share.server.metrics import CONTENT_TYPE_LATEST
from sparrowlm.share.server.requests import (
    MOST_LOGPROBS,
    MOST_SAMPLES,
    MOST_STOPS,
    ChatRequest,
    CompletionRequest,
    Settings,
)
from sparrowlm.share.server.responses import (
    About,
    ChatCompletion,
    Completion,
    Defaults,
    FaultBody,
    Health,
    Model,
    Models,
)
from sparrowlm.share.server.service import Served, Service
from sparrowlm.share.server.streaming import EventStream, while_there
from sparrowlm.share.server.writing import Answer, ChatAnswer, Row, TextAnswer

router = APIRouter(
    responses={
        "4XX": {"model": FaultBody, "description": "The request cannot be answered."},
        "5XX": {"model": FaultBody, "description": "The server cannot answer now."},
    }
)
EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"itemSchema": EVENT}}}
}
LEFT = 499
"""What nginx writes of a client that has left; nobody reads it."""


def service_of(request: HttpRequest) -> Service:
    """What the app was made of."""
    return request.app.state.service


Serving = Annotated[Service, Depends(service_of)]


@router.get("/health", responses={503: {"model": Health}})
async def health(service: Serving, response: Response) -> Health:
    """Whether requests are answered: 200, or 503 while the server stops or cannot go on."""
    status = "failed" if service.failed else "draining" if service.draining else "ok"
    response.status_code = 200 if status == "ok" else 503
    return Health(
        status=status, active=service.active, waiting=service.waiting, slots=service.slots
    )


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(service: Serving) -> Response:
    """Counters for Prometheus."""
    return Response(service.metrics.page(), headers={"Content-Type": CONTENT_TYPE_LATEST})


@router.get("/v1/models", response_model_exclude_unset=True)
async def models(service: Serving) -> Models:
    """The models here, the run itself first."""
    return Models(data=[told_of(model, service) for model in service.models.values()])


@router.get("/v1/models/{name}", response_model_exclude_unset=True)
async def model(name: str, service: Serving) -> Model:
    """One of them."""
    return told_of(named(service, name), service)


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    response_model_exclude_unset=True,
    responses=STREAM,
)
async def chat(body: ChatRequest, http: HttpRequest, service: Serving) -> Any:
    """Answer a conversation."""
    model = accepting(service, body)
    ids = await run_in_threadpool(chat_prompt, body, model)
    asked = completions_of(body, [ids], model, body.tops)
    tools, logprobs = bool(body.told_tools), body.tops is not None
    rows = [ChatRow(at, model.tokenizer, ids, tools, logprobs) for at in range(len(asked))]
    return await _answer(ChatAnswer, asked, rows, model, body, http, service)


@router.post(
    "/v1/completions",
    response_model=Completion,
    response_model_exclude_unset=True,
    responses=STREAM,
)
async def completions(body: CompletionRequest, http: HttpRequest, service: Serving) -> Any:
    """Continue a text, or several."""
    model = accepting(service, body)
    prompts = await run_in_threadpool(text_prompts, body, model)
    asked = completions_of(body, prompts, model, body.tops)
    echoes = [model.tokenizer.decode(one.prompt) if body.echo else "" for one in asked]
    logprobs = body.tops is not None
    rows = [TextRow(at, model.tokenizer, echo, logprobs) for at, echo in enumerate(echoes)]
    return await _answer(TextAnswer, asked, rows, model, body, http, service)


async def _answer(
    kind: type[Answer],
    asked: Sequence[Request],
    rows: Sequence[Row],
    model: Served,
    body: Settings,
    http: HttpRequest,
    service: Service,
) -> Any:
    """Submit, then stream or wait."""
    ticket = await service.open(model, asked)
    answer = kind(ticket, asked, rows, model, body.with_usage)
    if body.stream:
        return EventStream(answer.events(), ticket.close)
    try:
        whole = await while_there(http.receive, answer.whole())
    finally:
        ticket.close()
    return Response(status_code=LEFT) if whole is None else whole


def accepting(service: Service, body: Settings) -> Served:
    """The model that a request is for.

    Raises:
        ApiFault: 503 where the server stops, 404 where there is no such model.
    """
    if service.draining:
        retry = service.limits.retry_seconds
        raise ApiFault(503, "the server is stopping", code="draining", retry_after=retry)
    first = next(iter(service.models))
    return named(service, first if body.model is None else body.model)


def named(service: Service, name: str) -> Served:
    """A model by its name.

    Raises:
        ApiFault: there is none.
    """
    if name in service.models:
        return service.models[name]
    there = ", ".join(service.models)
    told = f"there is no model {name[:100]!r}; there is {there}"
    raise ApiFault(404, told, param="model", code="model_not_found")


def told_of(model: Served, service: Service) -> Model:
    """What `/v1/models` says of a model."""
    own = DEFAULTS.filters._asdict()
    about = About(
        kind="base" if model.chat is None else "chat",
        context=model.engine.context,
        vocab_size=model.engine.vocab_size,
        parameters=model.parameters,
        step=model.step,
        adapters=[one.name for one in service.models.values() if one.parent == model.name],
        defaults=Defaults(**own),
        max_stops=MOST_STOPS,
        max_top_logprobs=MOST_LOGPROBS,
        max_samples=MOST_SAMPLES,
    )
    return Model(
        id=model.name,
        created=service.created,
        parent=model.parent,
        max_model_len=model.engine.context,
        sparrow=about,
    )
