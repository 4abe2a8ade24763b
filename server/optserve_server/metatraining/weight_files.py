"""The file a meta-training run leaves: φ, and in its metadata everything needed to produce it again."""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Self

import torch
from torch import Tensor

from optserve_server.metatraining.outer_loop import OuterLoop, Progress
from optserve_server.metatraining.recipes import Recipe
from optserve_server.metatraining.training_checkpoints import State
from optserve_server.optimizers import weights


@dataclass
class Record:
    """What a run has shown so far: the meta-loss curve, and the best φ by its loss on held-out tasks."""

    meta_losses: list[float] = field(default_factory=list)
    best_phi: dict[str, Tensor] | None = None
    best_outer_step: int = 0
    best_meta_loss_held_out: float = float("inf")

    def add(self, progress: Progress, loop: OuterLoop) -> None:
        """Take in one outer step; keep φ if it was validated and is the best so far."""
        self.meta_losses.append(progress.meta_loss)
        held_out = progress.meta_loss_held_out
        if held_out is not None and held_out < self.best_meta_loss_held_out:
            self.best_phi = {name: weight.clone() for name, weight in loop.averaged_phi.items()}
            self.best_outer_step, self.best_meta_loss_held_out = progress.outer_step, held_out

    def to_state(self) -> State:
        """All of it, for a training checkpoint."""
        return {**asdict(self), "best_meta_loss_held_out": float(self.best_meta_loss_held_out).hex()}

    @classmethod
    def from_state(cls, state: State) -> Self:
        """The record whose `to_state` this is."""
        return cls(**{**state, "best_meta_loss_held_out": float.fromhex(state["best_meta_loss_held_out"])})

    def encode(self, recipe: Recipe) -> bytes:
        """The weight file of the best φ.

        Raises:
            ValueError: no φ was validated yet.
        """
        if self.best_phi is None:
            raise ValueError(f"no checkpoint yet: the first comes at outer step {recipe.checkpoints.every}")
        metrics = {"meta_loss_held_out": self.best_meta_loss_held_out, "outer_step": self.best_outer_step}
        curve = json.dumps([float(f"{loss:.7g}") for loss in self.meta_losses])
        metadata = {**provenance(recipe, metrics), "meta_losses": curve}
        return weights.encode(recipe.optimizer(), self.best_phi, metadata)


def provenance(recipe: Recipe, metrics: Mapping[str, float]) -> dict[str, str]:
    """The metadata of a weight file: the recipe, what φ measured, and the software that computed it."""
    return {
        "optimizer": recipe.name,
        "description": recipe.description,
        "recipe": json.dumps(recipe.model_dump(mode="json"), sort_keys=True),
        "seed": str(recipe.seed),
        "torch": torch.__version__,
        "optserve": version("optserve"),
        "machine": platform.machine(),
        "metrics": json.dumps(metrics, sort_keys=True),
    }
