"""The outer loop: φ ← φ − β ∇_φL(φ), one window of one trajectory after another."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from optserve_server.metatraining import estimators, training_checkpoints
from optserve_server.metatraining.distribution import Generators, Trajectory, draw_trajectory
from optserve_server.metatraining.estimators import MetaGradient, Window
from optserve_server.metatraining.recipes import Recipe, require_same
from optserve_server.metatraining.tables import MetaOptimizer
from optserve_server.metatraining.validation import held_out_meta_loss


class MetaTrainingError(ArithmeticError):
    """The meta-loss or its gradient is no longer finite: at `outer_step`, on tasks of `family`."""

    def __init__(self, outer_step: int, family: str, message: str) -> None:
        super().__init__(f"outer step {outer_step}, {family}: {message}")
        self.outer_step = outer_step
        self.family = family


@dataclass(frozen=True, slots=True)
class Progress:
    """One outer step: the `outer_step`-th update of φ, made after inner step `step` of `horizon`.

    `meta_loss` and `meta_gradient_norm` (before clipping) are of the recipe's meta-loss over the window; `loss` is the
    tasks' mean f at its end. `meta_loss_held_out` is L(φ) on held-out tasks, where φ was validated after this step.
    `non_finite` counts the tasks whose trajectory was not finite: each has the ceiling for its loss.
    """

    outer_step: int
    meta_loss: float
    loss: float
    meta_gradient_norm: float
    step: int
    horizon: int
    meta_loss_held_out: float | None = None
    non_finite: int = 0


class OuterLoop:
    """Meta-trains φ by a recipe. Iterate over it for a `Progress` an outer step.

    `outer_step` counts the outer steps made. `phi` is the present φ, and `averaged_phi` the running mean that is
    validated: φ itself where nothing is averaged. All randomness comes from generators seeded by the recipe, so that
    a run is the same bit for bit, whether it was interrupted and resumed or not.
    """

    def __init__(
        self, recipe: Recipe, phi: dict[str, Tensor] | None = None, device: torch.device | str | None = None
    ) -> None:
        """Start from `phi`, or from the architecture's random φ_0; on cuda where there is one, else on the CPU."""
        self.recipe = recipe
        self.device = _device(device)
        self.optimizer = recipe.optimizer()
        self.estimator = estimators.build(recipe)
        self.generators = Generators.seeded(recipe.seed, self.device)
        initial = self.optimizer.initial_phi(self.generators.host)
        self.phi = {
            name: weight.to(self.device, copy=True).requires_grad_() for name, weight in (phi or initial).items()
        }
        self.averaged_phi = {name: weight.detach().clone() for name, weight in self.phi.items()}
        self._meta_optimizer = _meta_optimizer(recipe.meta_optimizer, list(self.phi.values()))
        self._trajectory: Trajectory | None = None
        self.outer_step = 0

    def __iter__(self) -> Iterator[Progress]:
        """Make the outer steps that the recipe has left, one `Progress` each.

        Raises:
            MetaTrainingError: naming the outer step and the family of tasks.
        """
        while self.outer_step < self.recipe.meta_optimizer.outer_steps:
            progress = self._outer_step(self.outer_step + 1)
            self.outer_step += 1
            yield progress

    def checkpoint(self) -> bytes:
        """A training checkpoint after the present outer step: what `resume` goes on from, bit for bit."""
        return training_checkpoints.encode(
            {
                "recipe": self.recipe.model_dump(mode="json"),
                "outer_step": self.outer_step,
                "phi": self.phi,
                "averaged_phi": self.averaged_phi,
                "meta_optimizer": [self._meta_optimizer.state[weight] for weight in self.phi.values()],
                "generators": self.generators.to_state(),
                "trajectory": None if self._trajectory is None else self._trajectory.to_state(),
            }
        )

    @classmethod
    def resume(cls, recipe: Recipe, data: bytes, device: torch.device | str | None = None) -> Self:
        """The loop whose training checkpoint `data` is; `recipe` is its recipe, with as many outer steps or more.

        Raises:
            ValueError: no training checkpoint, or one of another recipe; names the key that differs.
        """
        state = training_checkpoints.decode(data, _device(device))
        require_same(recipe, state["recipe"])
        loop = cls(recipe, state["phi"], device)
        loop.outer_step, loop.averaged_phi = state["outer_step"], state["averaged_phi"]
        groups = loop._meta_optimizer.state_dict()["param_groups"]
        loop._meta_optimizer.load_state_dict(
            {"state": dict(enumerate(state["meta_optimizer"])), "param_groups": groups}
        )
        loop.generators.restore(state["generators"])
        if state["trajectory"] is not None:
            loop._trajectory = Trajectory.from_state(recipe, state["trajectory"])
        return loop

    def _outer_step(self, outer_step: int) -> Progress:
        if self._trajectory is None or self._trajectory.finished:
            self._trajectory = self._begin()
        trajectory = self._trajectory
        estimate = self._advance(trajectory)
        norm = self._clip(estimate.gradients)
        # The only wait for the device in an outer step.
        measured = torch.stack([estimate.meta_loss, estimate.loss, norm, estimate.non_finite, estimate.lost])
        meta_loss, loss, gradient_norm, non_finite, lost = measured.tolist()
        self._require_finite(outer_step, trajectory, gradient_norm, lost)
        self._update_phi(outer_step)
        return Progress(
            outer_step,
            meta_loss,
            loss,
            gradient_norm,
            trajectory.step,
            trajectory.horizon,
            self._validate(outer_step),
            int(non_finite),
        )

    def _begin(self) -> Trajectory:
        trajectory = draw_trajectory(self.recipe, self.optimizer, self.generators)
        trajectory.groups = [
            self.estimator.begin(group, self.optimizer, self._detached_phi(), self.generators.device)
            for group in trajectory.groups
        ]
        return trajectory

    def _detached_phi(self) -> dict[str, Tensor]:
        return {name: weight.detach() for name, weight in self.phi.items()}

    def _advance(self, trajectory: Trajectory) -> MetaGradient:
        """The meta-gradient of the trajectory's next window, averaged over the tasks of all groups."""
        steps = min(self.recipe.unroll.window, trajectory.horizon - trajectory.step)
        window = Window(trajectory.step, steps, trajectory.horizon)
        phi, generator = self._detached_phi(), self.generators.device
        estimates = [
            (group.tasks, self.estimator.estimate(self.optimizer, phi, group, window, generator))
            for group in trajectory.groups
        ]
        trajectory.step += steps
        return _mean(estimates)

    def _require_finite(self, outer_step: int, trajectory: Trajectory, norm: float, lost: float) -> None:
        where = f"inner step {trajectory.step} of {trajectory.horizon}"
        mend = (
            "lower meta_optimizer.learning_rate, set meta_optimizer.clip_norm, or shorten unroll.steps or "
            "unroll.truncation"
        )
        if lost == trajectory.tasks:
            raise MetaTrainingError(
                outer_step, trajectory.families, f"no trajectory is finite any more at {where}; {mend}"
            )
        if not math.isfinite(norm):
            raise MetaTrainingError(
                outer_step, trajectory.families, f"the norm of the meta-gradient is {norm:g} at {where}; {mend}"
            )

    def _validate(self, outer_step: int) -> float | None:
        if outer_step % self.recipe.checkpoints.every and outer_step < self.recipe.meta_optimizer.outer_steps:
            return None
        return held_out_meta_loss(self.recipe, self.optimizer, self.averaged_phi, self.recipe.unroll.longest)

    def _clip(self, gradients: dict[str, Tensor]) -> Tensor:
        """Hand the meta-gradient to the meta-optimizer, cut to the recipe's norm; the norm before that."""
        for name, weight in self.phi.items():
            weight.grad = gradients[name]
        return torch.nn.utils.clip_grad_norm_(self.phi.values(), self.recipe.meta_optimizer.clip_norm or math.inf)

    def _update_phi(self, outer_step: int) -> None:
        settings = self.recipe.meta_optimizer
        self._meta_optimizer.param_groups[0]["lr"] = learning_rate(settings, outer_step)
        self._meta_optimizer.step()
        # From the first φ on a plain mean, until enough of them have come for the decay that was asked for.
        decay = min(settings.averaging, 1 - 1 / outer_step)
        for name, weight in self.phi.items():
            self.averaged_phi[name].lerp_(weight.detach(), 1 - decay)


def learning_rate(settings: MetaOptimizer, outer_step: int) -> float:
    """β of the `outer_step`-th outer step, counted from 1; `cosine` falls from the full rate to 0."""
    if settings.schedule == "constant":
        return settings.learning_rate
    share = (outer_step - 1) / settings.outer_steps
    return settings.learning_rate * (1 + math.cos(math.pi * share)) / 2


def _device(device: torch.device | str | None) -> torch.device:
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _mean(estimates: list[tuple[int, MetaGradient]]) -> MetaGradient:
    """The mean of the groups' estimates, weighted by their numbers of tasks; of tasks that are not finite, the sum."""
    tasks = sum(count for count, _ in estimates)

    def mean(values: list[Tensor]) -> Tensor:
        weighted = [value * (count / tasks) for value, (count, _) in zip(values, estimates, strict=True)]
        return torch.stack(weighted).sum(dim=0)

    found = [estimate for _, estimate in estimates]
    return MetaGradient(
        {name: mean([estimate.gradients[name] for estimate in found]) for name in found[0].gradients},
        mean([estimate.meta_loss for estimate in found]),
        mean([estimate.loss for estimate in found]),
        torch.stack([estimate.non_finite for estimate in found]).sum(),
        torch.stack([estimate.lost for estimate in found]).sum(),
    )


def _meta_optimizer(settings: MetaOptimizer, phi: list[Tensor]) -> torch.optim.Optimizer:
    if settings.kind == "adam":
        return torch.optim.Adam(phi, lr=settings.learning_rate)
    return torch.optim.SGD(phi, lr=settings.learning_rate)
