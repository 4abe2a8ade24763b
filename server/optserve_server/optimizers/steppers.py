"""Steppers: an optimizer stepped through one window of an unroll, so that its updates are functions of φ.

Where ∂∇_t/∂φ is dropped, the updates of a recurrent optimizer depend on φ through the kernel's sums alone, and the
kernel has their derivative: float32, on the CPU. Where no graph is wanted `hierarchical` has a kernel too. Everything
else goes through the optimizer's module and autograd.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

from optserve_server.optimizers.base import HiddenState, Observations, Optimizer, Phi, Updates
from optserve_server.optimizers.compiled import compiled
from optserve_server.optimizers.cores import torch_on_one_core
from optserve_server.optimizers.fused import BLOCK, FUSED, SEGMENT, RecurrentKernel, corrections_of, corrects
from optserve_server.optimizers.fused_hierarchy import HierarchicalStepper, fits_hierarchy

Step = Callable[[Phi, Observations, HiddenState], tuple[Updates, HiddenState]]
"""`Optimizer.step`, or what works alike."""


class Stepper(Protocol):
    """Steps a window's coordinates."""

    @property
    def state(self) -> HiddenState:
        """h_t after the last step."""
        ...

    def at_work(self) -> AbstractContextManager[None]:
        """A context for the steps of the window and all that is computed between them."""
        ...

    def step(self, observations: Observations) -> Updates:
        """The update g_t; whether it carries a graph back to φ is the stepper's choice unless ∂∇_t/∂φ is kept."""
        ...

    def updates(self) -> Tensor:
        """All updates so far with their graph back to φ, `[steps, …, n]`; not where gradients are disabled."""
        ...


def stepper(optimizer: Optimizer, phi: Phi, state: HiddenState, steps: int, *, second_order: bool) -> Stepper:
    """A stepper from h_t = `state` on, for `steps` steps.

    Without `second_order` the observations carry no graph, and `state` carries none from one window to the next.
    """
    if not second_order and _fits_kernel(optimizer, phi, state.coordinates):
        return FusedStepper(optimizer, phi, state, steps)
    if fits_hierarchy(optimizer, phi, state):
        return HierarchicalStepper(phi, state)
    return ModuleStepper(optimizer.step, phi, state)


def _fits_kernel(optimizer: Optimizer, phi: Phi, coordinates: Tensor) -> bool:
    one_row = coordinates.dim() == 2 and not coordinates.requires_grad
    tensors = (coordinates, *phi.values())
    return (
        optimizer.kind in FUSED
        and one_row
        and all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors)
    )


class ModuleStepper:
    """The optimizer's own `step`, under autograd; on a GPU compiled."""

    def __init__(self, step: Step, phi: Phi, state: HiddenState) -> None:
        self._step = compiled(step) if state.coordinates.is_cuda else step
        self._phi = phi
        self._updates: list[Updates] = []
        self.state = state

    def at_work(self) -> AbstractContextManager[None]:
        """Nothing special."""
        return nullcontext()

    def step(self, observations: Observations) -> Updates:
        """The update g_t, with its graph back to φ."""
        updates, self.state = self._step(self._phi, observations, self.state)
        if torch.is_grad_enabled():
            self._updates.append(updates)
        return updates

    def updates(self) -> Tensor:
        """All updates so far with their graph back to φ, `[steps, …, n]`."""
        return torch.stack(self._updates)


class FusedStepper:
    """The kernel, a block of 64 coordinates at a time, and its derivative once for the whole window.

    Of tensors that have shapes and no numbers (`FakeTensor`) it allocates all that it would, and computes nothing.
    """

    def __init__(self, optimizer: Any, phi: Phi, state: HiddenState, steps: int) -> None:
        features, self._coordinates = state.coordinates.shape
        self._optimizer = optimizer
        self._phi = phi
        self._differentiable = torch.is_grad_enabled()
        blocks, kept = -(-self._coordinates // BLOCK), steps if self._differentiable else 1
        self._gradients = self._zeros_behind(torch.empty(kept, blocks, BLOCK))
        self._corrections = torch.ones(kept, blocks, BLOCK) if corrects(optimizer) else self._gradients
        self._updates = torch.empty(kept, blocks, BLOCK)
        # Where a derivative is wanted h_t before every eighth step, and then the present one.
        segments = -(-steps // SEGMENT) if self._differentiable else 0
        self._states = torch.empty(segments + 1, blocks, features, BLOCK)
        self._fill(self._states[0], state.coordinates)
        tensors = (self._gradients, self._corrections, self._updates)
        self._by_step = [self._rows_of(each).unbind() for each in (self._gradients, self._updates)]
        fake = isinstance(self._states, FakeTensor)
        self._kernel = None if fake else RecurrentKernel(optimizer, phi, self._states, *tensors)
        self._taken = self._present = 0

    @property
    def state(self) -> HiddenState:
        """h_t after the last step, without a graph."""
        rows = self._states[self._present].transpose(0, 1).flatten(1)
        return HiddenState(rows[:, : self._coordinates].clone(), {})

    def at_work(self) -> AbstractContextManager[None]:
        """Torch on one core, for the kernel uses them all."""
        return torch_on_one_core()

    def step(self, observations: Observations) -> Updates:
        """The update g_t, without a graph."""
        step = self._taken if self._differentiable else 0
        gradients, updates = (rows[step] for rows in self._by_step)
        gradients.copy_(observations.gradients)
        if self._corrections is not self._gradients:
            self._rows_of(self._corrections)[step] = corrections_of(self._optimizer, observations)
        before = self._present
        if self._differentiable and step % SEGMENT == 0:
            self._present += 1
        if self._kernel:
            self._kernel.step(step, before, self._present)
        self._taken += 1
        return updates if self._differentiable else updates.clone()

    def updates(self) -> Tensor:
        """All updates so far with their graph back to φ, `[steps, n]`."""
        updates: Tensor = _Updates.apply(self, *self._phi.values())  # type: ignore[no-untyped-call]
        return updates

    def values(self) -> Tensor:
        """The same without a graph."""
        return self._rows_of(self._updates)[: self._taken]

    def cotangents(self, of_updates: Tensor) -> list[Tensor]:
        """The cotangents of φ, in its order, from those of all updates, `[steps, n]`."""
        cotangents = self._zeros_behind(torch.empty_like(self._gradients[: self._taken]))
        self._rows_of(cotangents).copy_(of_updates)
        if not self._kernel:
            return [torch.zeros_like(weight) for weight in self._phi.values()]
        named = self._kernel.derivative(cotangents)
        return [named[name] for name in self._phi]

    def _rows_of(self, blocks: Tensor) -> Tensor:
        """`[steps, blocks, 64]` → `[steps, n]`, a view."""
        return blocks.flatten(1)[:, : self._coordinates]

    def _zeros_behind(self, blocks: Tensor) -> Tensor:
        """`[steps, blocks, 64]` with zeros where the last block has no coordinates."""
        blocks.flatten(1)[:, self._coordinates :] = 0.0
        return blocks

    def _fill(self, pages: Tensor, coordinates: Tensor) -> None:
        whole = self._coordinates // BLOCK
        inside, ends = coordinates[:, : whole * BLOCK], coordinates[:, whole * BLOCK :]
        pages[:whole] = inside.reshape(len(inside), whole, BLOCK).transpose(0, 1)
        pages[whole:] = 0.0
        pages[whole:, :, : ends.shape[1]] = ends


class _Updates(torch.autograd.Function):
    """φ → the updates of a window that has been stepped."""

    @staticmethod
    def forward(ctx: Any, stepped: FusedStepper, *_: Tensor) -> Tensor:
        ctx.stepped = stepped
        return stepped.values()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangents: Tensor) -> Any:
        return None, *ctx.stepped.cotangents(cotangents)
