"""The JSON form of a step: nested lists of numbers by parameter name."""

import json
import math
from itertools import accumulate
from operator import mul
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optserve.wire import problems
from optserve.wire.gradients import narrow, widen
from optserve_server.api.problems import Problem
from optserve_server.api.targets import Target, require_names
from optserve_server.naming import nearest, shown
from optserve_server.sessions.errors import Invalid, RequestInvalid
from optserve_server.sessions.layout import MAX_NAME_CHARACTERS, ParameterSlot, Selection

_LARGEST = {"float32": 3.4028234663852886e38, "float16": 65504.0, "bfloat16": 3.3895313892515355e38}
_MEMBERS = 64  # of the body itself, generously
_CHUNK = 4096  # numbers converted in one go: the call holds the interpreter lock


def read(data: bytes, target: Target) -> dict[str, Any]:
    """Read a body into `target`, each number rounded to its dtype, and return the members beside the numbers.

    Raises:
        Problem: not JSON, a name twice, no object, or more values than a body for this target has.
        RequestInvalid: there is no object under the target's key.
        Invalid: an unknown or missing name, a wrong shape, something that is no number, a number beyond the dtype.
    """
    _require_few_values(data, target)
    body = _parse(data)
    given = body.pop(target.key, None)
    if not isinstance(given, dict):
        raise RequestInvalid(
            f"The body lacks `{target.key}`: an object of nested lists by parameter name.", f"/{target.key}"
        )
    require_names(given, target)
    start = 0
    for parameter in target.selection.parameters:
        numbers: list[float] = []
        _flatten(given[parameter.name], parameter, [], numbers, target.invalid)
        values = np.empty(parameter.size)
        for place in range(0, parameter.size, _CHUNK):
            values[place : place + _CHUNK] = numbers[place : place + _CHUNK]
        within = np.abs(values) <= _LARGEST[target.dtype]
        if not within.all():
            raise _beyond(parameter, int(np.argmin(within)), values, target)
        target.bits[start : start + parameter.size] = narrow(values.astype(np.float32), target.dtype)
        start += parameter.size
    return body


def require_known(rest: dict[str, Any], known: tuple[str, ...]) -> None:
    """Check the members of a body beside the numbers.

    Raises:
        RequestInvalid: one is not known; names it and what comes near.
    """
    for name in rest:
        if name not in known:
            raise RequestInvalid(f"The body has the unknown member {shown(name)}{nearest(name, known)}.", f"/{name}")


def lists(parameter: ParameterSlot) -> int:
    """How many lists a parameter's nested lists are made of."""
    return sum(accumulate(parameter.shape[:-1], mul, initial=1)) if parameter.shape else 0


def _require_few_values(data: bytes, target: Target) -> None:
    # Before they are parsed: an empty list has two bytes in a body, and sixty in memory. Names may have commas too.
    parameters = target.selection.parameters
    values = sum(parameter.size + lists(parameter) for parameter in parameters)
    most = values + (len(parameters) + 1) * MAX_NAME_CHARACTERS + _MEMBERS
    if max(data.count(b","), data.count(b"["), data.count(b"{")) > most:
        raise Problem(problems.MALFORMED_BODY, "The body has more values than the parameters have numbers.")


def _parse(data: bytes) -> dict[str, Any]:
    # The numbers are made by a Python function, so that the interpreter lock is let go now and then and a large body
    # does not hold up other requests. `NaN` and `Infinity` pass here, and are refused by name and index later.
    try:
        parsed = json.loads(
            data, parse_float=_number, parse_int=_number, parse_constant=_number, object_pairs_hook=_without_repeats
        )
    except RecursionError as error:
        raise Problem(problems.MALFORMED_BODY, "The body is nested too deeply.") from error
    except ValueError as error:  # also where the text is not UTF-8
        raise Problem(problems.MALFORMED_BODY, f"The body is not JSON: {error}.") from error
    if not isinstance(parsed, dict):
        raise Problem(problems.MALFORMED_BODY, "The body is not a JSON object.")
    return parsed


def _number(text: str) -> float:
    return float(text)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name appears twice")
    return found


def _flatten(
    value: Any, parameter: ParameterSlot, index: list[int], numbers: list[float], invalid: type[Invalid]
) -> None:
    inner = parameter.shape[len(index) :]
    if not inner:
        if type(value) is not float:
            raise _misplaced(value, parameter, index, "a number", invalid)
        numbers.append(value)
        return
    if not isinstance(value, list) or len(value) != inner[0]:
        raise _misplaced(value, parameter, index, f"a list of {inner[0]}", invalid)
    if len(inner) == 1 and all(type(item) is float for item in value):
        numbers.extend(value)
        return
    for place, item in enumerate(value):
        _flatten(item, parameter, [*index, place], numbers, invalid)


def _misplaced(
    value: Any, parameter: ParameterSlot, index: list[int], expected: str, invalid: type[Invalid]
) -> Invalid:
    return invalid(
        f"{parameter.element(index)} is {_kind(value)}, but the shape {list(parameter.shape)} has {expected} there.",
        parameter=parameter.name,
        index=index,
    )


def _kind(value: Any) -> str:
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, str):
        return f"the string {shown(value)}"
    return f"the number {value:g}" if isinstance(value, float) else json.dumps(value)


def _beyond(parameter: ParameterSlot, position: int, values: NDArray[np.float64], target: Target) -> Invalid:
    index = parameter.index(position)
    value = values[position]
    limit = f"beyond {target.dtype}" if math.isfinite(value) else "not finite"
    return target.invalid(
        f"{parameter.element(index)} is {value}, which is {limit}. Nothing was changed.",
        parameter=parameter.name,
        index=index,
        value=str(value),
    )


def write(step: int, updates: NDArray[Any], selection: Selection, dtype: str) -> bytes:
    """The reply of a step; an update that is not finite is null, for JSON knows no NaN and no infinity."""
    values = widen(updates, dtype)
    members: list[str] = []
    start = 0
    for parameter in selection.parameters:
        array = values[start : start + parameter.size].reshape(parameter.shape)
        members.append(f"{json.dumps(parameter.name)}:{_nested(array)}")
        start += parameter.size
    return f'{{"step":{step},"updates":{{{",".join(members)}}}}}'.encode()


def _nested(array: NDArray[np.float32]) -> str:
    if array.size <= _CHUNK:
        plain = array.tolist()
        return json.dumps(plain if np.isfinite(array).all() else _nulled(plain))
    if array.ndim > 1:
        pieces = [_nested(row) for row in array]
    else:
        pieces = [_nested(array[start : start + _CHUNK])[1:-1] for start in range(0, len(array), _CHUNK)]
    return f"[{','.join(pieces)}]"


def _nulled(value: Any) -> Any:
    if isinstance(value, list):
        return [_nulled(item) for item in value]
    return value if math.isfinite(value) else None
