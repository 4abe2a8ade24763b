"""What validations decide: the curriculum over the horizon (Chen et al. 2020, arXiv 2010.09089), and a run's end."""

import math
from dataclasses import dataclass
from typing import Self

from optserve_server.metatraining.recipes import Recipe
from optserve_server.metatraining.training_checkpoints import State


@dataclass
class Patience:
    """Ends a run when so many validations, its `most`, have brought nothing better than the `best`; None: never."""

    most: int | None
    best: float = math.inf
    waited: int = 0

    @property
    def over(self) -> bool:
        """Whether there is no more."""
        return self.most is not None and self.waited >= self.most

    def judge(self, loss: float) -> None:
        """Take in one more validation."""
        self.best, self.waited = (loss, 0) if loss < self.best else (self.best, self.waited + 1)

    def renew(self) -> None:
        """Wait as long again, where it has ended a run that is to go on after all."""
        if self.over:
            self.waited = 0

    def to_state(self) -> State:
        """Where it stands, for a training checkpoint."""
        return {"best": None if math.isinf(self.best) else self.best, "waited": self.waited}

    def restore(self, state: State) -> None:
        """Go to where it stood."""
        self.best, self.waited = math.inf if state["best"] is None else state["best"], state["waited"]


@dataclass
class Curriculum:
    """Which T is trained on: `horizons[stage]`, and then the next, when L at that next T has stopped improving.

    `best` is the lowest L at the next T in this stage, and `kept` what the outer loop was then; `waited` counts the
    validations since. Without a curriculum there is one stage, the recipe's longest T.
    """

    horizons: tuple[int, ...]
    patience: int
    stage: int = 0
    best: float = math.inf
    waited: int = 0
    kept: State = None

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        """The recipe's, at its first stage."""
        if recipe.curriculum is None:
            return cls((recipe.unroll.longest,), 0)
        return cls((*recipe.curriculum.steps, recipe.unroll.longest), recipe.curriculum.patience)

    @property
    def horizon(self) -> int:
        """The longest T of the trajectories that begin now."""
        return self.horizons[self.stage]

    @property
    def next_horizon(self) -> int | None:
        """The longest T of the next stage; none after the last."""
        return self.horizons[self.stage + 1] if self.stage + 1 < len(self.horizons) else None

    @property
    def over(self) -> bool:
        """Whether this stage has brought nothing better for long enough."""
        return self.next_horizon is not None and self.waited >= self.patience

    def judge(self, loss: float, outer_loop: State) -> None:
        """Take in L at the next T, and what the outer loop is now."""
        if loss < self.best:
            self.best, self.waited, self.kept = loss, 0, outer_loop
        else:
            self.waited += 1

    def go_on(self) -> State:
        """Begin the next stage; what the outer loop was at its best in this one."""
        kept = self.kept
        self.stage, self.best, self.waited, self.kept = self.stage + 1, math.inf, 0, None
        return kept

    def to_state(self) -> State:
        """Where it stands, for a training checkpoint."""
        best = None if math.isinf(self.best) else self.best
        return {"stage": self.stage, "best": best, "waited": self.waited, "kept": self.kept}

    def restore(self, state: State) -> None:
        """Go to where it stood."""
        self.stage, self.waited, self.kept = state["stage"], state["waited"], state["kept"]
        self.best = math.inf if state["best"] is None else state["best"]
