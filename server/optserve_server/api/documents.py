"""The OpenAPI of the routes that read and write more than JSON, and of the problems they all share."""

import json
import re
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from optserve.wire import (
    API_PREFIX,
    APPROXIMATE,
    HEADER_DURABILITY,
    HEADER_GUARD,
    HEADER_RESUMED,
    HEADER_SERVER_TIMING,
    HEADER_STEP,
    RELAXED,
    SYNCED,
    problems,
)
from optserve.wire.api_keys import CLIENT
from optserve.wire.gradients import JSON, OCTET_STREAM, SAFETENSORS
from optserve.wire.problems import ProblemType
from optserve_server.api.authorisation import METRICS_PATH, SCHEME
from optserve_server.api.links import add_links
from optserve_server.api.problems import SCHEMA, SCHEMA_NAME, responses

_NUMBERS = (
    "Every parameter flattened (row-major), one after another in declared order, without those in `skip`: "
    "little-endian numbers of the session's dtype."
)
_BINARY = {"type": "string", "format": "binary"}
_TENSORS = {**_BINARY, "description": "safetensors: a tensor for each parameter, of the session's dtype."}
_NESTED = {
    "type": "object",
    "description": "Nested lists of numbers by parameter name, in the parameters' shapes.",
    "additionalProperties": {"anyOf": [{"type": "number"}, {"type": "array", "items": {}}]},
}

_OF_BODIES = (
    problems.MALFORMED_BODY,
    problems.BODY_TOO_LARGE,
    problems.UNSUPPORTED_MEDIA_TYPE,
    problems.SERVER_BUSY,
)

TENANCY = "x-optserve-tenancy"
OWN, SHARED = "own", "shared"
_TENANCIES = {
    "sessions": OWN,
    "meta-training-runs": OWN,
    "optimizers": SHARED,
    "tasks": SHARED,
    "evaluations": SHARED,
    "api-keys": SHARED,
    "usage": OWN,
    "audit": SHARED,
    "metrics": SHARED,
}
"""Of each resource: whether its things belong to a key, and are not there for others; or are everybody's who may call.

Every operation of the document says it as `x-optserve-tenancy`."""

_QUOTA_HEADERS = {
    "Retry-After": {
        "description": "Seconds, where waiting helps; this limit is then passed again",
        "schema": {"type": "integer"},
    },
    "RateLimit": {
        "description": "Of a key with `requests_per_second`, on every reply: how many requests remain (`r`), and in "
        "how many seconds all do (`t`)",
        "schema": {"type": "string"},
        "example": '"requests";r=0;t=1',
    },
    "RateLimit-Policy": {
        "description": "How many requests (`q`) in how many seconds (`w`)",
        "schema": {"type": "string"},
        "example": '"requests";q=100;w=1',
    },
}


def path(name: str, description: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    """A path parameter."""
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": schema or {"type": "string"},
    }


def json_body(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON body by a schema made with `SCHEMAS`."""
    return {"required": True, "content": {JSON: {"schema": schema}}}


SCHEMAS = "#/components/schemas/{model}"
"""Where a schema's parts are in the document."""

SESSION_ID = path("session_id", "The session's `id`")


def _body(key: str, **members: Any) -> dict[str, Any]:
    schema = {
        "type": "object",
        "required": [key],
        "additionalProperties": False,
        "properties": {key: _NESTED, **members},
    }
    content = {
        OCTET_STREAM: {"schema": {**_BINARY, "description": _NUMBERS}},
        SAFETENSORS: {"schema": _TENSORS},
        JSON: {"schema": schema},
    }
    return {"required": True, "content": content}


_STEP_REPLY = {
    "description": "The updates g_t, in the form of the request",
    "headers": {
        HEADER_STEP: {"description": "The step taken", "schema": {"type": "integer"}},
        HEADER_SERVER_TIMING: {
            "description": "Milliseconds in the queue; of computation and in the journal, side by side",
            "schema": {"type": "string"},
        },
        HEADER_DURABILITY: {
            "description": "Whether the step was synced to the disk before the reply, or only written",
            "schema": {"type": "string", "enum": [SYNCED, RELAXED]},
        },
        HEADER_GUARD: {
            "description": "There where the update guard did something: what (`event`), why (`reason`), to how many "
            "tensors (`count`), of which the first few are named; a list of inner lists (RFC 9651)",
            "schema": {"type": "string"},
            "example": '("w" "b");event=fallback;reason=update-rms;count=2',
        },
        HEADER_RESUMED: {
            "description": "There once, where the steps before were replayed with other bits than they had",
            "schema": {"type": "string", "enum": [APPROXIMATE]},
        },
    },
    "content": {
        OCTET_STREAM: {"schema": {**_BINARY, "description": _NUMBERS}},
        SAFETENSORS: {"schema": _TENSORS},
        JSON: {
            "schema": {
                "type": "object",
                "required": ["step", "updates"],
                "properties": {"step": {"type": "integer"}, "updates": _NESTED},
            }
        },
    },
}

STEP: dict[str, Any] = {
    "parameters": [
        SESSION_ID,
        path("step", "The session's `next_step`", {"type": "integer", "minimum": 0}),
        {
            "name": "loss",
            "in": "query",
            "description": "The loss at θ_t, for the optimizers that use it",
            "schema": {"type": "number"},
        },
        {
            "name": "skip",
            "in": "query",
            "description": "A parameter without a gradient this time: left out, its hidden state stands still",
            "schema": {"type": "array", "items": {"type": "string"}},
            "style": "form",
            "explode": True,
        },
    ],
    "requestBody": _body("gradients", loss={"type": ["number", "null"]}),
    "responses": {"200": _STEP_REPLY},
}

PUT_PARAMETERS: dict[str, Any] = {"parameters": [SESSION_ID], "requestBody": _body("parameters")}

GET_STATE: dict[str, Any] = {
    "parameters": [SESSION_ID],
    "responses": {"200": {"description": "The state", "content": {SAFETENSORS: {"schema": _BINARY}}}},
}

PUT_STATE: dict[str, Any] = {
    "parameters": [SESSION_ID],
    "requestBody": {"required": True, "content": {SAFETENSORS: {"schema": _BINARY}}},
}


def _with_named_pages(schema: dict[str, Any]) -> dict[str, Any]:
    """`Page[SessionInfo]` as `SessionInfoPage`: generators name their classes by a schema's title, once each."""
    named: dict[str, Any] = json.loads(re.sub(r"Page_(\w+?)_(?=\")", r"\1Page", json.dumps(schema)))
    for name, component in named["components"]["schemas"].items():
        component["title"] = name
    return named


def _with_security(schema: dict[str, Any]) -> None:
    """Say of every route which key it needs, and whose things it is about.

    FastAPI has written it down already where the key has to be one of scope `admin`.
    """
    for path, methods in schema["paths"].items():
        for operation in methods.values() if path.startswith((f"{API_PREFIX}/", METRICS_PATH)) else ():
            refused = [problems.UNAUTHORIZED]
            if operation.setdefault("security", [{SCHEME: [CLIENT]}]) != [{SCHEME: [CLIENT]}]:
                refused.append(problems.FORBIDDEN)
            _document(operation, *refused, problems.QUOTA_EXCEEDED)
            operation["responses"]["429"]["headers"] = _QUOTA_HEADERS
            operation[TENANCY] = _TENANCIES[path.removeprefix(API_PREFIX).split("/")[1]]


def _with_bodies(schema: dict[str, Any]) -> None:
    """Say of every route with a body how it can fail to be one, and keep the schemas that bodies share in one place."""
    for methods in schema["paths"].values():
        for operation in methods.values():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                schema["components"]["schemas"] |= content["schema"].pop("$defs", {})
            if "requestBody" in operation:
                _document(operation, *_OF_BODIES)


def _document(operation: dict[str, Any], *types: ProblemType) -> None:
    for status, reply in responses(*types).items():
        known = operation["responses"].setdefault(str(status), reply)
        if reply["description"] not in known["description"]:
            known["description"] += f"; {reply['description']}"


def install(app: FastAPI) -> None:
    """Give `app` an OpenAPI document that knows the problems, and who may call what."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                tags=app.openapi_tags,
                separate_input_output_schemas=False,
            )
            schema.setdefault("components", {}).setdefault("schemas", {})[SCHEMA_NAME] = SCHEMA
            _with_security(schema)
            app.openapi_schema = _with_named_pages(schema)
            _with_bodies(app.openapi_schema)
            add_links(app.openapi_schema)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
