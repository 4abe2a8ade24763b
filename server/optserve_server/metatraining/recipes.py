"""Recipes: everything that decides what a meta-training run computes, as TOML or JSON.

Two runs of one recipe on one type of machine give the same φ bit for bit.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from optserve_server import descriptions, optimizers, tasks
from optserve_server.descriptions import DescriptionError, Table
from optserve_server.naming import NAME_RULE, is_name, shown
from optserve_server.optimizers import Optimizer
from optserve_server.tasks import TaskFamily

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class RecipeError(DescriptionError):
    """A recipe that cannot be run; `path` names the key."""


class TaskShare(Table):
    """One family in the distribution of tasks, with its weight."""

    family: str
    weight: PositiveFloat = 1.0
    parameters: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _family_exists(self) -> "TaskShare":
        self.build()
        return self

    def build(self) -> TaskFamily:
        """The family with these parameters."""
        return tasks.build(self.family, self.parameters)


class LogUniform(Table):
    """A whole number whose logarithm is uniform between those of `low` and `high`, drawn for each trajectory."""

    low: PositiveInt
    high: PositiveInt

    @model_validator(mode="after")
    def _ordered(self) -> "LogUniform":
        if self.low > self.high:
            raise ValueError(f"low is {self.low}, but must be at most high, {self.high}")
        return self


def _tag_of_steps(value: Any) -> str:
    return _RANGE if isinstance(value, Mapping | LogUniform) else _NUMBER


_NUMBER, _RANGE = "(number)", "(range)"
Steps = Annotated[
    Annotated[PositiveInt, Tag(_NUMBER)] | Annotated[LogUniform, Tag(_RANGE)], Discriminator(_tag_of_steps)
]
"""T: one number, or a range to draw it from."""


class Unroll(Table):
    """The inner loop: T = `steps`, cut into windows of `truncation` steps; absent, the window is the trajectory."""

    steps: Steps = 100
    truncation: PositiveInt | None = None

    @property
    def longest(self) -> int:
        """The greatest T that a trajectory can have."""
        return self.steps.high if isinstance(self.steps, LogUniform) else self.steps


class MetaLoss(Table):
    """What φ is trained on, per window, averaged over tasks.

    `final`: f(θ_T), the definition. `sum`: Σ_t f(θ_t). `log`: Σ_t ln(f(θ_t) + floor), which weighs all scales of loss
    down to the floor alike.
    """

    kind: Literal["final", "sum", "log"] = "final"
    floor: PositiveFloat = 1e-6


class GradientEstimator(Table):
    """How ∇_φL is estimated; `second_order` keeps ∂∇_t/∂φ, which makes it exact."""

    estimator: Literal["backpropagation"] = "backpropagation"
    second_order: bool = True


class Augmentation(Table):
    """Random coordinate scaling (Lv et al. 2017, section 4.2): some tasks become f(c ⊙ z), ln c ~ U[−range, range]."""

    coordinate_scaling: Annotated[float, Field(ge=0, le=10)] = 0.0
    probability: Annotated[float, Field(ge=0, le=1)] = 0.5


class MetaOptimizer(Table):
    """The outer loop's own update rule and its length.

    With `averaging` the φ that is validated and kept is a running mean of φ with that decay, which takes out the noise
    of the last meta-gradients.
    """

    kind: Literal["gradient-descent", "adam"] = "gradient-descent"
    learning_rate: PositiveFloat = 0.001
    schedule: Literal["constant", "cosine"] = "constant"
    clip_norm: PositiveFloat | None = None
    averaging: Annotated[float, Field(ge=0, lt=1)] = 0.0
    outer_steps: PositiveInt = 1000
    tasks_per_outer_step: PositiveInt = 16


class Checkpoints(Table):
    """Every so many outer steps φ is validated on held-out tasks and kept."""

    every: PositiveInt = 200


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
    tasks: Annotated[tuple[TaskShare, ...], Field(min_length=1)]
    unroll: Unroll = Unroll()
    meta_loss: MetaLoss = MetaLoss()
    gradient: GradientEstimator = GradientEstimator()
    augmentation: Augmentation = Augmentation()
    meta_optimizer: MetaOptimizer = MetaOptimizer()
    checkpoints: Checkpoints = Checkpoints()

    @field_validator("architecture")
    @classmethod
    def _is_learned(cls, value: dict[str, Any]) -> dict[str, Any]:
        optimizer = optimizers.build(value)
        if not optimizer.learned:
            raise ValueError(f"{optimizer.kind!r} has no weights to meta-train; take {', '.join(optimizers.LEARNED)}")
        return value

    def optimizer(self) -> Optimizer:
        """m of this recipe."""
        return optimizers.build(self.architecture)


def parse(content: Mapping[str, Any]) -> Recipe:
    """A recipe from its keys.

    Raises:
        RecipeError: the first thing wrong with it; an unknown key's message names the nearest known one.
    """
    return descriptions.parse(Recipe, content, RecipeError)


def load(path: Path) -> Recipe:
    """A recipe from a TOML file.

    Raises:
        RecipeError: not TOML, or not a recipe.
        OSError: the file cannot be read.
    """
    return parse(descriptions.read_toml(path, RecipeError))
