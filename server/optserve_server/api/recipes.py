"""Recipes as they come over HTTP: checked to the last key, completed, and made exact."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from optserve.wire import problems
from optserve_server import machine, optimizers
from optserve_server.api.problems import Problem, pointer
from optserve_server.metatraining import memory, recipes
from optserve_server.metatraining.recipes import Recipe, RecipeError
from optserve_server.registry.database import Database
from optserve_server.registry.errors import OptimizerNotFound, RegistryError
from optserve_server.registry.models import Version
from optserve_server.registry.optimizers import get_entry, get_version, resolve
from optserve_server.settings import Settings

_GIB = 2**30


@dataclass(frozen=True, slots=True)
class CheckedRecipe:
    """A recipe that can be run: complete, and `start_from`, where it has one, NAME@N."""

    content: dict[str, Any]
    start_from: Version | None


def check(database: Database, body: dict[str, Any], settings: Settings) -> CheckedRecipe:
    """Check all of a recipe that can be known before it runs. This takes about a second.

    Raises:
        Problem: `recipe-invalid`, with the `path` of the key that is wrong.
    """
    with naming_the_key():
        _require_storable(body)
        recipe = recipes.parse(body)
        with database.session() as db_session:
            start_from = _find_start(db_session, recipe)
            _require_kind(db_session, recipe)
        _require_room(recipe, settings)
    content = recipe.model_dump(mode="json")
    if start_from is not None:
        content["start_from"] = f"{start_from.optimizer.name}@{start_from.number}"
    return CheckedRecipe(content, start_from)


@contextmanager
def naming_the_key() -> Iterator[None]:
    """Answer with the problem `recipe-invalid` where the block finds a recipe wrong."""
    try:
        yield
    except RecipeError as error:
        errors = [{"pointer": pointer(*error.path.split(".")) if error.path else "#", "detail": f"{error}."}]
        raise Problem(problems.RECIPE_INVALID, f"{error}.", path=error.path, errors=errors) from error


def _require_storable(body: dict[str, Any]) -> None:
    try:
        text = json.dumps(body, allow_nan=False, ensure_ascii=False)
        text.encode()
    except ValueError as error:  # infinities, and halves of surrogate pairs
        raise RecipeError("", f"the recipe has a value that cannot be kept: {error}") from error
    if "\\u0000" in text:
        raise RecipeError("", "the recipe has a text with a zero character, which cannot be kept")


def _find_start(db_session: Session, recipe: Recipe) -> Version | None:
    if recipe.start_from is None:
        return None
    try:
        found = resolve(db_session, recipe.start_from)
    except RegistryError as error:
        raise RecipeError("start_from", str(error).rstrip(".")) from error
    if optimizers.build(found.architecture) != recipe.optimizer():
        raise RecipeError(
            "start_from",
            f"{found.name}@{found.number} is of the architecture {json.dumps(found.architecture)}, which the recipe's "
            "has to equal",
        )
    return get_version(db_session, found.name, found.number)


def _require_kind(db_session: Session, recipe: Recipe) -> None:
    try:
        kind = get_entry(db_session, recipe.name).served.architecture["kind"]
    except OptimizerNotFound:
        return  # the run will make it
    if kind != recipe.optimizer().kind:
        raise RecipeError("architecture.kind", f"{recipe.name!r} is of the kind {kind!r}; take that, or another name")


def _require_room(recipe: Recipe, settings: Settings) -> None:
    needed, there = memory.estimate_bytes(recipe), settings.worker_memory or machine.memory_bytes()
    if needed > there:
        raise RecipeError(
            "meta_optimizer.tasks_per_outer_step",
            f"the recipe needs about {needed / _GIB:.1f} GiB of memory, and a worker has {there / _GIB:.1f} GiB; take "
            "fewer tasks, a shorter unroll.truncation or smaller tasks",
        )
