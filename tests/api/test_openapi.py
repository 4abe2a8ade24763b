"""The OpenAPI document: valid, and complete enough to generate a client from."""

import json
import re

import httpx
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from optserve.wire import problems

FORMS = {"application/octet-stream", "application/x-safetensors", "application/json"}
STEP = "/v1/sessions/{session_id}/steps/{step}"


@pytest.fixture(scope="module")
def document(server):
    return httpx.get(f"{server.url}/openapi.json").json()


@pytest.fixture(scope="module")
def operations(document):
    return {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def documented(operation):
    """The types of the problems that an operation's document names."""
    text = " ".join(reply["description"] for status, reply in operation["responses"].items() if int(status) >= 400)
    return {one.slug for one in problems.ALL if f"`{one.slug}`" in text}


def test_the_document_is_valid(document):
    OpenAPIV31SpecValidator(document).validate()


def test_every_schema_has_a_title_of_its_own(document, operations):
    """Generators of clients name their classes by it."""
    schemas = document["components"]["schemas"]
    assert {name: schema["title"] for name, schema in schemas.items()} == {name: name for name in schemas}
    reply = operations["GET /v1/sessions"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert reply == {"$ref": "#/components/schemas/SessionInfoPage"}
    assert schemas["SessionInfoPage"]["properties"]["items"]["items"] == {"$ref": "#/components/schemas/SessionInfo"}


def test_every_operation_has_a_name_a_summary_a_description_and_a_tag(operations):
    names = [operation["operationId"] for operation in operations.values()]
    assert len(names) == len(set(names))
    for key, operation in operations.items():
        assert operation["operationId"].isidentifier(), key
        assert operation["summary"], key
        assert operation["description"], key
        assert operation["tags"], key


def test_every_error_is_documented_as_a_problem(operations):
    for key, operation in operations.items():
        errors = {status: reply for status, reply in operation["responses"].items() if int(status) >= 400}
        assert {"422", "500"} <= set(errors), key
        for reply in errors.values():
            assert reply["content"] == {
                "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
            }, key


def test_every_path_parameter_is_documented(document, operations):
    for path in document["paths"]:
        names = {part[1:-1] for part in path.split("/") if part.startswith("{")}
        for key, operation in operations.items():
            if key.endswith(f" {path}"):
                declared = {one["name"] for one in operation.get("parameters", []) if one["in"] == "path"}
                assert declared == names, key


def test_every_reference_leads_somewhere(document):
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(re.findall(r'"\$ref": "([^"]*)"', json.dumps(document))) <= known
    assert "#/components/schemas/Growth" in known


def test_every_body_can_fail_to_be_one(operations):
    for key, operation in operations.items():
        if "requestBody" in operation:
            assert documented(operation) >= {"malformed-body", "body-too-large", "unsupported-media-type"}, key


def test_a_reply_tells_what_can_be_called_next(operations):
    links = operations["POST /v1/sessions"]["responses"]["201"]["links"]
    assert links["take_step"]["parameters"] == {"session_id": "$response.body#/id", "step": "$response.body#/next_step"}
    of_sessions = {one["operationId"] for key, one in operations.items() if "/sessions/{session_id}" in key}
    assert set(links) == of_sessions


def test_a_state_is_documented_as_the_file_that_it_is(operations):
    state = operations["GET /v1/sessions/{session_id}/state"]["responses"]["200"]
    assert set(state["content"]) == {"application/x-safetensors"}


def test_a_step_is_documented_in_all_its_forms(operations):
    step = operations[f"POST {STEP}"]
    assert set(step["requestBody"]["content"]) == FORMS
    assert set(step["responses"]["200"]["content"]) == FORMS
    assert {one["name"] for one in step["parameters"]} == {"session_id", "step", "loss", "skip"}
    assert documented(step) >= {
        "session-not-found",
        "session-expired",
        "step-conflict",
        "gradients-invalid",
        "parameters-needed",
        "unsupported-media-type",
        "malformed-body",
        "body-too-large",
    }


@pytest.mark.parametrize(
    ("operation", "slugs"),
    [
        ("POST /v1/sessions", {"optimizer-not-found", "hyperparameters-invalid", "state-too-large"}),
        ("PATCH /v1/sessions/{session_id}", {"session-not-found", "hyperparameters-invalid"}),
        ("PUT /v1/sessions/{session_id}/state", {"state-mismatch", "malformed-body", "state-too-large"}),
        ("POST /v1/sessions/{session_id}/restore", {"checkpoint-not-found", "session-expired"}),
    ],
)
def test_what_can_go_wrong_is_documented(operations, operation, slugs):
    assert documented(operations[operation]) >= slugs


def test_bodies_refer_to_schemas_with_descriptions(document):
    schemas = document["components"]["schemas"]
    assert "ttl_seconds" in schemas["SessionRequest"]["properties"]
    assert schemas["SessionRequest"]["properties"]["optimizer"]["description"]
    assert schemas["Problem"]["required"] == ["type", "title", "status", "detail"]
    assert not [name for name in schemas if name.startswith("HTTPValidation")]


def test_what_is_answered_is_what_is_documented(document, operations, http):
    """A route that the document does not know would have no rules."""
    known = {key.partition(" ")[2] for key in operations}
    assert {"/healthz", "/readyz", "/v1/sessions", "/v1/optimizers", "/v1/tasks", STEP} <= known
    created = http.post("/sessions", json={"optimizer": "adam", "parameters": [{"name": "w", "shape": [1]}]}).json()
    assert set(created) == set(document["components"]["schemas"]["SessionInfo"]["properties"])
    http.delete(f"/sessions/{created['id']}")
