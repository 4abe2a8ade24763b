"""Adam (Kingma & Ba 2014, 1412.6980) and AdamW (Loshchilov & Hutter 2017, 1711.05101), equal to `torch.optim`."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from optserve_server.optimizers.base import CoordinateState, Observations, Phi, Updates
from optserve_server.optimizers.hyperparameters import require_range
from optserve_server.optimizers.moments import bias_correction
from optserve_server.optimizers.sgd import HandDesigned


@dataclass(frozen=True)
class Adam(HandDesigned):
    """g_t = −lr · m̂_t/(√v̂_t + ε), from bias-corrected running moments of ∇_t and its square."""

    kind: ClassVar[str] = "adam"

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    amsgrad: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("betas[0]", self.betas[0], below=1)
        require_range("betas[1]", self.betas[1], below=1)
        require_range("eps", self.eps)

    @property
    def features(self) -> tuple[str, ...]:
        """The two moments; with `amsgrad` also the greatest second moment so far."""
        return ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if self.amsgrad else ()))

    def step_coordinates(
        self, phi: Phi, observations: Observations, state: CoordinateState
    ) -> tuple[Updates, CoordinateState]:
        """One step of `torch.optim.Adam`."""
        gradients = self.descent_gradients(observations)
        beta_1, beta_2 = self.betas
        exp_avg = torch.lerp(state[..., 0, :], gradients, 1 - beta_1)
        exp_avg_sq = beta_2 * state[..., 1, :] + (1 - beta_2) * gradients.square()
        following, second = [exp_avg, exp_avg_sq], exp_avg_sq
        if self.amsgrad:
            second = torch.maximum(state[..., 2, :], exp_avg_sq)
            following.append(second)
        first_correction = bias_correction(beta_1, observations.clock, gradients)
        second_correction = bias_correction(beta_2, observations.clock, gradients)
        denominator = second.sqrt() / second_correction.sqrt() + self.eps
        return -self.lr * (exp_avg / first_correction) / denominator, torch.stack(following, dim=-2)


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay: g_t = −lr · (m̂_t/(√v̂_t + ε) + λθ_t)."""

    kind: ClassVar[str] = "adamw"

    weight_decay: float = 1e-2

    def descent_gradients(self, observations: Observations) -> torch.Tensor:
        """∇_t alone: the decay is no part of the gradient."""
        return -observations.gradients if self.maximize else observations.gradients

    def step_coordinates(
        self, phi: Phi, observations: Observations, state: CoordinateState
    ) -> tuple[Updates, CoordinateState]:
        """One step of `torch.optim.AdamW`."""
        updates, state = super().step_coordinates(phi, observations, state)
        if self.weight_decay:
            parameters = self.parameters(observations)
            # Not −lr·λ·θ: PyTorch multiplies θ by 1 − lr·λ, whose rounding adds up over many steps.
            updates = updates + (parameters * (1 - self.lr * self.weight_decay) - parameters)
        return updates, state
