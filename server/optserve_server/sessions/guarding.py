"""The update guard of an awake session: what it remembers, and what it does at a step."""

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optserve.wire.guard import GuardNote
from optserve_server.optimizers import Optimizer, guard
from optserve_server.optimizers.kernels import guard as kernel
from optserve_server.sessions.guard_options import GuardOptions
from optserve_server.sessions.layout import Layout, Selection
from optserve_server.sessions.pages import Arena
from optserve_server.sessions.whole import ArrayLayout, Arrays

NOTED_NAMES = 8
"""So many of the tensors of a note are named; they are counted all."""

_TENSORS, _MOMENTS, _RUN = "guard", "guard_moments", "guard_run"
GUARD_ARRAYS = (_TENSORS, _MOMENTS, _RUN)
"""The names of all arrays that a guard can have."""

_NEVER_BELOW_0 = {
    _TENSORS: [*range(guard.TENSOR_ROWS)],
    _MOMENTS: [1],
    _RUN: [guard.LOSSES, guard.RISEN, guard.LEVEL, guard.SUNK, guard.STAYED],
}
_BOUNDED = {_TENSORS: (guard.REASON, max(guard.REASONS)), _RUN: (guard.LEVEL, guard.MOST_HALVINGS)}

Float32s = NDArray[np.float32]

_NO_LOSS = float("nan")


class Guard:
    """The guard of one session. `arrays` are all that it remembers, in the form of an optimizer's arrays.

    `columns` counts for each of those of tensors the columns that each parameter has in it. The guard's own moments
    are two numbers a coordinate, unless the optimizer has Adam's moments itself; while the guard has nothing to do they
    are not touched, and take no memory that the system could not give to others.
    """

    def __init__(self, options: GuardOptions, array_layout: ArrayLayout) -> None:
        optimizer, layout = array_layout.optimizer, array_layout.layout
        self._limit, self._patience = options.max_update_rms, options.patience
        self._array_layout = array_layout
        self._optimizer_moments = guard.ADAM_MOMENTS.get(optimizer.kind)
        self.sizes = sizes(optimizer, layout)
        self.columns = {_TENSORS: [1] * len(layout.parameters)}
        if _MOMENTS in self.sizes:
            self.columns[_MOMENTS] = [parameter.size for parameter in layout.parameters]
        self._bounds = np.array([*(parameter.offset for parameter in layout.parameters), layout.coordinates])
        self._everyone = np.ones(len(layout.parameters), np.bool_)
        self._verdicts = np.zeros((guard.VERDICT_ROWS, len(layout.parameters)), np.int8)
        self.take_up({})

    def take_up(self, arrays: Arrays) -> None:
        """Remember what `arrays` say; those that are missing begin at 0."""
        self.arrays = {name: arrays.get(name, torch.zeros(size)) for name, size in self.sizes.items()}
        self._run, self._tensors = self.arrays[_RUN].numpy(), self.arrays[_TENSORS].numpy()
        moments = self.arrays.get(_MOMENTS)
        self._moments = np.zeros((2, 0), np.float32) if moments is None else moments.numpy()

    def step(
        self,
        updates: Float32s,
        gradients: Float32s,
        loss: float | None,
        selection: Selection,
        arena: Arena,
        pages: Tensor,
        arrays: Arrays,
        clocks: NDArray[np.int64],
    ) -> tuple[GuardNote, ...]:
        """Look at the updates `[pages, 256]` of a step, and replace in place those that are refused.

        `pages` of `arena` and `arrays` are the hidden state after the step. What of a refused tensor's is not finite
        there begins again at 0, and with it its clock.
        """
        if not selection.parameters:  # such a step changes nothing but its number
            return ()
        flat = updates.reshape(-1)
        active = self._active(selection) if selection.skipped else self._everyone
        limit, run, tensors, verdicts = self._limit, self._run, self._tensors, self._verdicts
        sent = _NO_LOSS if loss is None else loss
        if not kernel.judge(flat, self._bounds, active, sent, limit, self._patience, run, tensors, verdicts):
            return ()
        held, numbers = arena.pages.numpy(), pages.numpy()
        moments = (self._moments, held, numbers, self._rows, self._corrections(arrays))
        kernel.fall_back(flat, gradients.reshape(-1), self._bounds, verdicts, limit, run, tensors, *moments)
        if verdicts[guard.BROKEN].any():
            self._start_afresh(held, numbers, arrays, clocks)
        return self._notes()

    # --- the hidden state ---------------------------------------------------------------------------------------------

    @cached_property
    def _rows(self) -> NDArray[np.int64]:
        moments, features = self._optimizer_moments, self._array_layout.optimizer.features
        if moments is None:
            return np.zeros(2, np.int64)
        return np.array([features.index(moments.mean), features.index(moments.square)])

    def _corrections(self, arrays: Arrays) -> NDArray[np.float64]:
        """By how much the optimizer's moments of each tensor are too small, `[2, K]`."""
        moments = self._optimizer_moments
        if moments is None or moments.clock is None:
            return np.ones((2, len(self._everyone)))
        clock = arrays[moments.clock].numpy().reshape(-1).astype(np.float64)
        return np.stack([1 - beta ** np.maximum(clock, 1) for beta in guard.BETAS])

    def _start_afresh(
        self, held: Float32s, numbers: NDArray[np.int64], arrays: Arrays, clocks: NDArray[np.int64]
    ) -> None:
        if held.shape[1]:
            kernel.start_afresh(held, numbers, self._bounds, self._verdicts)
            clocks[self._verdicts[guard.BROKEN] == guard.AGAIN] = 0
        broken = self._verdicts[guard.BROKEN]
        for name, array in arrays.items():
            finite = torch.isfinite(array).all(dim=0).numpy()
            if finite.all():
                continue
            columns = self._array_layout.columns.get(name)
            if columns is None:  # the session's
                array.zero_()
                broken[broken > 0] = guard.AGAIN
                continue
            owners = np.repeat(np.arange(len(columns)), columns)
            again = np.intersect1d(owners[~finite], np.flatnonzero(broken))
            broken[again] = guard.AGAIN
            array[:, torch.from_numpy(np.isin(owners, again))] = 0.0
        self._tensors[guard.AFRESH, broken == guard.AGAIN] = 1

    # --- what is told -------------------------------------------------------------------------------------------------

    def _active(self, selection: Selection) -> NDArray[np.bool_]:
        parameters = selection.layout.parameters
        return np.array([parameter.name not in selection.skipped for parameter in parameters])

    def _notes(self) -> tuple[GuardNote, ...]:
        events, causes, broken = self._verdicts
        afresh = np.where(events == guard.BACK, self._tensors[guard.AFRESH] > 0, broken == guard.AGAIN)
        parameters = self._array_layout.layout.parameters
        kinds = np.unique(np.stack([events, causes, afresh])[:, events > 0], axis=1)
        notes = []
        for event, cause, again in kinds.T.tolist():
            places = np.flatnonzero((events == event) & (causes == cause) & (afresh == again))
            names = [parameters[place].name for place in places[:NOTED_NAMES]]
            notes.append(GuardNote(guard.EVENTS[event], guard.REASONS[cause], len(places), names, bool(again)))
        return tuple(notes)


def is_memory_of_guard(name: str, array: Float32s) -> bool:
    """Whether `array` can be what a guard remembers under that name: a state that is put in may say anything."""
    row, most = _BOUNDED.get(name, (0, np.inf))
    return bool(np.isfinite(array).all() and (array[_NEVER_BELOW_0[name]] >= 0).all() and (array[row] <= most).all())


def sizes(optimizer: Optimizer, layout: Layout) -> dict[str, tuple[int, int]]:
    """Rows and columns of what a guard remembers, by name; first what it remembers of tensors."""
    of_tensors = {_TENSORS: (guard.TENSOR_ROWS, len(layout.parameters))}
    if optimizer.kind not in guard.ADAM_MOMENTS:
        of_tensors[_MOMENTS] = (2, layout.coordinates)
    return {**of_tensors, _RUN: (guard.RUN_ROWS, 1)}
