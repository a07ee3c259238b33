"""The HTTP server's app: OpenAI's API, sessions, and what operators need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Path
from fastapi import Request as HttpRequest
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPBearer

import rmat
from rmat.data.tokenizer import Tokenizer
from rmat.engine.engine import Engine
from rmat.model import LanguageModel
from rmat.model.state import state_bytes
from rmat.serving import chat, completions, editors, openai_types, session_routes, tokens
from rmat.serving.auth import Keys
from rmat.serving.bodies import Bodies
from rmat.serving.errors import ApiError, install_handlers
from rmat.serving.limits import Guard, Limits
from rmat.serving.metrics import CONTENT_TYPE, Metrics
from rmat.serving.openai_types import ERRORS, Health, Model, ModelLimits, ModelList
from rmat.serving.page import page_routes
from rmat.serving.service import Service, service_of
from rmat.sessions.store import SessionStore
from rmat.storage import weights_fingerprint

router = APIRouter(responses=ERRORS)


def create_app(
    engine: Engine,
    store_of: Callable[[str], SessionStore],
    *,
    model: LanguageModel,
    tokenizer: Tokenizer,
    model_name: str,
    keys: Keys | None = None,
    limits: Limits | None = None,
    hosts: Sequence[str] | None = None,
    cors_origins: Sequence[str] = (),
) -> FastAPI:
    """The app of one model.

    Args:
        engine: writes with `model` and `tokenizer`. Whoever made it stops it.
        store_of: the sessions of an owner: the name that `Keys.owner` gives for an API key, or "public".
        model_name: what clients call the model.
        keys: who may ask; None for everyone.
        limits: bounds on requests.
        hosts: accepted values of the Host header, without port; None for any.
        cors_origins: web pages of other origins that may ask.

    `app.state.service.stopping` is an event that makes it refuse new requests.
    """
    limits = limits or Limits()
    service = Service(
        engine=engine,
        model=model,
        tokenizer=tokenizer,
        store_of=store_of,
        limits=limits,
        model_name=model_name,
        fingerprint=weights_fingerprint(model),
    )
    app = FastAPI(title="rmat", version=rmat.__version__, docs_url=None, redoc_url=None)
    app.state.service = service
    parts = (completions, chat, editors, tokens, session_routes)
    field_names = openai_types.FIELD_NAMES.union(
        editors.FIELD_NAMES, session_routes.FIELD_NAMES, tokens.FIELD_NAMES
    )
    app.state.bodies = Bodies(limits, field_names)
    app.state.metrics = metrics = Metrics(engine.stats)
    with_key = [Depends(HTTPBearer(auto_error=False))] if keys else []
    for routes in (*(part.router for part in parts), router):
        app.include_router(routes, dependencies=with_key)
    app.include_router(open_router)
    app.include_router(page_routes())
    install_handlers(app, field_names)
    app.add_middleware(
        Guard,
        limits=limits,
        keys=keys or Keys(),
        metrics=metrics,
        hosts=None if hosts is None else tuple(hosts),
        stopping=service.stopping,
    )
    if cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],  # OpenAI's client has a dozen of its own (x-stainless-...)
            expose_headers=["x-request-id", "retry-after"],
        )
    return app


@router.get("/v1/models")
async def models(request: HttpRequest) -> ModelList:
    """The model."""
    return ModelList(data=[_model(service_of(request))])


@router.get("/v1/models/{model}")
async def model(model: Annotated[str, Path(max_length=256)], request: HttpRequest) -> Model:
    """The model, if it has this name."""
    service = service_of(request)
    service.check_model(model)
    return _model(service)


@router.post("/v1/embeddings", include_in_schema=False)
async def embeddings() -> None:
    """Refused, with what to do."""
    message = "this server makes no embeddings, its model writes text: ask the server of an embedding model"
    raise ApiError(404, message, code="not_supported")


@router.post("/v1/responses", include_in_schema=False)
async def responses() -> None:
    """Refused, with what to use."""
    message = (
        "this server has no Responses API: use /v1/chat/completions, and `session` to go on in a conversation"
    )
    raise ApiError(404, message, code="not_supported")


@router.get("/metrics", response_class=Response, responses={200: {"content": {CONTENT_TYPE: {}}}})
async def metrics(request: HttpRequest) -> Response:
    """Numbers for Prometheus."""
    return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE)


open_router = APIRouter()


@open_router.get(
    "/health",
    responses={200: {"model": Health}, 503: {"model": Health, "description": "no request is answered"}},
)
async def health(request: HttpRequest) -> Response:
    """Whether requests are answered; needs no API key."""
    service = service_of(request)
    if service.stopping.is_set():
        return JSONResponse({"status": "stopping"}, 503)
    return JSONResponse({"status": "ok"}) if service.engine.alive else JSONResponse({"status": "failed"}, 503)


def _model(service: Service) -> Model:
    limits = ModelLimits(
        max_tokens=service.limits.max_new_tokens, max_prompt_tokens=service.limits.max_prompt_tokens
    )
    n_bytes = state_bytes(service.model.config, service.model.embedding.weight.dtype)
    return Model(id=service.model_name, created=service.started, state_bytes=n_bytes, limits=limits)
