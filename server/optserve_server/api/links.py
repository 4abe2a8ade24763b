"""OpenAPI links: what a reply tells of the calls that can come next."""

from collections.abc import Iterator
from typing import Any

_SESSION = {"session_id": "$response.body#/id", "step": "$response.body#/next_step"}

_TOLD = {
    "create_session": _SESSION,
    "get_session": _SESSION,
    "fork": _SESSION,
    "take_step": {"session_id": "$request.path.session_id"},
    "import_version": {"name": "$response.body#/optimizer", "number": "$response.body#/version"},
    "create_meta_training_run": {"run_id": "$response.body#/id"},
    "create_evaluation": {"evaluation_id": "$response.body#/id"},
    "create_api_key": {"id_or_name": "$response.body#/id"},
}
"""Which parameters of paths the reply of an operation, or its request, tells."""


def add_links(schema: dict[str, Any]) -> None:
    """Link every operation that tells parameters with every other one whose path begins with one of them."""
    operations = {operation["operationId"]: (path, operation) for path, operation in _operations(schema)}
    for source, told in _TOLD.items():
        links = {
            target: {"operationId": target, "parameters": {name: told[name] for name in names if name in told}}
            for target, (path, _) in operations.items()
            if target != source and (names := _path_parameters(path)) and names[0] in told
        }
        replies: dict[str, Any] = operations[source][1]["responses"]
        for status, reply in replies.items():
            if status.startswith("2"):
                reply["links"] = links


def _operations(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in schema["paths"].items():
        for operation in methods.values():
            yield path, operation


def _path_parameters(path: str) -> list[str]:
    return [part[1:-1] for part in path.split("/") if part.startswith("{")]
