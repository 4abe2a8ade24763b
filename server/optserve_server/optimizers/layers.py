"""Layers of networks, feature-major."""

import torch
from torch import Tensor

from optserve_server.optimizers.base import Phi


def linear(phi: Phi, name: str, inputs: Tensor) -> Tensor:
    """W x + b of the layer `name`: `[…, inputs, n]` → `[…, outputs, n]`."""
    return torch.matmul(phi[name + ".weight"], inputs) + phi[name + ".bias"].unsqueeze(-1)
