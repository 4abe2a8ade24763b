"""Every error as `application/problem+json` (RFC 9457), those of the framework too."""

import json
import secrets
from collections.abc import Mapping
from typing import Any, cast

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from optserve.wire import problems
from optserve.wire.problems import MEDIA_TYPE, ProblemType
from optserve_server import logs, metrics
from optserve_server.registry.database import UNREACHABLE, reason
from optserve_server.registry.errors import RegistryError
from optserve_server.sessions.errors import SessionError

log = structlog.get_logger(__name__)

_MAX_ERRORS = 20  # of one request that a reply tells of

_RETRY_AFTER_SECONDS = "5"
_MOST_CHARACTERS = 2000  # of each text in a reply

SCHEMA_NAME = "Problem"
SCHEMA: dict[str, Any] = {
    "title": SCHEMA_NAME,
    "description": "What went wrong, and how to mend it (RFC 9457). Some types have further members.",
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "additionalProperties": True,
    "properties": {
        "type": {"type": "string", "description": "Stable: `urn:optserve:problem:…`", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What is wrong here, and how to mend it."},
        "errors": {
            "type": "array",
            "description": "Of `request-invalid`: each field that is wrong.",
            "items": {
                "type": "object",
                "required": ["detail"],
                "properties": {
                    "detail": {"type": "string"},
                    "pointer": {"type": "string", "description": "JSON pointer into the body"},
                    "parameter": {"type": "string", "description": "Name of a query, path or header parameter"},
                },
            },
        },
        "next_step": {"type": "integer", "description": "Of `step-conflict`: the step to send."},
        "parameter": {"type": "string", "description": "Of `gradients-invalid`: the parameter at fault."},
        "index": {
            "type": "array",
            "items": {"type": "integer"},
            "description": "Of `gradients-invalid`: the element of that parameter.",
        },
        "bytes_needed": {"type": "integer", "description": "Of `state-too-large`."},
        "bytes_free": {"type": "integer", "description": "Of `state-too-large`."},
        "error_id": {"type": "string", "description": "Of `internal-error`: find it in the server's log."},
        "checks": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "Of `/readyz`: what was looked at, and how it is.",
        },
        "request_id": {"type": "string", "description": "Of every 5xx: the reply's `X-Request-Id`, for the log too."},
    },
}

_BY_STATUS = {
    400: problems.MALFORMED_BODY,
    404: problems.NOT_FOUND,
    405: problems.METHOD_NOT_ALLOWED,
    413: problems.BODY_TOO_LARGE,
    415: problems.UNSUPPORTED_MEDIA_TYPE,
}


_OF_EVERY_ROUTE = (
    problems.REQUEST_INVALID,
    problems.INTERNAL,
    problems.DRAINING,
    problems.DATABASE_UNAVAILABLE,
)


class Problem(HTTPException):
    """A problem that the API itself finds; the rooms below raise their own errors.

    It is the framework's exception, the only one that the framework lets through while it reads a body.
    """

    def __init__(
        self, problem: ProblemType, detail: str, headers: Mapping[str, str] | None = None, **fields: Any
    ) -> None:
        super().__init__(problem.status, detail, headers)
        self.problem = problem
        self.fields = fields


def response(problem: ProblemType, detail: str, headers: Mapping[str, str] | None = None, **fields: Any) -> Response:
    """The reply that tells a client of `problem`."""
    metrics.PROBLEMS.labels(problem.slug).inc()
    told = {name: _cut(value) for name, value in fields.items()}
    body = {"type": problem.urn, "title": problem.title, "status": problem.status, "detail": _cut(detail), **told}
    if problem.status >= 500:
        body |= logs.REQUEST.get()
    return Response(json.dumps(body), problem.status, headers, MEDIA_TYPE)


def _cut(value: Any) -> Any:
    """What a reply repeats of a request, cut where it is very long: a refusal is no echo."""
    if isinstance(value, list):
        return [_cut(one) for one in value]
    if isinstance(value, dict):
        return {name: _cut(one) for name, one in value.items()}
    return value[:_MOST_CHARACTERS] + "…" if isinstance(value, str) and len(value) > _MOST_CHARACTERS else value


def responses(*types: ProblemType) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI `responses` of a route that may answer with these problems (and with those that every route may)."""
    by_status: dict[int, list[ProblemType]] = {}
    for problem in (*types, *_OF_EVERY_ROUTE):
        known = by_status.setdefault(problem.status, [])
        if problem not in known:
            known.append(problem)
    content = {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{SCHEMA_NAME}"}}}
    return {
        status: {"description": "; ".join(f"`{one.slug}`: {one.title}" for one in found), "content": content}
        for status, found in sorted(by_status.items())
    }


def install(app: FastAPI) -> None:
    """Let `app` answer every error with a problem."""
    for away in UNREACHABLE:
        app.add_exception_handler(away, _database_unavailable)
    for known in (Problem, SessionError, RegistryError):
        app.add_exception_handler(known, _known)
    app.add_exception_handler(RequestValidationError, _request_invalid)
    app.add_exception_handler(HTTPException, _framework)


async def _known(request: Request, error: Exception) -> Response:
    known = cast(Problem | SessionError | RegistryError, error)
    if isinstance(known, Problem):
        return response(known.problem, known.detail, known.headers, **known.fields)
    return response(known.problem, str(known), None, **known.fields)


async def _request_invalid(request: Request, error: Exception) -> Response:
    found = cast(RequestValidationError, error).errors()[:_MAX_ERRORS]
    if found and found[0]["type"] == "json_invalid":
        reason = found[0].get("ctx", {}).get("error", "")
        return response(problems.MALFORMED_BODY, f"The body is not JSON: {reason} at character {found[0]['loc'][-1]}.")
    errors = [_field(one["loc"], one["msg"]) for one in found]
    details = [f"{one.get('pointer') or one.get('parameter') or 'the request'}: {one['detail']}" for one in errors]
    return response(problems.REQUEST_INVALID, "; ".join(details), errors=errors)


def _field(location: tuple[str | int, ...], message: str) -> dict[str, str]:
    place, *path = location
    if place != "body":
        return {"parameter": ".".join(map(str, path)), "detail": message}
    return {"pointer": pointer(*path), "detail": message}


def pointer(*path: str | int) -> str:
    """The JSON pointer (RFC 6901) to a place in the body."""
    steps = [str(step).replace("~", "~0").replace("/", "~1") for step in path]
    return "#" + "".join("/" + step for step in steps)


async def _framework(request: Request, error: Exception) -> Response:
    raised = cast(HTTPException, error)
    problem = _BY_STATUS.get(raised.status_code, problems.INTERNAL)
    detail, headers = str(raised.detail), raised.headers
    if problem is problems.NOT_FOUND:
        detail = f"There is nothing at {request.url.path}; /docs lists every address."
    elif problem is problems.METHOD_NOT_ALLOWED:
        allowed = ", ".join(_methods(request))
        headers = {"Allow": allowed}
        detail = f"{request.url.path} does not take {request.method}, but {allowed}."
    return response(problem, detail, headers)


def _methods(request: Request) -> list[str]:
    # The framework names the methods of the first route only, and each method of a path is a route here.
    routes = request.app.router.routes
    return [
        method
        for method in ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    ]


async def _database_unavailable(request: Request, error: Exception) -> Response:
    log.warning("the database is away", reason=reason(error))
    detail = "The server's database cannot be reached now. Try again in some seconds. Steps go on without it."
    return response(problems.DATABASE_UNAVAILABLE, detail, {"Retry-After": _RETRY_AFTER_SECONDS})


def unexpected(scope: Scope, error: Exception) -> Response:
    """The reply to a request that a fault of the server has ended; the log has the fault."""
    error_id = secrets.token_hex(8)
    log.error("unexpected error", error_id=error_id, method=scope["method"], path=scope["path"], exc_info=error)
    detail = f"This is a fault of the server, not of the request. Its log has the details under {error_id}."
    return response(problems.INTERNAL, detail, error_id=error_id)
