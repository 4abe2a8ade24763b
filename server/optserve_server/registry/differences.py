"""In what two versions differ: their architectures, and the recipes they were meta-trained by."""

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from optserve.wire.differences import Difference
from optserve_server.registry.models import Version


def differences(before: Version, after: Version) -> list[Difference]:
    """Each value that is another in `after`, with its path: `architecture.hidden_size`, `recipe.tasks[0].weight`, …

    A recipe's own table `architecture` is left out, for a version's architecture says the same with every default.
    """
    return list(_compare(_described(before), _described(after), ""))


def _described(version: Version) -> dict[str, Any]:
    recipe = version.recipe and {key: value for key, value in version.recipe.items() if key != "architecture"}
    return {"architecture": version.architecture, "recipe": recipe}


def _compare(before: Any, after: Any, path: str) -> Iterator[Difference]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            yield from _compare(before.get(key), after.get(key), f"{path}.{key}" if path else key)
    elif _is_of_tables(before) and _is_of_tables(after):
        for place, (one, other) in enumerate(zip_longest(before, after)):
            yield from _compare(one, other, f"{path}[{place}]")
    elif before != after or isinstance(before, bool) != isinstance(after, bool):  # True == 1 in Python, not in JSON
        yield Difference(path, before, after)


def _is_of_tables(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)
