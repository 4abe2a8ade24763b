"""A recurrent optimizer as its kernels read it: gradient → inputs → layers of LSTM cells → update.

A layer's *joined* inputs are its own hidden state h, then what comes from below (x), then a one for the bias, so that
its gates are one matrix product: W [h; x; 1]. The four gates of a unit are the four rows of a tile.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from optserve_server.optimizers.kernels.products import COLUMNS, ROWS

Float32s = NDArray[np.float32]

IDENTITY, LOG_SIGN, MOMENTS = 0, 1, 2
"""What becomes of a gradient (`Network.inputs`)."""


class Network(NamedTuple):
    """φ and constants. `rows` of the hidden state lie before those of the first layer.

    `constants` are those of the inputs: of `LOG_SIGN` e^{−p} and p; of `MOMENTS` β, ε² and the largest gradient.
    `widths` are the rows of x in each layer. `projection` `[size, 3]` is what turns `MOMENTS` into x, by elu, its bias
    last; empty for the others. `cells` is `[layers, H, 4·K]`; `readout` `[H + 1]`, its bias last. The update is
    `scale` · (w·h + b), or with `bounded` −`scale` · tanh(w·h + b).
    """

    inputs: int
    rows: int
    constants: Float32s
    projection: Float32s
    widths: NDArray[np.int64]
    cells: Float32s
    readout: Float32s
    scale: np.float32
    bounded: bool


def multiple(size: int, of: int) -> int:
    """`size`, rounded up to a multiple."""
    return -(-size // of) * of


def pack_cells(phi: Mapping[str, Tensor], layers: int) -> tuple[NDArray[np.int64], Float32s]:
    """`Network.widths` and `.cells` from weights named as `torch.nn.LSTMCell`'s."""
    joined = [_joined_weights(phi, layer) for layer in range(layers)]
    hidden = joined[0].shape[0] // 4
    depth = max(weights.shape[1] for weights in joined)
    cells = np.zeros((layers, hidden, multiple(depth, COLUMNS), ROWS), np.float32)
    for layer, weights in enumerate(joined):
        cells[layer, :, : weights.shape[1]] = weights.reshape(4, hidden, -1).transpose(1, 2, 0)
    widths = np.array([weights.shape[1] - hidden - 1 for weights in joined], np.int64)
    return widths, cells.reshape(layers, hidden, -1)


def transposed_cells(network: Network) -> Float32s:
    """The same weights for the way back, from gates to joined inputs: `[layers, quads, 4·4H]`, four inputs a tile."""
    layers, hidden, _ = network.cells.shape
    by_input = network.cells.reshape(layers, hidden, -1, ROWS).transpose(0, 2, 1, 3).reshape(layers, -1, ROWS * hidden)
    depth = by_input.shape[1]
    padded = np.zeros((layers, multiple(depth, ROWS), ROWS * hidden), np.float32)
    padded[:, :depth] = by_input
    return np.ascontiguousarray(
        padded.reshape(layers, -1, ROWS, ROWS * hidden).transpose(0, 1, 3, 2).reshape(layers, -1, 4 * ROWS * hidden)
    )


def unpack_cells(gradients: NDArray[np.float64], widths: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """By the names of φ, from gradients of the joined weights, `[layers, 4H, K]`, rows in the order of the tiles."""
    layers, rows, _ = gradients.shape
    hidden = rows // 4
    by_gate = gradients.reshape(layers, hidden, 4, -1).transpose(0, 2, 1, 3).reshape(layers, rows, -1)
    named: dict[str, NDArray[np.float64]] = {}
    for layer, (weights, width) in enumerate(zip(by_gate, widths.tolist(), strict=True)):
        name = f"cells.{layer}."
        named[name + "weight_ih"] = weights[:, hidden : hidden + width]
        named[name + "weight_hh"] = weights[:, :hidden]
        named[name + "bias_ih"] = named[name + "bias_hh"] = weights[:, hidden + width]
    return named


def _joined_weights(phi: Mapping[str, Tensor], layer: int) -> Float32s:
    name = f"cells.{layer}."
    bias = (phi[name + "bias_ih"] + phi[name + "bias_hh"]).unsqueeze(1)
    parts = (phi[name + "weight_hh"], phi[name + "weight_ih"], bias)
    return np.concatenate([part.numpy() for part in parts], axis=1)
