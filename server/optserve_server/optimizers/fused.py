"""The optimizers that have a kernel on the CPU, as the networks that it steps."""

import math
from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optserve_server.optimizers import rnnprop
from optserve_server.optimizers.base import PAGE, Observations, Optimizer, Phi, Updates
from optserve_server.optimizers.cores import share_out
from optserve_server.optimizers.kernels import recurrent, recurrent_gradient
from optserve_server.optimizers.kernels.networks import (
    IDENTITY,
    LOG_SIGN,
    MOMENTS,
    Float32s,
    Network,
    pack_cells,
    transposed_cells,
    unpack_cells,
)
from optserve_server.optimizers.kernels.products import BLOCK
from optserve_server.optimizers.kernels.recurrent_gradient import SEGMENT, Derivatives, Window, make_derivatives
from optserve_server.optimizers.lstm import LSTM, P
from optserve_server.optimizers.moments import bias_correction
from optserve_server.optimizers.rnnprop import RNNprop

__all__ = [
    "BLOCK",
    "FUSED",
    "KERNEL_VERSION",
    "SEGMENT",
    "FixedPhi",
    "RecurrentKernel",
    "compile_kernels",
    "corrections_of",
    "corrects",
    "packed",
    "step_fused",
]

KERNEL_VERSION = 1
"""Goes up with every change of the kernels that changes a bit of an update: journals name it."""

Packed = TypeVar("Packed")

_BLOCKS_A_CORE = 16  # with fewer, handing a step over to another core costs more than it saves
_CHUNKS = 64  # at most so many, in which the derivative is summed: enough for any number of cores


def lstm_network(optimizer: LSTM, phi: Phi) -> Network:
    """What `LSTM.step` computes."""
    widths, cells = pack_cells(phi, optimizer.layers)
    return Network(
        inputs=LOG_SIGN if optimizer.preprocessing == "log-sign" else IDENTITY,
        rows=0,
        constants=np.array([math.exp(-P), P], np.float32),
        projection=np.zeros((0, 3), np.float32),
        widths=widths,
        cells=cells,
        readout=_readout(phi),
        scale=np.float32(optimizer.output_scale),
        bounded=False,
    )


def rnnprop_network(optimizer: RNNprop, phi: Phi) -> Network:
    """What `RNNprop.step` computes."""
    widths, cells = pack_cells(phi, optimizer.layers)
    return Network(
        inputs=MOMENTS,
        rows=2,
        constants=np.array([optimizer.beta, rnnprop.EPSILON**2, rnnprop.LARGEST], np.float32),
        projection=np.concatenate((phi["input.weight"].numpy(), phi["input.bias"].numpy()[:, np.newaxis]), axis=1),
        widths=widths,
        cells=cells,
        readout=_readout(phi),
        scale=np.float32(optimizer.output_scale),
        bounded=True,
    )


FUSED: dict[str, Callable[[Any, Phi], Network]] = {LSTM.kind: lstm_network, RNNprop.kind: rnnprop_network}


class FixedPhi(dict[str, Tensor]):
    """Weights φ that never change any more: what a kernel makes of them is made once."""

    def __init__(self, phi: Phi) -> None:
        super().__init__(phi)
        self._packed: dict[Hashable, Any] = {}

    def packed(self, pack: Callable[..., Packed], *arguments: Hashable) -> Packed:
        """`pack(*arguments, φ)`."""
        key = (pack, *arguments)
        if key not in self._packed:
            self._packed[key] = pack(*arguments, self)
        return cast(Packed, self._packed[key])


def packed(phi: Phi, pack: Callable[..., Packed], *arguments: Hashable) -> Packed:
    """`pack(*arguments, φ)`, what a kernel makes of φ, from memory where φ never changes."""
    return phi.packed(pack, *arguments) if isinstance(phi, FixedPhi) else pack(*arguments, phi)


def step_fused(optimizer: Any, phi: Phi, arena: Tensor, numbers: Tensor, observations: Observations) -> Updates:
    """`optimizer.step` on the pages `numbers` of `arena` `[capacity, features, 256]`, in place."""
    gradients = observations.gradients.numpy()
    updates = torch.empty_like(observations.gradients)
    network = packed(phi, FUSED[optimizer.kind], optimizer)
    corrections = gradients
    if corrects(optimizer):
        corrections = np.ascontiguousarray(corrections_of(optimizer, observations))
    pages = arena.numpy()
    recurrent.step_pages(network, pages, pages, numbers.numpy(), gradients, corrections, updates.numpy())
    return updates


def corrects(optimizer: Optimizer) -> bool:
    """Whether its running moments are corrected for their bias; else a kernel looks at no corrections."""
    return isinstance(optimizer, RNNprop)


def corrections_of(optimizer: RNNprop, observations: Observations) -> Tensor:
    """1 − β^{t+1} of each coordinate, of the gradients' shape."""
    return bias_correction(optimizer.beta, observations.clock, observations.gradients).expand_as(observations.gradients)


class RecurrentKernel:
    """A network stepped block by block through a window, and its derivative by φ.

    All tensors are float32 on the CPU: `states` are hidden states, each `[blocks, features, 64]`, and `gradients`,
    `corrections` and `updates` are of each step, `[steps, blocks, 64]`. It uses as many cores as torch may at the
    beginning; its results are the same bits on any number.
    """

    def __init__(
        self, optimizer: Any, phi: Phi, states: Tensor, gradients: Tensor, corrections: Tensor, updates: Tensor
    ) -> None:
        self._network = FUSED[optimizer.kind](optimizer, {name: weight.detach() for name, weight in phi.items()})
        self._cores = torch.get_num_threads()
        self._states = states.numpy()
        self._numbers = np.arange(states.shape[1])
        self._steps = [tensor.numpy() for tensor in (gradients, corrections, updates)]

    def step(self, number: int, before: int, after: int) -> None:
        """The step `number` of the window, from the state `before` to the state `after`; both may be one."""
        states, following = self._states[before], self._states[after]
        arrays = [array[number] for array in self._steps]

        def step(first: int, last: int) -> None:
            numbers = self._numbers[first:last]
            recurrent.step_pages(self._network, states, following, numbers, *(array[first:last] for array in arrays))

        share_out(self._cores, len(self._numbers), _BLOCKS_A_CORE, step)

    def derivative(self, cotangents: Tensor) -> dict[str, Tensor]:
        """The cotangents of φ by name, from those of the updates of all steps that were taken, `[steps, blocks, 64]`.

        The states are those before every `SEGMENT`-th step.
        """
        steps = len(cotangents)
        gradients, corrections = (array[:steps] for array in self._steps[:2])
        window = Window(gradients, corrections, self._states[: -(-steps // SEGMENT)], cotangents.numpy())
        blocks_a_chunk = -(-len(self._numbers) // _CHUNKS)
        chunks = -(-len(self._numbers) // blocks_a_chunk)
        derivatives = make_derivatives(self._network, chunks)
        transposed = transposed_cells(self._network)

        def differentiate(first: int, last: int) -> None:
            recurrent_gradient.differentiate(
                self._network, transposed, window, first, last, blocks_a_chunk, derivatives
            )

        share_out(self._cores, chunks, 1, differentiate)
        return _by_name(self._network, derivatives)


def _by_name(network: Network, derivatives: Derivatives) -> dict[str, Tensor]:
    cells, projection, readout = map(_total, derivatives)
    named = unpack_cells(cells, network.widths)
    readout = readout.sum(axis=1)
    named |= {"output.weight": readout[np.newaxis, :-1], "output.bias": readout[-1:]}
    rows = len(network.projection)
    if rows:
        named |= {"input.weight": projection[:rows, :2], "input.bias": projection[:rows, 2]}
    return {name: torch.from_numpy(np.ascontiguousarray(values, np.float32)) for name, values in named.items()}


def _total(chunks: Float32s) -> NDArray[np.float64]:
    total = np.zeros(chunks.shape[1:])
    recurrent_gradient.add_chunks(chunks.reshape(len(chunks), total.size), total.reshape(-1))
    return total


def compile_kernels() -> None:
    """Compile what serves, or read it from the cache: seconds the first time on a machine, then 0.1 s."""
    optimizer = LSTM(hidden_size=1, layers=1)
    phi = optimizer.initial_phi(torch.Generator())
    arena = torch.zeros(1, len(optimizer.features), PAGE)
    observations = Observations(torch.zeros(1, PAGE), torch.zeros(1))
    step_fused(optimizer, phi, arena, torch.zeros(1, dtype=torch.int64), observations)


def _readout(phi: Phi) -> Float32s:
    return np.concatenate((phi["output.weight"].numpy()[0], phi["output.bias"].numpy()))
