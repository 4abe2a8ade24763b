"""Optimizers of the package `pytorch-optimizer` at its defaults, which are those that their authors published.

- `soap` (Vyas et al. 2024, arXiv 2409.11321): of ten optimizers compared at four scales those with matrices as
  preconditioners were the fastest, SOAP and Muon before all (Wen et al. 2025, arXiv 2509.02046).
- `ademamix` (Pagliardini et al. 2024, arXiv 2409.03137): with MARS the best of eleven in large runs (Semenov et al.
  2025, arXiv 2509.01440).
- `prodigy` (Mishchenko & Defazio 2023, arXiv 2306.06101): finds its learning rate by itself, so that its default is all
  there is.

Muon is not here: it has to be told which matrices are hidden layers, and shapes do not say that.
"""

import importlib
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from optserve_server.optimizers import HiddenState, Observations, Phi, Shapes, Updates
from optserve_server.optimizers.base import sizes

PACKAGE = "pytorch-optimizer"
CLASSES = {"soap": "SOAP", "ademamix": "AdEMAMix", "prodigy": "Prodigy"}
"""By the names that plans have for them."""


class ThirdParty:
    """One of them in the place of an `Optimizer`, which steps some inner loops from their beginning to their end.

    Unlike all others it has a state of its own: a `torch.optim.Optimizer` for each loop, made at the first step. It is
    told θ_t, so that what moves is the inner loop's θ.
    """

    kind: ClassVar[str] = "third-party"
    learned: ClassVar[bool] = False
    coordinatewise: ClassVar[bool] = False
    features: ClassVar[tuple[str, ...]] = ()
    session_arrays: ClassVar[dict[str, int]] = {}
    uses: ClassVar[frozenset[str]] = frozenset({"parameters"})
    needs: ClassVar[frozenset[str]] = frozenset({"parameters"})

    def __init__(self, name: str) -> None:
        self._name = name
        self._loops: list[_Loop] = []

    def tensor_arrays(self, shape: tuple[int, ...]) -> dict[str, tuple[int, int]]:
        """Nothing: it is in the package's optimizers."""
        return {}

    def initial_phi(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Nothing: there is no φ."""
        return {}

    def step(self, phi: Phi, observations: Observations, state: HiddenState) -> tuple[Updates, HiddenState]:
        """θ_{t+1} − θ_t of each loop, `[loops, n]`."""
        assert observations.parameters is not None
        if not self._loops:
            self._loops = [_Loop(self._name, theta, observations.shapes) for theta in observations.parameters]
        moved = [
            loop.step(theta, gradients)
            for loop, theta, gradients in zip(self._loops, observations.parameters, observations.gradients, strict=True)
        ]
        return torch.stack(moved), state

    @property
    def state_bytes(self) -> int:
        """Of all tensors that the package's optimizers remember."""
        return sum(loop.state_bytes for loop in self._loops)


class _Loop:
    """One inner loop: parameter tensors of their own shapes, and the optimizer that moves them."""

    def __init__(self, name: str, theta: Tensor, shapes: Shapes) -> None:
        package: Any = importlib.import_module(PACKAGE.replace("-", "_"))
        self._sizes = list(sizes(shapes))
        self._parameters = [torch.nn.Parameter(part.clone()) for part in self._split(theta, shapes)]
        self._optimizer: torch.optim.Optimizer = getattr(package, CLASSES[name])(self._parameters)

    def step(self, theta: Tensor, gradients: Tensor) -> Updates:
        """θ_{t+1} − θ_t, `[n]`; not a number once a gradient, or what the optimizer makes of it, is not finite."""
        if not gradients.isfinite().all():
            return torch.full_like(theta, math.nan)
        shapes = [parameter.shape for parameter in self._parameters]
        parts = zip(self._parameters, self._split(theta, shapes), self._split(gradients, shapes), strict=True)
        for parameter, values, slope in parts:
            parameter.data.copy_(values)
            parameter.grad = slope.clone()
        try:
            self._optimizer.step()
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # a preconditioner overflowed: it has diverged
            return torch.full_like(theta, math.nan)
        return torch.cat([parameter.data.flatten() for parameter in self._parameters]) - theta

    def _split(self, coordinates: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        parts = torch.split(coordinates, self._sizes)
        return [part.view(tuple(shape)) for part, shape in zip(parts, shapes, strict=True)]

    @property
    def state_bytes(self) -> int:
        """Of all tensors that it remembers."""
        return _bytes(list(self._optimizer.state.values()))


def _bytes(state: Any) -> int:
    if isinstance(state, Tensor):
        return state.nbytes
    if isinstance(state, dict):
        return _bytes(list(state.values()))
    return sum(map(_bytes, state)) if isinstance(state, list | tuple) else 0
