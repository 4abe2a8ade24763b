"""The tables of a recipe, each with the checks that need no other table."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from optserve_server import tasks
from optserve_server.descriptions import Table
from optserve_server.tasks import TaskFamily

Count = Annotated[int, Field(ge=1, le=10**9)]
Steps = Annotated[int, Field(ge=1, le=10**6)]
Tasks = Annotated[int, Field(ge=1, le=10**6)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]

_SINGLE, _TABLE = "(single)", "(table)"  # tags in brackets are no part of a key's path


def _tag(value: Any) -> str:
    return _TABLE if isinstance(value, Mapping | Table) else _SINGLE


class TaskShare(Table):
    """One family in the distribution of tasks, with its weight."""

    family: str
    weight: PositiveFloat = 1.0
    parameters: dict[str, Any] = Field(default_factory=dict)

    @field_validator("family")
    @classmethod
    def _family_exists(cls, value: str) -> str:
        tasks.build(value, {})
        return value

    @field_validator("parameters")
    @classmethod
    def _parameters_are_the_familys(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "family" in info.data:
            tasks.build(info.data["family"], value)
        return value

    def build(self) -> TaskFamily:
        """The family with these parameters."""
        return tasks.build(self.family, self.parameters)


class HorizonRange(Table):
    """T drawn for each trajectory between `low` and `high`, with a density ∝ T^−power: at 1, log-uniform."""

    low: Steps
    high: Steps
    power: Annotated[float, Field(ge=0, le=10)] = 1.0

    @model_validator(mode="after")
    def _ordered(self) -> "HorizonRange":
        if self.low > self.high:
            raise ValueError(f"low is {self.low}, but must be at most high, {self.high}")
        return self


Horizons = Annotated[
    Annotated[Steps, Tag(_SINGLE)] | Annotated[HorizonRange, Tag(_TABLE)],
    Discriminator(_tag),
]
"""T: one number, or a range to draw it from."""


class Unroll(Table):
    """The inner loop: T = `steps`, cut into windows of `truncation` steps; absent, the window is the trajectory.

    The windows of a fixed T are all of one length; of a T that is drawn, the last may be shorter.
    """

    steps: Horizons = 100
    truncation: Steps | None = None

    @field_validator("truncation")
    @classmethod
    def _divides(cls, value: int | None, info: ValidationInfo) -> int | None:
        steps = info.data.get("steps")
        if value is not None and isinstance(steps, int) and steps % value:
            near = nearest_divisor(steps, value)
            raise ValueError(f"{value} does not divide unroll.steps, {steps}; {near} does")
        return value

    @property
    def longest(self) -> int:
        """The greatest T that a trajectory can have."""
        return self.steps.high if isinstance(self.steps, HorizonRange) else self.steps

    @property
    def window(self) -> int:
        """Steps of the longest window."""
        return min(self.truncation or self.longest, self.longest)


class MetaLoss(Table):
    """What φ is trained on, per window, averaged over tasks.

    `final`: f(θ_T), the definition. `sum`: Σ_t f(θ_t). `log`: Σ_t ln(f(θ_t) + floor), which weighs all scales of loss
    down to the floor alike.

    A loss above the `ceiling`, or one that is not finite, counts as the ceiling and adds nothing to the gradient of
    backpropagation.
    """

    kind: Literal["final", "sum", "log"] = "final"
    floor: PositiveFloat = 1e-6
    ceiling: PositiveFloat = 1e10


class GradientEstimator(Table):
    """How ∇_φL is estimated: by backpropagation, or by evolution strategies from pairs φ ± ε, ε ~ N(0, σ²).

    `second_order` keeps ∂∇_t/∂φ, which makes backpropagation exact. `sigma` and `pairs`, for each task, are of the
    evolution strategies.
    """

    estimator: Literal["backpropagation", "es", "pes", "nres"] = "backpropagation"
    second_order: bool = True
    sigma: PositiveFloat = 0.05
    pairs: Annotated[int, Field(ge=1, le=10_000)] = 1

    @field_validator("second_order")
    @classmethod
    def _is_of_backpropagation(cls, value: bool, info: ValidationInfo) -> bool:
        estimator = info.data.get("estimator", "backpropagation")
        if estimator != "backpropagation":
            raise ValueError(f"only backpropagation has it, and gradient.estimator is {estimator!r}; leave it out")
        return value

    @field_validator("sigma", "pairs")
    @classmethod
    def _is_of_evolution_strategies(cls, value: float, info: ValidationInfo) -> float:
        if info.data.get("estimator") == "backpropagation":
            raise ValueError("backpropagation perturbs nothing; leave it out, or take es, pes or nres as the estimator")
        return value

    @model_serializer(mode="wrap")
    def _own_keys(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        others = {"sigma", "pairs"} if self.estimator == "backpropagation" else {"second_order"}
        return {name: value for name, value in handler(self).items() if name not in others}


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
    outer_steps: Count = 1000
    tasks_per_outer_step: Tasks = 16


class Checkpoints(Table):
    """Every so many outer steps φ is validated on held-out tasks and kept."""

    every: Count = 200


def nearest_divisor(number: int, near: int) -> int:
    """The divisor of `number` that is nearest to `near`, the smaller of two."""
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda divisor: abs(divisor - near))
