"""The outer loop: φ ← φ − β ∇_φL(φ), one window of one trajectory after another."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from optserve_server.metatraining import training_checkpoints
from optserve_server.metatraining.estimators.backpropagation import backpropagation
from optserve_server.metatraining.recipes import MetaOptimizer, Recipe
from optserve_server.metatraining.trajectories import Trajectory, draw_trajectory
from optserve_server.metatraining.validation import held_out_meta_loss


class MetaTrainingError(ArithmeticError):
    """The meta-loss or its gradient is no longer finite."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One outer step: the `outer_step`-th update of φ, made after inner step `step` of `horizon`.

    `meta_loss` and `meta_gradient_norm` (before clipping) are of the recipe's meta-loss over the window; `loss` is the
    tasks' mean f at its end. `meta_loss_held_out` is L(φ) on held-out tasks, where φ was validated after this step.
    """

    outer_step: int
    meta_loss: float
    loss: float
    meta_gradient_norm: float
    step: int
    horizon: int
    meta_loss_held_out: float | None = None


class OuterLoop:
    """Meta-trains φ by a recipe. Iterate over it for a `Progress` an outer step.

    `outer_step` counts the outer steps made. `phi` is the present φ, and `averaged_phi` the running mean that is
    validated: φ itself where nothing is averaged. All randomness comes from one generator seeded by the recipe, so that
    a run is the same bit for bit, whether it was interrupted and resumed or not.
    """

    def __init__(self, recipe: Recipe, phi: dict[str, Tensor] | None = None) -> None:
        """Start from `phi`, or from the architecture's random φ_0."""
        self.recipe = recipe
        self.optimizer = recipe.optimizer()
        self.generator = torch.Generator().manual_seed(recipe.seed)
        initial = self.optimizer.initial_phi(self.generator)
        self.phi = {name: weight.clone().requires_grad_() for name, weight in (phi or initial).items()}
        self.averaged_phi = {name: weight.detach().clone() for name, weight in self.phi.items()}
        self._meta_optimizer = _meta_optimizer(recipe.meta_optimizer, list(self.phi.values()))
        self._trajectory: Trajectory | None = None
        self.outer_step = 0

    def __iter__(self) -> Iterator[Progress]:
        """Make the outer steps that the recipe has left, one `Progress` each.

        Raises:
            MetaTrainingError: naming the outer step.
        """
        while self.outer_step < self.recipe.meta_optimizer.outer_steps:
            progress = self._outer_step(self.outer_step + 1)
            self.outer_step += 1
            yield progress

    def checkpoint(self) -> bytes:
        """A training checkpoint after the present outer step: what `resume` goes on from, bit for bit."""
        return training_checkpoints.encode(
            {
                "outer_step": self.outer_step,
                "phi": self.phi,
                "averaged_phi": self.averaged_phi,
                "meta_optimizer": [self._meta_optimizer.state[weight] for weight in self.phi.values()],
                "generator": self.generator.get_state(),
                "trajectory": None if self._trajectory is None else self._trajectory.to_state(),
            }
        )

    @classmethod
    def resume(cls, recipe: Recipe, data: bytes) -> Self:
        """The loop whose training checkpoint `data` is; `recipe` is its recipe, with as many outer steps or more.

        Raises:
            ValueError: no training checkpoint, or not of this recipe's architecture.
        """
        state = training_checkpoints.decode(data, torch.device("cpu"))
        loop = cls(recipe, state["phi"])
        loop.outer_step, loop.averaged_phi = state["outer_step"], state["averaged_phi"]
        for weight, moments in zip(loop.phi.values(), state["meta_optimizer"], strict=True):
            loop._meta_optimizer.state[weight] = moments
        loop.generator.set_state(state["generator"])
        if state["trajectory"] is not None:
            loop._trajectory = Trajectory.from_state(recipe.tasks, state["trajectory"])
        return loop

    def _outer_step(self, outer_step: int) -> Progress:
        if self._trajectory is None or self._trajectory.finished:
            self._trajectory = draw_trajectory(self.recipe, self.optimizer, self.generator)
        trajectory = self._trajectory
        estimate = backpropagation(self.recipe, self.optimizer, self.phi, trajectory, self.generator)
        norm = self._update_phi(outer_step, estimate.gradients)
        if not (math.isfinite(estimate.meta_loss) and math.isfinite(norm)):
            raise MetaTrainingError(
                f"outer step {outer_step}, inner step {trajectory.step} of {trajectory.horizon}: the meta-loss is "
                f"{estimate.meta_loss:g} and the norm of its gradient {norm:g}; lower meta_optimizer.learning_rate, "
                "set meta_optimizer.clip_norm, or shorten unroll.truncation"
            )
        return Progress(
            outer_step,
            estimate.meta_loss,
            estimate.loss,
            norm,
            trajectory.step,
            trajectory.horizon,
            self._validate(outer_step),
        )

    def _validate(self, outer_step: int) -> float | None:
        if outer_step % self.recipe.checkpoints.every and outer_step < self.recipe.meta_optimizer.outer_steps:
            return None
        loss = held_out_meta_loss(self.recipe, self.optimizer, self.averaged_phi)
        if not math.isfinite(loss):
            raise MetaTrainingError(
                f"outer step {outer_step}: the loss on held-out tasks is {loss:g}; lower meta_optimizer.learning_rate, "
                "or let unroll.steps reach as far in training as in validation"
            )
        return loss

    def _update_phi(self, outer_step: int, gradients: dict[str, Tensor]) -> float:
        settings = self.recipe.meta_optimizer
        for name, weight in self.phi.items():
            weight.grad = gradients[name]
        norm = torch.nn.utils.clip_grad_norm_(self.phi.values(), settings.clip_norm or math.inf).item()
        self._meta_optimizer.param_groups[0]["lr"] = learning_rate(settings, outer_step)
        if math.isfinite(norm):
            self._meta_optimizer.step()
        # From the first φ on a plain mean, until enough of them have come for the decay that was asked for.
        decay = min(settings.averaging, 1 - 1 / outer_step)
        for name, weight in self.phi.items():
            self.averaged_phi[name].lerp_(weight.detach(), 1 - decay)
        return norm


def learning_rate(settings: MetaOptimizer, outer_step: int) -> float:
    """β of the `outer_step`-th outer step, counted from 1; `cosine` falls from the full rate to 0."""
    if settings.schedule == "constant":
        return settings.learning_rate
    share = (outer_step - 1) / settings.outer_steps
    return settings.learning_rate * (1 + math.cos(math.pi * share)) / 2


def _meta_optimizer(settings: MetaOptimizer, phi: list[Tensor]) -> torch.optim.Optimizer:
    if settings.kind == "adam":
        return torch.optim.Adam(phi, lr=settings.learning_rate)
    return torch.optim.SGD(phi, lr=settings.learning_rate)
