"""Routes, gates and faults put together."""

from __future__ import annotations

import difflib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.routing import Route

from sparrowlm import __version__
from sparrowlm.share.server.faults import ApiFault
from sparrowlm.share.server.gates import Bounded, Hosted, Keyed, Rules, Watched
from sparrowlm.share.server.pages import page_router
from sparrowlm.share.server.requests import FIELDS, ChatRequest, CompletionRequest
from sparrowlm.share.server.routes import router
from sparrowlm.share.server.service import Service

_BODIES: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
}
_SHOWN = 5  # faults of one request that are told


def make_app(service: Service, rules: Rules) -> FastAPI:
    """The server as ASGI; its lifespan starts and stops the service."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.stop()

    # FastAPI's own pages of documentation load scripts from elsewhere; the schema is ours.
    app = FastAPI(
        title="Sparrow",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    pages = page_router()
    app.include_router(router)
    app.include_router(pages)
    app.add_exception_handler(ApiFault, _told)
    app.add_exception_handler(HTTPException, _of_http)
    app.add_exception_handler(RequestValidationError, _of_body)
    app.add_exception_handler(Exception, _unforeseen)
    # The last to be added is the first to be met.
    app.add_middleware(Bounded, limits=service.limits)
    app.add_middleware(Keyed, key=rules.key)
    if rules.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(rules.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Retry-After"],
        )
    app.add_middleware(Hosted, rules=rules)
    known = [*router.routes, *pages.routes]
    routes = [route.path for route in known if isinstance(route, Route)]
    app.add_middleware(Watched, done=_counted(service), routes=routes)
    return app


def _counted(service: Service) -> Callable[[str, int], None]:
    def done(route: str, status: int) -> None:
        service.metrics.requests.labels(route, str(status)).inc()

    return done


async def _told(_: Request, fault: Exception) -> JSONResponse:
    assert isinstance(fault, ApiFault), "registered for it"
    return JSONResponse(fault.body, fault.status, fault.headers)


async def _of_http(request: Request, fault: Exception) -> JSONResponse:
    """No such path or method, or a body that is no JSON."""
    assert isinstance(fault, HTTPException), "registered for it"
    known = {404: f"there is no {request.url.path[:200]} here", 405: "not with this method"}
    told = ApiFault(fault.status_code, known.get(fault.status_code, str(fault.detail)))
    return JSONResponse(told.body, told.status, {**(fault.headers or {}), **told.headers})


async def _of_body(request: Request, fault: Exception) -> JSONResponse:
    """A body with fields that are missing, unknown or out of range: each is named."""
    assert isinstance(fault, RequestValidationError), "registered for it"
    body = _BODIES.get(request.url.path, ChatRequest)
    found = fault.errors()
    told = [_fault_of_field(error, list(body.model_fields)) for error in found]
    distinct = list(dict.fromkeys(told))
    message = "; ".join(distinct[:_SHOWN])
    message += f"; and {len(distinct) - _SHOWN} more" if len(distinct) > _SHOWN else ""
    place = _field(found[0]) if found else ""
    answer = ApiFault(400, message, param=place or None, code="invalid_value")
    return JSONResponse(answer.body, answer.status)


async def _unforeseen(_: Request, fault: Exception) -> JSONResponse:
    """A mistake of ours, which the log tells whole and the client not at all."""
    told = ApiFault(500, "the server made a mistake; see its log", code="internal_error")
    return JSONResponse(told.body, told.status)


def _fault_of_field(error: dict[str, Any], known: Sequence[str]) -> str:
    """One of pydantic's faults in a sentence. Inputs are not repeated: they may be NaN, or huge."""
    field = _field(error)
    match error["type"]:
        case "extra_forbidden":
            name = str(error["loc"][-1])[:100]
            close = difflib.get_close_matches(name, known, n=1)
            return f"{field} is not known here" + (f"; did you mean {close[0]}?" if close else "")
        case "missing":
            return f"{field or 'the body'} is missing"
        case "json_invalid":
            return f"the body is no JSON, from character {error['loc'][-1]} on"
        case "value_error":
            return str(error["msg"]).removeprefix("Value error, ")
    told, field = str(error["msg"]), field or "the body"
    wished = told.removeprefix("Input should be ")
    return f"{field}: {told}" if wished == told else f"{field} should be {wished}"


def _field(error: dict[str, Any]) -> str:
    """`messages.0.role`, from where pydantic found a fault; its names of alternatives stay out."""
    # The first says that it is the body; of a body that cannot be read follows a place in it.
    place = () if error["type"] == "json_invalid" else error["loc"][1:]
    unknown = error["type"] == "extra_forbidden"
    parts = [
        str(part)[:100]
        for at, part in enumerate(place, 1)
        if isinstance(part, int) or part in FIELDS or (unknown and at == len(place))
    ]
    return ".".join(parts)
