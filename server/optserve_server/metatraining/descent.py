"""φ, and how the outer loop moves it: φ ← φ − β ∇_φL, or Adam's step."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from optserve_server.metatraining.schedules import learning_rate
from optserve_server.metatraining.tables import MetaOptimizer
from optserve_server.metatraining.training_checkpoints import State


class Descent:
    """φ by name, its running mean, and the state of the meta-optimizer."""

    def __init__(self, settings: MetaOptimizer, phi: Mapping[str, Tensor], device: torch.device) -> None:
        self._settings = settings
        self.phi = {name: weight.detach().to(device, copy=True) for name, weight in phi.items()}
        self.averaged_phi = {name: weight.clone() for name, weight in self.phi.items()}
        self._first_phi = {name: weight.clone() for name, weight in self.phi.items()}
        self._meta_optimizer = _meta_optimizer(settings, list(self.phi.values()))

    def clip(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Take the meta-gradient in, cut to the recipe's norm; the norm before that, a scalar on the device."""
        for name, weight in self.phi.items():
            weight.grad = gradients[name]
        return torch.nn.utils.clip_grad_norm_(self.phi.values(), self._settings.clip_norm or math.inf)

    def move(self, outer_step: int) -> None:
        """The `outer_step`-th step along the meta-gradient that was taken in."""
        rate = learning_rate(self._settings, outer_step)
        self._meta_optimizer.param_groups[0]["lr"] = rate
        if self._settings.decay:
            for name, weight in self.phi.items():
                weight.lerp_(self._first_phi[name], rate * self._settings.decay)
        self._meta_optimizer.step()
        # From the first φ on a plain mean, until enough of them have come for the decay that was asked for.
        decay = min(self._settings.averaging, 1 - 1 / outer_step)
        for name, weight in self.phi.items():
            self.averaged_phi[name].lerp_(weight, 1 - decay)

    def to_state(self) -> State:
        """A copy of all of it."""
        moments = [self._meta_optimizer.state[weight] for weight in self.phi.values()]
        return {
            "phi": {name: weight.clone() for name, weight in self.phi.items()},
            "averaged_phi": {name: weight.clone() for name, weight in self.averaged_phi.items()},
            "first_phi": {name: weight.clone() for name, weight in self._first_phi.items()},
            "meta_optimizer": [{key: value.clone() for key, value in found.items()} for found in moments],
        }

    def restore(self, state: State) -> None:
        """Go back to what it was."""
        for name, weight in self.phi.items():
            weight.copy_(state["phi"][name])
            self.averaged_phi[name].copy_(state["averaged_phi"][name])
            self._first_phi[name].copy_(state["first_phi"][name])
        groups = self._meta_optimizer.state_dict()["param_groups"]
        moments = [{key: value.clone() for key, value in found.items()} for found in state["meta_optimizer"]]
        self._meta_optimizer.load_state_dict({"state": dict(enumerate(moments)), "param_groups": groups})


def _meta_optimizer(settings: MetaOptimizer, phi: list[Tensor]) -> torch.optim.Optimizer:
    # Left to itself PyTorch takes the weights one by one on a CPU: the same sums in a third more time.
    if settings.kind == "adam":
        return torch.optim.Adam(phi, lr=settings.learning_rate, foreach=True)
    return torch.optim.SGD(phi, lr=settings.learning_rate, foreach=True)
