"""`hierarchical` by its kernel on the CPU: many inner loops at once, each with a φ of its own or all with one."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from itertools import accumulate, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from optserve_server.optimizers.base import (
    HiddenState,
    Observations,
    Optimizer,
    Phi,
    Shapes,
    Updates,
    initial_state,
    sizes,
)
from optserve_server.optimizers.cores import share_out, torch_on_one_core
from optserve_server.optimizers.fused import packed
from optserve_server.optimizers.hierarchical import Hierarchical
from optserve_server.optimizers.kernels import hierarchical as kernel
from optserve_server.optimizers.kernels.hierarchy import FACTORS, SUMS, Observed, State, Weights, Work
from optserve_server.optimizers.kernels.networks import Float32s, multiple
from optserve_server.optimizers.kernels.products import ROWS
from optserve_server.optimizers.kernels.vectors import LANES

HIERARCHY_VERSION = 2
"""Goes up with every change of the kernel that changes a bit of an update: journals name it."""

CHUNK = 4096
"""Coordinates of a chunk, at most: the order of all sums follows from the shapes alone."""

_LEAST_COORDINATES = 2048  # for another core: handing a step over costs as much as stepping a thousand


def pack_phi(phi: Phi) -> Weights:
    """The kernel's weights, of φ or of a batch of them, `[loops, …]`."""
    named = {name: weight.detach().numpy() for name, weight in phi.items()}
    if named["coordinates.0.bias"].ndim == 1:
        named = {name: weight[np.newaxis] for name, weight in named.items()}
    first, second, third = (
        _interleaved(named[f"coordinates.{layer}.bias"], named[f"coordinates.{layer}.weight"]) for layer in range(3)
    )
    gates = [
        np.concatenate([named[f"scheduler.{part}.{kind}"] for part in ("gate", "candidate")], axis=1)
        for kind in ("bias", "weight")
    ]
    rates = [
        np.concatenate([named[f"rate.{part}.bias"][:, :, np.newaxis], named[f"rate.{part}.weight"]], axis=2)
        for part in ("drift", "level")
    ]
    return Weights(
        first,
        second,
        third,
        context=_transposed(named["coordinates.0.bias"], named["coordinates.0.context"]),
        gates=_transposed(*gates),
        rates=np.ascontiguousarray(np.concatenate(rates, axis=1)),
    )


def _interleaved(bias: Float32s, weight: Float32s) -> Float32s:
    """`[loops, outputs]` and `[loops, outputs, inputs]` → `[loops, groups, 4·(1 + inputs)]`, filled up with zeros."""
    loops, outputs, inputs = weight.shape
    groups = multiple(outputs, ROWS) // ROWS
    rows = np.zeros((loops, groups * ROWS, 1 + inputs), np.float32)
    rows[:, :outputs, 0], rows[:, :outputs, 1:] = bias, weight
    by_input = rows.reshape(loops, groups, ROWS, 1 + inputs).transpose(0, 1, 3, 2)
    return np.ascontiguousarray(by_input).reshape(loops, groups, -1)


def _transposed(bias: Float32s, weight: Float32s) -> Float32s:
    """The same → `[loops, 1 + inputs, outputs]`, rows filled up to whole vectors."""
    loops, outputs, inputs = weight.shape
    columns = np.zeros((loops, 1 + inputs, multiple(outputs, LANES)), np.float32)
    columns[:, 0, :outputs], columns[:, 1:, :outputs] = bias, weight.transpose(0, 2, 1)
    return columns


@lru_cache(maxsize=64)
def _chunks(shapes: Shapes) -> NDArray[np.int64]:
    """Tensor, start and stop of each chunk."""
    bounds = pairwise(accumulate(sizes(shapes), initial=0))
    found = [
        (tensor, start, min(start + CHUNK, end))
        for tensor, (begin, end) in enumerate(bounds)
        for start in range(begin, end, CHUNK)
    ]
    return np.array(found, np.int64).reshape(-1, 3)


def fits_hierarchy(optimizer: Optimizer, phi: Phi, state: HiddenState) -> bool:
    """Whether the kernel can step these inner loops, `[loops, …]`: without a graph, in float32, on the CPU."""
    tensors = (state.coordinates, *state.arrays.values(), *phi.values())
    return (
        isinstance(optimizer, Hierarchical)
        and not torch.is_grad_enabled()
        and state.coordinates.dim() == 3
        and all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors)
    )


def step_hierarchy(phi: Phi, observations: Observations, state: HiddenState) -> tuple[Updates, HiddenState]:
    """`Hierarchical.step` of one inner loop on one core: the coordinates `[features, n]` in place, the arrays anew.

    All is float32, and coordinates and gradients, `[n]`, are contiguous.
    """
    updates = torch.empty_like(observations.gradients)
    after = HiddenState(state.coordinates, _copied(state.arrays))
    arrays = {name: array.numpy()[np.newaxis] for name, array in after.arrays.items()}
    given = (observations.gradients, observations.loss, observations.horizon)
    seen = Observed(*(_numbers(None if each is None else each.unsqueeze(0)) for each in given))
    work = _make_work(1, observations.shapes, phi["coordinates.0.bias"].shape[-1])
    in_place = State(after.coordinates.numpy()[np.newaxis], **arrays)
    kernel.step_loops(packed(phi, pack_phi), in_place, seen, work, 0, 1, updates.numpy()[np.newaxis])
    return updates, after


def compile_hierarchy() -> None:
    """Compile what serves, or read it from the cache: some 15 seconds the first time on a machine, then 0.1 s."""
    optimizer, shapes = Hierarchical(hidden_size=1, scheduler_size=1), ((1,),)
    phi = optimizer.initial_phi(torch.Generator())
    step_hierarchy(phi, Observations(torch.zeros(1), torch.zeros(1), shapes=shapes), initial_state(optimizer, shapes))


class HierarchicalStepper:
    """Steps some inner loops by the kernel, without a graph; `phi` is `[loops, …]`, or one φ for all of them.

    It uses as many cores as torch may at the beginning; its results are the same bits on any number. Of tensors that
    have shapes and no numbers (`FakeTensor`) it allocates all that it would, and computes nothing.
    """

    def __init__(self, phi: Phi, state: HiddenState) -> None:
        self._state = HiddenState(_contiguous(state.coordinates), _copied(state.arrays))
        self._hidden_size = phi["coordinates.0.bias"].shape[-1]
        self._cores = torch.get_num_threads()
        self._fake = isinstance(state.coordinates, FakeTensor)
        if not self._fake:
            self._weights = pack_phi(phi)
            arrays = {name: array.numpy() for name, array in self._state.arrays.items()}
            self._arrays = State(self._state.coordinates.numpy(), **arrays)
        self._work: Work | None = None

    @property
    def state(self) -> HiddenState:
        """h_t after the last step."""
        return HiddenState(_contiguous(self._state.coordinates), _copied(self._state.arrays))

    def at_work(self) -> AbstractContextManager[None]:
        """Torch on one core, where the kernel uses several."""
        return torch_on_one_core() if self._cores > 1 else nullcontext()

    def step(self, observations: Observations) -> Updates:
        """The update g_t, without a graph."""
        updates = torch.empty_like(observations.gradients, memory_format=torch.contiguous_format)
        if self._fake:
            return updates
        loops, coordinates = updates.shape
        if self._work is None:
            self._work = _make_work(loops, observations.shapes, self._hidden_size)
        seen = Observed(*map(_numbers, (observations.gradients, observations.loss, observations.horizon)))
        arguments = (self._weights, self._arrays, seen, self._work)

        def step(first: int, last: int) -> None:
            kernel.step_loops(*arguments, first, last, updates.numpy())

        share_out(self._cores, loops, -(-_LEAST_COORDINATES // coordinates), step)
        return updates

    def updates(self) -> Tensor:
        """Not to be had: nothing here has a graph.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("the kernel of hierarchical has no graph back to φ; step its module under autograd instead")


def _copied(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: _contiguous(array) for name, array in arrays.items()}


def _contiguous(array: Tensor) -> Tensor:
    """A copy that is."""
    return array.clone(memory_format=torch.contiguous_format)


def _numbers(given: Tensor | None) -> Float32s:
    return np.zeros(0, np.float32) if given is None else given.contiguous().numpy()


def _make_work(loops: int, shapes: Shapes, hidden_size: int) -> Work:
    chunks, tensors = _chunks(shapes), len(shapes)
    return Work(
        chunks=chunks,
        sizes=np.array(sizes(shapes), np.int64),
        squares=np.empty((loops, len(chunks), 2), np.float32),
        sums=np.empty((loops, len(chunks), SUMS), np.float32),
        expected=np.empty((loops, len(chunks)), np.float32),
        factors=np.empty((loops, tensors, FACTORS), np.float32),
        rates=np.empty((loops, tensors, 3 + hidden_size), np.float32),
    )
