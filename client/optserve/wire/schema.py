"""How the dataclasses of the protocol tell pydantic to validate them, which the client itself does without."""

from collections.abc import Callable
from typing import Annotated, Any


class _Exact:
    """Tells pydantic to be strict: no strings for numbers, no fractions for whole ones, no 1 for true."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return {**handler(source), "strict": True}


class Described:
    """Gives pydantic the JSON schema of what it is to leave to others to check."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self._schema = schema

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Callable[[Any], Any]) -> dict[str, Any]:
        return self._schema


WholeNumber = Annotated[int, _Exact()]
Number = Annotated[float, _Exact()]
TruthValue = Annotated[bool, _Exact()]

REQUEST = {"extra": "forbid", "use_attribute_docstrings": True}
"""`__pydantic_config__` of a request: unknown keys are refused, descriptions are taken from the docstrings."""

REPLY = {"use_attribute_docstrings": True}
"""`__pydantic_config__` of a reply."""
