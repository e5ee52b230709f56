"""All routes of a worker over one state, with what surrounds each of them."""

import asyncio

from fastapi import FastAPI
from starlette.responses import Response

from m3_worker.api.chat import chat_routes
from m3_worker.api.code import code_routes
from m3_worker.api.completions import completion_routes
from m3_worker.api.embeddings import embedding_routes
from m3_worker.api.errors import install_error_handlers, json_response
from m3_worker.api.experts import expert_routes
from m3_worker.api.incoming import RequestIds
from m3_worker.api.kv_events import kv_event_routes
from m3_worker.api.messages import message_routes
from m3_worker.api.models import model_routes
from m3_worker.api.openapi import openapi_routes
from m3_worker.api.responses import response_routes
from m3_worker.api.tokens import token_routes
from m3_worker.api.usage import RecordUsage, usage_routes
from m3_worker.metrics import CONTENT_TYPE, render_metrics
from m3_worker.serving import Phase, WorkerState

_ROUTES = (
    chat_routes,
    completion_routes,
    response_routes,
    message_routes,
    embedding_routes,
    code_routes,
    expert_routes,
    kv_event_routes,
    token_routes,
    usage_routes,
    model_routes,
    openapi_routes,
)


def build_app(state: WorkerState) -> FastAPI:
    """All routes over one state."""
    app = FastAPI(title="m3-worker", openapi_url=None, docs_url=None, redoc_url=None)
    install_error_handlers(app)
    for routes in _ROUTES:
        app.include_router(routes(state))

    @app.get("/health")
    async def health() -> Response:
        body = {"status": state.phase.value}
        if state.reason is not None:
            body["reason"] = state.reason
        return json_response(body, 200 if state.phase is Phase.READY else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        # The driver may take its time, and requests must not wait for it.
        gpus = [] if state.gpus is None else await asyncio.to_thread(state.gpus.read)
        return Response(render_metrics(state, gpus), media_type=CONTENT_TYPE)

    app.add_middleware(RecordUsage, records=state.usage_records)
    app.add_middleware(RequestIds)
    return app
