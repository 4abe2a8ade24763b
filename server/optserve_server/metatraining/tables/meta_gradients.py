"""How the meta-gradient is estimated, and what is added to it."""

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, ValidationInfo, field_validator, model_serializer

from optserve_server.descriptions import Table
from optserve_server.metatraining.tables.numbers import Count, PositiveFloat


class GradientEstimator(Table):
    """How ∇_φL is estimated: by backpropagation, or by evolution strategies from pairs φ ± ε, ε ~ N(0, σ²).

    `second_order` keeps ∂∇_t/∂φ, which makes backpropagation exact. `sigma` and `pairs`, for each task, are of the
    evolution strategies; σ goes linearly to `final_sigma` over the outer steps, where that is given. With `unit_norm`
    the gradient of each group, the tasks of one family in one trajectory, is scaled to norm 1 before the mean, and
    then by the mean weight of the window's steps, so that no family drowns the others.
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
