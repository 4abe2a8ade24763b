"""One step's gradients on their way from the wire to the pages, and its updates on their way back."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from optserve.wire.gradients import STORAGE, narrow, widen
from optserve_server.optimizers.base import PAGE
from optserve_server.sessions.errors import GradientsInvalid, Invalid
from optserve_server.sessions.layout import Layout, Selection
from optserve_server.sessions.pages import FLOAT_BYTES
from optserve_server.sessions.storage.records import Body


class Numbers:
    """Numbers of the parameters in `selection`, as they travel: `bits`, `[selection.coordinates]` of `STORAGE[dtype]`.

    Whoever receives them writes them into `bits`. That is memory which the journal writes from and, for float32, which
    has the form of pages too: the numbers are copied once, from the socket.
    """

    __slots__ = ("bits", "body", "dtype", "selection")

    def __init__(self, selection: Selection, dtype: str, body: Body | None = None) -> None:
        """Room for the numbers, or those in `body`."""
        self.selection = selection
        self.dtype = dtype
        self.body = body or Body(selection.coordinates * STORAGE[dtype].itemsize)
        self.bits: NDArray[Any] = self.body.octets.view(STORAGE[dtype])

    def flat(self) -> NDArray[np.float32]:
        """The numbers where they lie in the pages, one page after another: zero elsewhere."""
        if self.dtype == "float32" and not self.selection.skipped:
            return self.body.whole[: self.selection.layout.pages * PAGE * FLOAT_BYTES].view(np.float32)
        return spread(widen(self.bits, self.dtype), self.selection)


class StepGradients(Numbers):
    """∇_t of the parameters that have one at this step, and the loss."""

    __slots__ = ("loss",)

    def __init__(self, selection: Selection, dtype: str, loss: float | None = None, body: Body | None = None) -> None:
        super().__init__(selection, dtype, body)
        self.loss = loss

    def pages(self) -> NDArray[np.float32]:
        """The gradients as `[pages, 256]`: zero for skipped parameters and behind the last coordinate.

        Raises:
            GradientsInvalid: a number is not finite; names the parameter and the index.
        """
        layout = self.selection.layout
        buffer = self.flat()
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
