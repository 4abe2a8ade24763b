"""Recipes: everything that decides what a meta-training run computes, as TOML or JSON.

Two runs of one recipe on one type of machine give the same φ bit for bit.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator, model_validator

from optserve_server import descriptions, optimizers
from optserve_server.descriptions import DescriptionError, Table
from optserve_server.metatraining.tables import (
    Augmentation,
    Checkpoints,
    Curriculum,
    GradientEstimator,
    HorizonRange,
    Imitation,
    MetaLoss,
    MetaOptimizer,
    TaskShare,
    Unroll,
    Validation,
    VariedShare,
)
from optserve_server.naming import NAME_RULE, is_name, nearest, shown
from optserve_server.optimizers import Optimizer

__all__ = ["Recipe", "RecipeError", "TaskShare", "load", "parse"]


class RecipeError(DescriptionError):
    """A recipe that cannot be run; `path` names the key."""


def _learned_name(name: str) -> str:
    if not is_name(name):
        raise ValueError(f"{shown(name)} cannot be a name; {NAME_RULE}")
    if name in optimizers.HAND_DESIGNED:
        raise ValueError(f"{name!r} is designed by hand and built in; take another name")
    return name


class Recipe(Table):
    """One meta-training run."""

    name: Annotated[str, AfterValidator(_learned_name)]
    description: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    start_from: str | None = None
    architecture: dict[str, Any]
    tasks: Annotated[tuple[VariedShare, ...], Field(min_length=1)]
    unroll: Unroll = Unroll()
    meta_loss: MetaLoss = MetaLoss()
    gradient: GradientEstimator = GradientEstimator()
    augmentation: Augmentation = Augmentation()
    imitation: Imitation | None = None
    curriculum: Curriculum | None = None
    meta_optimizer: MetaOptimizer = MetaOptimizer()
    validation: Validation | None = None
    checkpoints: Checkpoints = Checkpoints()

    @field_validator("architecture")
    @classmethod
    def _is_learned(cls, value: dict[str, Any]) -> dict[str, Any]:
        kind, learned = value.get("kind"), optimizers.LEARNED
        if kind not in [*learned, *optimizers.HAND_DESIGNED]:  # `build` would offer the hand-designed ones too
            near, known = nearest(kind, learned), ", ".join(learned)
            raise ValueError(f"there is no architecture {kind!r}{near}; there are {known}")
        optimizer = optimizers.build(value)
        if not optimizer.learned:
            raise ValueError(f"{optimizer.kind!r} has no weights to meta-train; take {', '.join(optimizers.LEARNED)}")
        return value

    @model_validator(mode="after")
    def _tables_agree(self) -> "Recipe":
        self._check_weights()
        self._check_curriculum()
        if self.meta_optimizer.tasks_per_outer_step % self.unroll.advance:
            raise DescriptionError(
                "meta_optimizer.tasks_per_outer_step",
                f"{self.meta_optimizer.tasks_per_outer_step} tasks cannot be shared out evenly among the "
                f"{self.unroll.advance} trajectories of unroll.advance",
            )
        return self

    def _check_weights(self) -> None:
        weights = self.meta_loss.weights
        if not isinstance(weights, tuple):
            return
        if isinstance(self.unroll.steps, HorizonRange) or self.curriculum is not None:
            raise DescriptionError(
                "meta_loss.weights", "one number for each step needs one T; take { first = …, last = …, power = … }"
            )
        if len(weights) != self.unroll.steps:
            raise DescriptionError(
                "meta_loss.weights", f"there are {len(weights)}, but unroll.steps is {self.unroll.steps}"
            )

    def _check_curriculum(self) -> None:
        if self.curriculum is None:
            return
        horizon, truncation = self.unroll.steps, self.unroll.truncation
        low = horizon.low if isinstance(horizon, HorizonRange) else 1
        for steps in self.curriculum.steps:
            if not low <= steps < self.unroll.longest:
                raise DescriptionError(
                    "curriculum.steps",
                    f"{steps} is not between {low} and {self.unroll.longest - 1}, as unroll.steps asks",
                )
            if isinstance(horizon, int) and truncation and steps % truncation:
                raise DescriptionError("curriculum.steps", f"unroll.truncation, {truncation}, does not divide {steps}")

    def optimizer(self) -> Optimizer:
        """m of this recipe."""
        return optimizers.build(self.architecture)


def parse(content: Mapping[str, Any]) -> Recipe:
    """A recipe from its keys.

    Raises:
        RecipeError: the first thing wrong with it; an unknown key's message names the nearest known one.
    """
    return descriptions.parse(Recipe, content, RecipeError)


def require_same(recipe: Recipe, interrupted: Mapping[str, Any]) -> None:
    """Refuse to go on by `recipe` with what a run by another, `interrupted`, has left; it may have more outer steps.

    Raises:
        ValueError: naming the first key that differs.
    """
    # Parsed, so that a key that came into being since then has its default there too.
    others = parse(interrupted).model_dump(mode="json")
    for path, value in _differences(recipe.model_dump(mode="json"), others):
        if path != "meta_optimizer.outer_steps":
            ours, theirs = value
            raise ValueError(
                f"the training checkpoint is of another recipe: {path} is {theirs!r} there and {ours!r} here; "
                "only meta_optimizer.outer_steps may differ"
            )


def _differences(ours: Any, theirs: Any, path: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """The paths of the keys that differ, with both values."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        for key in dict.fromkeys([*ours, *theirs]):
            yield from _differences(ours.get(key), theirs.get(key), f"{path}.{key}" if path else key)
    elif ours != theirs:
        yield path, (ours, theirs)


def load(path: Path) -> Recipe:
    """A recipe from a TOML file.

    Raises:
        RecipeError: not TOML, or not a recipe.
        OSError: the file cannot be read.
    """
    return parse(descriptions.read_toml(path, RecipeError))
