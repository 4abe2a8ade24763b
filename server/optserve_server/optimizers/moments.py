"""Running moments: what Adam and the learned optimizers that build on it share."""

import math

import torch
from torch import Tensor


def bias_correction(beta: float, clock: Tensor, like: Tensor) -> Tensor:
    """1 − β^{t+1}, the share of a running mean of decay β that its t+1 terms have filled (Kingma & Ba 2014, section 3).

    Computed in float64, for at β = 0.999 the first steps would keep only four digits of float32, and returned in the
    dtype of `like`.
    """
    if beta == 0.0:
        return torch.ones_like(clock, dtype=like.dtype)
    return -torch.expm1((clock.double() + 1) * math.log(beta)).to(like.dtype)


def newest_share(beta: float, clock: Tensor, like: Tensor) -> Tensor:
    """The share that the newest of t+1 terms has in their running mean of decay β: (1 − β)/(1 − β^{t+1}).

    m ← m + share · (x − m) is Adam's m̂, already corrected for its bias: a plain mean at first, which later forgets.
    """
    return (1 - beta) / bias_correction(beta, clock, like)
