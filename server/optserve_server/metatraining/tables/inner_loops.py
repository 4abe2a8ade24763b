"""How long the inner loops are, and what becomes of their losses."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from optserve_server.descriptions import Table
from optserve_server.metatraining.tables.numbers import NonNegativeFloat, PositiveFloat, Steps

_SINGLE, _TABLE = "(single)", "(table)"  # tags in brackets are no part of a key's path


def _tag(value: Any) -> str:
    return _TABLE if isinstance(value, Mapping | Table) else _SINGLE


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

    The windows of a fixed T are all of one length; of a T that is drawn, the last may be shorter. `trajectories` are
    under way at a time, at different steps, and an outer step takes `advance` of them one window further.
    """

    steps: Horizons = 100
    truncation: Steps | None = None
    trajectories: Annotated[int, Field(ge=1, le=10_000)] = 1
    advance: Annotated[int, Field(ge=1, le=10_000)] = 1

    @field_validator("truncation")
    @classmethod
    def _divides(cls, value: int | None, info: ValidationInfo) -> int | None:
        steps = info.data.get("steps")
        if value is not None and isinstance(steps, int) and steps % value:
            near = _nearest_divisor(steps, value)
            raise ValueError(f"{value} does not divide unroll.steps, {steps}; {near} does")
        return value

    @field_validator("advance")
    @classmethod
    def _is_of_the_trajectories(cls, value: int, info: ValidationInfo) -> int:
        if value > info.data.get("trajectories", value):
            raise ValueError(f"{value} is more than unroll.trajectories, {info.data['trajectories']}")
        return value

    @property
    def longest(self) -> int:
        """The greatest T that a trajectory can have."""
        return self.steps.high if isinstance(self.steps, HorizonRange) else self.steps

    @property
    def window(self) -> int:
        """Steps of the longest window."""
        return min(self.truncation or self.longest, self.longest)


class Growth(Table):
    """w_t = first + (last − first) (t/T)^power."""

    first: NonNegativeFloat
    last: NonNegativeFloat
    power: Annotated[float, Field(gt=0, le=100)] = 1.0


Weights = Annotated[
    Annotated[tuple[NonNegativeFloat, ...], Tag(_SINGLE)] | Annotated[Growth, Tag(_TABLE)],
    Discriminator(_tag),
]
"""w_1 … w_T: one number for each step, or how they grow."""


class MetaLoss(Table):
    """What φ is trained on, per window, averaged over tasks.

    `final`: f(θ_T), the definition. `sum`: Σ_t w_t f(θ_t). `log`: Σ_t w_t ln(f(θ_t) + floor), which weighs all scales
    of loss down to the floor alike. With `relative` f(θ_t)/f(θ_0) is in the place of f(θ_t), so that all tasks count
    alike; it is for losses above 0.

    A loss above the `ceiling`, or one that is not finite, counts as the ceiling and adds nothing to the gradient of
    backpropagation.
    """

    kind: Literal["final", "sum", "log"] = "final"
    weights: Weights | None = None
    relative: bool = False
    floor: PositiveFloat = 1e-6
    ceiling: PositiveFloat = 1e10

    @field_validator("weights")
    @classmethod
    def _weigh_a_sum(
        cls, value: tuple[float, ...] | Growth | None, info: ValidationInfo
    ) -> tuple[float, ...] | Growth | None:
        if value is not None and info.data.get("kind") == "final":
            raise ValueError("the final loss is one number; take sum or log as meta_loss.kind")
        if value is not None and not any((value.first, value.last) if isinstance(value, Growth) else value):
            raise ValueError("all weights are 0")
        return value


def _nearest_divisor(number: int, near: int) -> int:
    """The divisor of `number` that is nearest to `near`, the smaller of two."""
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda divisor: abs(divisor - near))
