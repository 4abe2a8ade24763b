"""Rules: how θ moves in an inner loop, and which θ counts. Every baseline is one, and so is a learned optimizer.

A baseline's optimizer has a rate of 1, and its updates are multiplied by the rate that is tried. So all rates of a grid
are tried in one inner loop, side by side.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from optserve_server.evaluation.schedule_free import ScheduleFreeAdamW
from optserve_server.optimizers import HAND_DESIGNED, Optimizer, Phi, build, hyperparameters
from optserve_server.optimizers.base import CoordinateState
from optserve_server.tasks.base import Theta


@dataclass(frozen=True)
class Rule:
    """An optimizer and its φ. A baseline also has learning rates: its `default`, and the `middle` of its grid."""

    optimizer: Optimizer
    phi: Phi = field(default_factory=dict)
    default: float = 1.0
    middle: float = 1.0

    @property
    def knows_horizon(self) -> bool:
        """Whether T changes what it does at the steps before."""
        return "horizon" in self.optimizer.uses

    def factor(self, step: int, horizon: int) -> float:
        """What the rate is multiplied by at one step of T."""
        return 1.0

    def learned(self, theta: Theta, state: CoordinateState, rates: Tensor) -> Theta:
        """The θ that counts, `[rates·seeds, n]`, from the one that moves, h_t and the rates, `[rates·seeds, 1]`."""
        return theta


@dataclass(frozen=True)
class CosineRule(Rule):
    """The rate falls to 0 as half a cosine, as with PyTorch's `CosineAnnealingLR` and T_max = T."""

    @property
    def knows_horizon(self) -> bool:
        """It does."""
        return True

    def factor(self, step: int, horizon: int) -> float:
        """(1 + cos(π t/T))/2."""
        return (1 + math.cos(math.pi * step / horizon)) / 2


@dataclass(frozen=True)
class ScheduleFreeRule(Rule):
    """What counts is the mean of the past."""

    optimizer: ScheduleFreeAdamW = field(default_factory=ScheduleFreeAdamW)

    def learned(self, theta: Theta, state: CoordinateState, rates: Tensor) -> Theta:
        """x."""
        return self.optimizer.averaged(theta, rates * state[1].view_as(theta))


_MIDDLE = 10.0
"""As a multiple of PyTorch's default: in short loops on small tasks, the best rates lie higher than that."""


def _of_kind(kind: str, rule: type[Rule] = Rule) -> Rule:
    default = hyperparameters(build({"kind": kind}))["lr"]
    return rule(build({"kind": kind, "lr": 1.0}), default=default, middle=_MIDDLE * default)


BASELINES: Mapping[str, Rule] = {
    **{kind: _of_kind(kind) for kind in HAND_DESIGNED},
    "adam-cosine": _of_kind("adam", CosineRule),
    "schedule-free-adamw": ScheduleFreeRule(default=0.0025, middle=_MIDDLE * 1e-3),
}
"""By the names that plans have for them."""
