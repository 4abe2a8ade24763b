"""How φ moves, for how long, and what it is validated on."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from optserve_server.descriptions import DescriptionError, Table
from optserve_server.metatraining.tables.numbers import Count, NonNegativeFloat, PositiveFloat, Steps, Tasks
from optserve_server.metatraining.tables.tasks import TaskShare


class MetaOptimizer(Table):
    """The outer loop's own update rule and its length.

    With `averaging` the φ that is validated and kept is a running mean of φ with that decay, which takes out the noise
    of the last meta-gradients. β rises to `learning_rate` in the first `warm_up` outer steps, and then goes by the
    schedule towards `final_learning_rate`. With `decay` φ is drawn back to where it began:
    φ ← φ − β · decay · (φ − φ_0).
    """

    kind: Literal["gradient-descent", "adam"] = "gradient-descent"
    learning_rate: PositiveFloat = 0.001
    schedule: Literal["constant", "linear", "cosine", "exponential"] = "constant"
    final_learning_rate: NonNegativeFloat = 0.0
    warm_up: Annotated[int, Field(ge=0, le=10**9)] = 0
    clip_norm: PositiveFloat | None = None
    decay: NonNegativeFloat = 0.0
    averaging: Annotated[float, Field(ge=0, lt=1)] = 0.0
    outer_steps: Count = 1000
    tasks_per_outer_step: Tasks = 16

    @model_validator(mode="after")
    def _schedule_is_one(self) -> "MetaOptimizer":
        if self.schedule == "constant" and self.final_learning_rate:
            raise DescriptionError("final_learning_rate", "a constant schedule has none; leave it out")
        if self.schedule == "exponential" and not self.final_learning_rate:
            raise DescriptionError("final_learning_rate", "an exponential schedule needs one above 0")
        if self.final_learning_rate > self.learning_rate:
            raise DescriptionError("final_learning_rate", f"is above learning_rate, {self.learning_rate:g}")
        if self.warm_up >= self.outer_steps:
            raise DescriptionError("warm_up", f"{self.warm_up} must be below outer_steps, {self.outer_steps}")
        return self


class Curriculum(Table):
    """A curriculum over the horizon (Chen et al. 2020, section 3.1): `steps` are the longest T's before the recipe's.

    Training goes on to the next T, from the best φ so far, when `patience` validations at that T have brought nothing
    better.
    """

    steps: Annotated[tuple[Steps, ...], Field(min_length=1)]
    patience: Annotated[int, Field(ge=1, le=10_000)] = 3

    @field_validator("steps")
    @classmethod
    def _grows(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if list(value) != sorted(set(value)):
            raise ValueError(f"{list(value)} does not grow from each number to the next")
        return value


class Validation(Table):
    """What φ is validated on, where that is not held-out tasks of the recipe's own families.

    The held-out loss is then the geometric mean, over `tasks` by their weights and over the T's of `horizons`, of
    f(θ_T)/f(θ_0), the quotient at most the meta-loss's ceiling and `floor` times f(θ_0) added above and below; each has
    `instances` tasks. Of a family that
    the recipe trains on they are of the held-out half, of another one of the training half, which nothing else has
    seen: so that evaluations stay unseen too. After `patience` validations without a better one the run is over.
    """

    tasks: Annotated[tuple[TaskShare, ...], Field(min_length=1)]
    horizons: Annotated[tuple[Steps, ...], Field(min_length=1)]
    instances: Annotated[int, Field(ge=1, le=1000)] = 4
    floor: PositiveFloat = 1e-3
    patience: Annotated[int, Field(ge=1, le=10_000)] | None = None


class Checkpoints(Table):
    """Every so many outer steps φ is validated on held-out tasks and kept."""

    every: Count = 200
