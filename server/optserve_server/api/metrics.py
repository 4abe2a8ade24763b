"""`GET /metrics`: what the server counts, for Prometheus."""

import asyncio

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from optserve_server import metrics
from optserve_server.api.authorisation import METRICS_PATH, RequiresAdmin
from optserve_server.api.dependencies import UsesStore
from optserve_server.api.health import UsesDatabaseWatch
from optserve_server.api.problems import responses

router = APIRouter(tags=["health"])


@router.get(
    METRICS_PATH,
    summary="Metrics for Prometheus",
    dependencies=[RequiresAdmin],
    response_class=Response,
    responses={
        200: {"description": "Prometheus' text format", "content": {"text/plain": {"schema": {"type": "string"}}}},
        **responses(),
    },
)
async def get_metrics(watch: UsesDatabaseWatch, store: UsesStore) -> Response:
    """Numbers about all sessions, requests, runs and workers, without names or ids.

    A server with API keys asks for one of scope `admin`, or for its setting `metrics_token` in a key's place.
    """
    await watch.update_metrics()
    metrics.SESSION_FILES.set(await asyncio.to_thread(store.directory.size))
    return Response(generate_latest(metrics.REGISTRY), media_type=CONTENT_TYPE_LATEST)
