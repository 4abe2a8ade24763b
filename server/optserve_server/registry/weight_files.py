"""A weights file on its way into the registry: parsed, checked, and brought into its canonical bytes."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optserve.wire import tensors
from optserve_server.optimizers import Optimizer, architecture, weights
from optserve_server.registry.errors import WeightsInvalid, WeightsMalformed

_ENVIRONMENT = ("torch", "device", "optserve", "commit", "python", "machine", "seed")
"""Keys of a file's metadata that say what produced it."""

_MAX_DEPTH = 32  # of a JSON value that is kept, far below what a reply can be nested


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """The contents of a weights file that can become a version."""

    data: bytes
    """Canonical: equal φ and equal metadata give equal bytes."""
    sha256: str
    optimizer: Optimizer
    architecture: dict[str, Any]
    recipe: dict[str, Any] | None
    metrics: dict[str, Any]
    environment: dict[str, str]
    name: str | None
    """The optimizer that the file says it is a version of."""
    description: str


def read(data: bytes) -> WeightsFile:
    """Parse the bytes of a safetensors file.

    Raises:
        WeightsMalformed: not safetensors, or cut off.
        WeightsInvalid: an unknown architecture, tensors of other names, shapes or dtypes than the
            architecture's, numbers that are not finite, or metadata that is not JSON or not text.
    """
    _require_safetensors(data)
    try:
        optimizer, phi, metadata = weights.decode(data)
        recipe, metrics = _json_object(metadata, "recipe"), _json_object(metadata, "metrics")
        _require_text(metadata)
        json.dumps(architecture(optimizer), allow_nan=False)
        canonical = weights.encode(optimizer, phi, metadata)
    except (ValueError, TypeError, RecursionError) as error:  # the latter two from an architecture of odd JSON
        raise WeightsInvalid(f"The weights file cannot be imported: {error}.") from error
    return WeightsFile(
        data=canonical,
        sha256=hashlib.sha256(canonical).hexdigest(),
        optimizer=optimizer,
        architecture=architecture(optimizer),
        recipe=recipe,
        metrics=metrics or {},
        environment={key: metadata[key] for key in _ENVIRONMENT if key in metadata},
        name=metadata.get("optimizer"),
        description=metadata.get("description", ""),
    )


def require_learned(file: WeightsFile) -> None:
    """Check that a file from outside has weights at all.

    Raises:
        WeightsInvalid: it is of an optimizer designed by hand, which every server has built in.
    """
    if not file.optimizer.learned:
        raise WeightsInvalid(
            f"{file.optimizer.kind!r} is designed by hand and built in, so there are no weights to import; "
            f"create sessions of {file.optimizer.kind!r} with `hyperparameters` instead."
        )


def _require_safetensors(data: bytes) -> None:
    try:
        tensors.decode(data)
    except (ValueError, TypeError, RecursionError) as error:  # the latter two from a header of odd JSON
        raise WeightsMalformed(f"The file cannot be read: {error}.") from error


def _json_object(metadata: Mapping[str, str], key: str) -> dict[str, Any] | None:
    if key not in metadata:
        return None
    try:
        value = json.loads(metadata[key], parse_constant=_refuse)
        # 1e999 is read as infinity, and half a surrogate pair as a character.
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the metadata's {key} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"the metadata's {key} is {metadata[key][:80]}, but must be a JSON object")
    if _depth(value) > _MAX_DEPTH:
        raise ValueError(f"the metadata's {key} is nested more than {_MAX_DEPTH} deep")
    return value


def _depth(value: Any) -> int:
    """How many arrays and objects lie one inside the other."""
    deepest, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        deepest += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return deepest


def _require_text(metadata: Mapping[str, str]) -> None:
    for key, value in metadata.items():
        if "\0" in value:
            raise ValueError(f"the metadata's {key} has a zero character, which PostgreSQL cannot store")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON number")
