"""The tables of a recipe, each with the checks that need no other table."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
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
from optserve_server.descriptions import DescriptionError, Table
from optserve_server.tasks import TaskFamily

Count = Annotated[int, Field(ge=1, le=10**9)]
Steps = Annotated[int, Field(ge=1, le=10**6)]
Tasks = Annotated[int, Field(ge=1, le=10**6)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]

_SINGLE, _TABLE = "(single)", "(table)"  # tags in brackets are no part of a key's path


def _tag(value: Any) -> str:
    return _TABLE if isinstance(value, Mapping | Table) else _SINGLE


class TaskShare(Table):
    """One family in the distribution of tasks, with its weight.

    Each trajectory draws one of the `choices` for each parameter that has any, all equally probable.
    """

    family: str
    weight: PositiveFloat = 1.0
    parameters: dict[str, Any] = Field(default_factory=dict)
    choices: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(default_factory=dict)

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

    @field_validator("choices")
    @classmethod
    def _choices_are_the_familys(
        cls, value: dict[str, tuple[Any, ...]], info: ValidationInfo
    ) -> dict[str, tuple[Any, ...]]:
        if "parameters" in info.data:
            family, given = info.data["family"], info.data["parameters"]
            first = given | {name: of_name[0] for name, of_name in value.items()}
            for name, of_name in value.items():
                if name in given:
                    raise ValueError(f"{name!r} is one of the parameters too; leave one of the two out")
                for one in of_name:
                    tasks.build(family, first | {name: one})
        return value

    def build(self) -> TaskFamily:
        """The family with these parameters, and the first of all choices."""
        return tasks.build(self.family, self.parameters | {name: values[0] for name, values in self.choices.items()})

    def drawn(self, generator: torch.Generator) -> "TaskShare":
        """The same with one of each parameter's choices among its parameters."""
        if not self.choices:
            return self
        numbers = torch.rand(len(self.choices), generator=generator).tolist()
        chosen = {
            name: values[int(number * len(values))]
            for (name, values), number in zip(self.choices.items(), numbers, strict=True)
        }
        return self.with_parameters(self.parameters | chosen)

    def with_parameters(self, parameters: dict[str, Any]) -> "TaskShare":
        """The same with these parameters and no choice."""
        return self.model_copy(update={"parameters": parameters, "choices": {}})


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


class GradientEstimator(Table):
    """How ∇_φL is estimated: by backpropagation, or by evolution strategies from pairs φ ± ε, ε ~ N(0, σ²).

    `second_order` keeps ∂∇_t/∂φ, which makes backpropagation exact. `sigma` and `pairs`, for each task, are of the
    evolution strategies; σ goes linearly to `final_sigma` over the outer steps, where that is given. With `unit_norm`
    the gradient of each group, the tasks of one family in one trajectory, is scaled to norm 1 before the mean, so that
    no family drowns the others.
    """

    estimator: Literal["backpropagation", "es", "pes", "nres"] = "backpropagation"
    second_order: bool = True
    sigma: PositiveFloat = 0.05
    final_sigma: PositiveFloat | None = None
    pairs: Annotated[int, Field(ge=1, le=10_000)] = 1
    unit_norm: bool = False

    @field_validator("second_order")
    @classmethod
    def _is_of_backpropagation(cls, value: bool, info: ValidationInfo) -> bool:
        estimator = info.data.get("estimator", "backpropagation")
        if estimator != "backpropagation":
            raise ValueError(f"only backpropagation has it, and gradient.estimator is {estimator!r}; leave it out")
        return value

    @field_validator("sigma", "final_sigma", "pairs")
    @classmethod
    def _is_of_evolution_strategies(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("estimator") == "backpropagation":
            raise ValueError("backpropagation perturbs nothing; leave it out, or take es, pes or nres as the estimator")
        return value

    @model_serializer(mode="wrap")
    def _own_keys(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        others = {"sigma", "final_sigma", "pairs"} if self.estimator == "backpropagation" else {"second_order"}
        return {name: value for name, value in handler(self).items() if name not in others}

    def sigma_at(self, share: float) -> float:
        """σ after this share of the outer steps."""
        return self.sigma if self.final_sigma is None else self.sigma + share * (self.final_sigma - self.sigma)


class Augmentation(Table):
    """What makes tasks more various: other units, and optimizers that are told less or something else.

    Some tasks become f(c ⊙ z), with `probability` for each kind: random coordinate scaling (Lv et al. 2017, section
    4.2) draws ln c ~ U[−range, range] for each coordinate, `task_scaling` once for all of a task's.

    What the optimizer is told, but not what it is judged by: in the share `hidden_loss` of the trajectories no loss,
    and in `hidden_horizon` no T; in the share `loss_offset` of the tasks the loss plus a constant, U[−1, 2] times
    |f(θ_0)|; in the share `gradient_scaling` ∇_t times a constant, whose logarithm is U[−18, 18].
    """

    coordinate_scaling: Annotated[float, Field(ge=0, le=10)] = 0.0
    task_scaling: Annotated[float, Field(ge=0, le=10)] = 0.0
    probability: Share = 0.5
    hidden_loss: Share = 0.0
    hidden_horizon: Share = 0.0
    loss_offset: Share = 0.0
    gradient_scaling: Share = 0.0


class Imitation(Table):
    """Imitation of Adam at the start (Chen et al. 2020, arXiv 2010.09089, section 3.2).

    To the meta-loss comes λ times the mean of ((g_t − a_t)/α)² over a window's steps and coordinates, a_t being the
    update of Adam at `learning_rate` α on the same gradients. λ falls from `weight` to 0 in so many outer steps.
    """

    weight: PositiveFloat = 1.0
    learning_rate: PositiveFloat = 0.01
    outer_steps: Count = 100

    def weight_at(self, outer_step: int) -> float:
        """λ at the `outer_step`-th outer step, counted from 1."""
        return self.weight * max(0.0, 1 - (outer_step - 1) / self.outer_steps)


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


class Validation(Table):
    """What φ is validated on, where that is not held-out tasks of the recipe's own families.

    The held-out loss is then the geometric mean, over `tasks` and over the T's of `horizons`, of f(θ_T)/f(θ_0), with
    `floor` added to both and the quotient at most the meta-loss's ceiling; each has `instances` tasks. Of a family that
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


def _nearest_divisor(number: int, near: int) -> int:
    """The divisor of `number` that is nearest to `near`, the smaller of two."""
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda divisor: abs(divisor - near))
