"""The three forms in which gradients, updates and parameters travel: numbers alone, safetensors, JSON (`json_form`).

Whatever the form, reading ends in `bits`: the numbers of the selected parameters, one after another in declared order,
in the session's dtype as NumPy stores it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optserve.wire import problems, tensors
from optserve.wire.gradients import JSON, OCTET_STREAM, SAFETENSORS, SAFETENSORS_CODE
from optserve_server.api import json_form
from optserve_server.api.problems import Problem
from optserve_server.api.targets import Target, require_names
from optserve_server.naming import shown
from optserve_server.sessions.errors import Invalid
from optserve_server.sessions.layout import ParameterSlot, Selection

MEDIA_TYPES = (OCTET_STREAM, SAFETENSORS, JSON)

_LINE_BYTES = 64  # of one number or bracket in a JSON body, generously
_INDENT_BYTES = 8  # of each level of an indented JSON body, generously
_NAME_BYTES = 8192  # of one parameter's name (escaped, 12 bytes a character), shape and place, generously


def media_type(content_type: str) -> str:
    """The form that a `Content-Type` names.

    Raises:
        Problem: none of the three.
    """
    if content_type == OCTET_STREAM:
        return content_type
    found = content_type.partition(";")[0].strip().lower()
    if found not in MEDIA_TYPES:
        raise Problem(
            problems.UNSUPPORTED_MEDIA_TYPE,
            f"The body is {shown(found) if found else 'of no media type'}; "
            f"send it with one of these as `Content-Type`: {', '.join(MEDIA_TYPES)}.",
            media_types=list(MEDIA_TYPES),
        )
    return found


def longest(form: str, target: Target) -> int:
    """How many bytes a body of this form can have at most."""
    parameters = target.selection.parameters
    numbers = sum(map(_json_bytes, parameters)) if form == JSON else target.bits.nbytes
    return numbers + longest_names(target)


def longest_names(target: Target) -> int:
    """How many bytes the names and shapes of a body can have at most."""
    return _NAME_BYTES * (len(target.selection.parameters) + 1)


def _json_bytes(parameter: ParameterSlot) -> int:
    # Each number and each bracket may stand on a line of its own.
    return (parameter.size + 2 * json_form.lists(parameter)) * (_LINE_BYTES + _INDENT_BYTES * len(parameter.shape))


def wrong_length(length: int, target: Target) -> Invalid:
    """The error of an `octet-stream` body that has `length` bytes."""
    selection = target.selection
    expected = target.bits.nbytes
    message = (
        f"The body has {length} bytes, but {selection.coordinates} numbers of {target.dtype} have {expected}: every "
        "parameter flattened, one after another in declared order, without those in `skip`."
    )
    if length > expected:
        return target.invalid(f"{message} It goes on behind the last parameter.", bytes_expected=expected)
    place, parameter = length // target.bits.itemsize, selection.parameters[0]
    for parameter in selection.parameters:
        if place < parameter.size:
            break
        place -= parameter.size
    index = parameter.index(place)
    message = f"{message} It ends before {parameter.element(index)} is complete."
    return target.invalid(message, parameter=parameter.name, index=index, bytes_expected=expected)


def read_safetensors(data: bytes, target: Target) -> None:
    """Read tensors by parameter name.

    Raises:
        Problem: not a safetensors file.
        Invalid: an unknown or missing name, a wrong shape or dtype.
    """
    try:
        places, _ = tensors.index(data, longest_names(target))
    except ValueError as error:
        raise Problem(problems.MALFORMED_BODY, f"The body is {error}.") from error
    require_names(places, target)
    code = SAFETENSORS_CODE[target.dtype]
    octets = target.bits.view(np.uint8)
    start = 0
    for parameter in target.selection.parameters:
        place = places[parameter.name]
        if place.dtype != code:
            raise target.invalid(
                f"{shown(parameter.name)} is {place.dtype}, but the session's dtype is {target.dtype} ({code}); "
                "send that, or create a session with another dtype.",
                parameter=parameter.name,
            )
        if place.shape != parameter.shape:
            raise target.invalid(
                f"{shown(parameter.name)} has the shape {list(place.shape)}, "
                f"but was declared with {list(parameter.shape)}.",
                parameter=parameter.name,
            )
        stop = start + place.stop - place.start
        octets[start:stop] = np.frombuffer(data, np.uint8, stop - start, place.start)
        start = stop


def write(form: str, step: int, updates: NDArray[Any], selection: Selection, dtype: str) -> bytes | memoryview:
    """The updates of a step as the reply's body; `octet-stream` is a view of them, not a copy."""
    return _WRITERS[form](step, updates, selection, dtype)


def _write_octets(step: int, updates: NDArray[Any], selection: Selection, dtype: str) -> memoryview:
    return updates.view(np.uint8).data


def _write_safetensors(step: int, updates: NDArray[Any], selection: Selection, dtype: str) -> bytes:
    code = SAFETENSORS_CODE[dtype]
    beginning, _ = tensors.header({parameter.name: (code, parameter.shape) for parameter in selection.parameters})
    return b"".join((beginning, updates.view(np.uint8).data))


_WRITERS: dict[str, Callable[[int, NDArray[Any], Selection, str], bytes | memoryview]] = {
    OCTET_STREAM: _write_octets,
    SAFETENSORS: _write_safetensors,
    JSON: json_form.write,
}
