"""The outer loop: φ ← φ − β ∇_φL(φ), one window of one trajectory after another."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from optserve_server.metatraining import training_checkpoints
from optserve_server.metatraining.crew import Crew, crew_size
from optserve_server.metatraining.curriculum import Curriculum, Patience
from optserve_server.metatraining.descent import Descent
from optserve_server.metatraining.distribution import Generators
from optserve_server.metatraining.recipes import Recipe, require_same
from optserve_server.metatraining.trajectory_pool import Advance, Pool, TrajectoryPool, combined
from optserve_server.metatraining.validation import held_out_loss, held_out_meta_loss

_PARTS = {"recipe", "outer_step", "descent", "curriculum", "patience", "generators", "trajectories"}
"""Of a training checkpoint."""


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
    `non_finite` counts the tasks with a trajectory that was not finite and has the ceiling for its loss. Of several
    trajectories `step` and `horizon` are those of the last.
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
        self,
        recipe: Recipe,
        phi: Mapping[str, Tensor] | None = None,
        device: torch.device | str | None = None,
        processes: int = 1,
    ) -> None:
        """Start from `phi`, or from the architecture's random φ_0; on cuda where there is one, else on the CPU.

        There several trajectories are shared out among so many `processes`, to the same bits with any number.
        """
        self.recipe = recipe
        self.optimizer = recipe.optimizer()
        self.outer_step = 0
        device = _device(device)
        self._generators = Generators.seeded(recipe.seed, device)
        initial = self.optimizer.initial_phi(self._generators.host)
        self._descent = Descent(recipe.meta_optimizer, phi or initial, device)
        self._curriculum = Curriculum.of(recipe)
        self._patience = Patience(None if recipe.validation is None else recipe.validation.patience)
        crew = crew_size(recipe, processes) if device.type == "cpu" else 1
        self._pool: Pool = Crew(recipe, crew) if crew > 1 else TrajectoryPool(recipe, self.optimizer, self._generators)

    @property
    def phi(self) -> dict[str, Tensor]:
        """φ, as it is."""
        return self._descent.phi

    @property
    def averaged_phi(self) -> dict[str, Tensor]:
        """The running mean of φ, which is what a version holds."""
        return self._descent.averaged_phi

    def __iter__(self) -> Iterator[Progress]:
        """Make the outer steps that the recipe has left, one `Progress` each; fewer where its patience ends.

        Raises:
            MetaTrainingError: naming the outer step and the family of tasks.
        """
        while self.outer_step < self.recipe.meta_optimizer.outer_steps and not self._patience.over:
            progress = self._outer_step(self.outer_step + 1)
            self.outer_step += 1
            yield progress

    def checkpoint(self) -> bytes:
        """A training checkpoint after the present outer step: what `resume` goes on from, bit for bit."""
        return training_checkpoints.encode(
            {
                "recipe": self.recipe.model_dump(mode="json"),
                "outer_step": self.outer_step,
                "descent": self._descent.to_state(),
                "curriculum": self._curriculum.to_state(),
                "patience": self._patience.to_state(),
                "generators": self._generators.to_state(),
                "trajectories": self._pool.to_state(),
            }
        )

    def close(self) -> None:
        """End the processes that it has started."""
        self._pool.close()

    @classmethod
    def resume(cls, recipe: Recipe, data: bytes, device: torch.device | str | None = None, processes: int = 1) -> Self:
        """The loop whose training checkpoint `data` is; `recipe` is its recipe, with as many outer steps or more.

        With more, a loop that its patience has ended goes on too, and is patient once more.

        Raises:
            ValueError: no training checkpoint, or one of another recipe; names the key that differs.
        """
        state = training_checkpoints.decode(data, _device(device))
        if not isinstance(state, dict) or not set(state) >= _PARTS:
            raise ValueError(f"the training checkpoint is of no run: it has not {', '.join(sorted(_PARTS))}")
        require_same(recipe, state["recipe"])
        loop = cls(recipe, state["descent"]["phi"], device, processes)
        loop.outer_step = state["outer_step"]
        loop._descent.restore(state["descent"])
        loop._curriculum.restore(state["curriculum"])
        loop._patience.restore(state["patience"])
        if recipe.meta_optimizer.outer_steps > state["recipe"]["meta_optimizer"]["outer_steps"]:
            loop._patience.renew()
        loop._generators.restore(state["generators"])
        loop._pool.restore(state["trajectories"])
        return loop

    def _outer_step(self, outer_step: int) -> Progress:
        if self._curriculum.over:
            self._descent.restore(self._curriculum.go_on())
            self._pool.clear()
        windows = self._pool.windows(outer_step, self.phi, self._curriculum.horizon)
        advance = combined(windows, unit_norm=self.recipe.gradient.unit_norm)
        estimate, norm = advance.estimate, self._descent.clip(advance.estimate.gradients)
        # The only wait for the device in an outer step.
        measured = torch.stack([estimate.meta_loss, estimate.loss, norm, estimate.non_finite, estimate.lost])
        meta_loss, loss, gradient_norm, non_finite, lost = measured.tolist()
        _require_finite(outer_step, advance, gradient_norm, lost)
        self._descent.move(outer_step)
        held_out = self._validate(outer_step)
        return Progress(
            outer_step, meta_loss, loss, gradient_norm, advance.step, advance.horizon, held_out, int(non_finite)
        )

    def _validate(self, outer_step: int) -> float | None:
        """The held-out loss, where it is time; the curriculum looks at L at its own next T."""
        if outer_step % self.recipe.checkpoints.every and outer_step < self.recipe.meta_optimizer.outer_steps:
            return None
        loss = held_out_loss(self.recipe, self.optimizer, self.averaged_phi)
        self._patience.judge(loss)
        following = self._curriculum.next_horizon
        if following is not None:
            same = following == self.recipe.unroll.longest and self.recipe.validation is None
            judged = loss if same else held_out_meta_loss(self.recipe, self.optimizer, self.averaged_phi, following)
            self._curriculum.judge(judged, self._descent.to_state())
        return loss


def _device(device: torch.device | str | None) -> torch.device:
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _require_finite(outer_step: int, advance: Advance, norm: float, lost: float) -> None:
    where = f"inner step {advance.step} of {advance.horizon}"
    mend = (
        "lower meta_optimizer.learning_rate, set meta_optimizer.clip_norm, or shorten unroll.steps or unroll.truncation"
    )
    if lost == advance.tasks:
        raise MetaTrainingError(outer_step, advance.families, f"no trajectory is finite at {where}; {mend}")
    if not math.isfinite(norm):
        raise MetaTrainingError(
            outer_step, advance.families, f"the norm of the meta-gradient is {norm:g} at {where}; {mend}"
        )
