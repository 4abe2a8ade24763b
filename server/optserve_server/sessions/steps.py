"""One step's gradients on their way from the wire to the pages, and its updates on their way back."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from optserve.wire.gradients import STORAGE, narrow, widen
from optserve_server.optimizers.base import PAGE
from optserve_server.sessions.errors import GradientsInvalid, Invalid
from optserve_server.sessions.layout import Layout, Selection


class StepGradients:
    """∇_t of the parameters in `selection`, as they travel: `bits`, `[selection.coordinates]` of `STORAGE[dtype]`.

    Whoever receives the gradients writes them into `bits`. For float32 that already is the memory of the pages, so the
    numbers are copied once, from the socket.
    """

    __slots__ = ("_buffer", "bits", "dtype", "loss", "selection")

    def __init__(self, selection: Selection, dtype: str, loss: float | None = None) -> None:
        self.selection = selection
        self.dtype = dtype
        self.loss = loss
        self._buffer: NDArray[np.float32] | None = None
        if dtype == "float32" and not selection.skipped:
            self._buffer = _padded(selection.layout)
            self.bits: NDArray[Any] = self._buffer[: selection.coordinates]
        else:
            self.bits = np.empty(selection.coordinates, STORAGE[dtype])

    def pages(self) -> NDArray[np.float32]:
        """The gradients as `[pages, 256]`: zero for skipped parameters and behind the last coordinate.

        Raises:
            GradientsInvalid: a number is not finite; names the parameter and the index.
        """
        layout = self.selection.layout
        buffer = self._buffer
        if buffer is None:
            buffer = spread(widen(self.bits, self.dtype), self.selection)
        require_finite(buffer, layout, GradientsInvalid, "gradient")
        return buffer.reshape(layout.pages, PAGE)

    def same_as(self, other: "StepGradients") -> bool:
        """Whether this is the same request sent again."""
        return (
            self.selection.skipped == other.selection.skipped
            and self.loss == other.loss
            and np.array_equal(self.bits.view(np.uint8), other.bits.view(np.uint8))
        )


def spread(values: NDArray[np.float32], selection: Selection) -> NDArray[np.float32]:
    """Numbers of the selected parameters, one after another, put where they lie in the pages; flat, zero elsewhere."""
    buffer = _padded(selection.layout)
    if not selection.skipped:
        buffer[: selection.coordinates] = values
        return buffer
    buffer.fill(0)
    start = 0
    for parameter in selection.parameters:
        buffer[parameter.offset : parameter.stop] = values[start : start + parameter.size]
        start += parameter.size
    return buffer


def collect(updates: NDArray[np.float32], selection: Selection, dtype: str) -> NDArray[Any]:
    """The updates of the selected parameters as they travel, from `[pages, 256]`; a view where that can be."""
    flat = updates.reshape(-1)
    if not selection.skipped:
        return narrow(flat[: selection.coordinates], dtype)
    parts = [flat[parameter.offset : parameter.stop] for parameter in selection.parameters]
    return narrow(np.concatenate([flat[:0], *parts]), dtype)


def require_finite(buffer: NDArray[np.float32], layout: Layout, invalid: type[Invalid], what: str) -> None:
    """Check the numbers of all parameters, laid out in pages.

    Raises:
        invalid: one is NaN or infinite; names the parameter, the index and the value.
    """
    finite = np.isfinite(buffer)
    if finite.all():
        return
    coordinate = int(np.argmin(finite))
    parameter, index = layout.locate(coordinate)
    value = str(buffer[coordinate])
    raise invalid(
        f"The {what} {parameter.element(index)} is {value}; every number must be finite. Nothing was changed.",
        parameter=parameter.name,
        index=index,
        value=value,
    )


def _padded(layout: Layout) -> NDArray[np.float32]:
    buffer = np.empty(layout.pages * PAGE, np.float32)
    buffer[layout.coordinates :] = 0
    return buffer
