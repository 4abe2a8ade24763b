"""A step of a session as a whole, for the optimizers that are not coordinatewise: all its tensors at once.

They keep arrays beside the pages, for each parameter tensor and for the session. One session is stepped at a time, by
one thread, so that no bit depends on what else the server does.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from optserve_server.optimizers import HiddenState, Observations, Optimizer, Phi, Updates
from optserve_server.optimizers.base import PAGE, array_sizes
from optserve_server.optimizers.serving import kernel_name, step_session
from optserve_server.sessions.layout import Layout, Selection
from optserve_server.sessions.pages import Arena

Arrays = dict[str, Tensor]
"""By name: `[rows, Σ size]`, float32, each parameter's columns in declared order; or `[rows, 1]` of the session."""

_SCRATCH_BYTES = {"numba": 96, "torch": 256}  # for each coordinate while a step lasts; a test measures it
_FREE_SCRATCH_BYTES = 1 << 20  # not counted, for no more sessions are stepped at once than there are cores


@dataclass(frozen=True)
class ArrayLayout:
    """What a session of this optimizer keeps beside its pages; nothing where the optimizer is coordinatewise."""

    optimizer: Optimizer
    layout: Layout

    @cached_property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of all arrays by name, first those of tensors."""
        return array_sizes(self.optimizer, self.layout.shapes)

    @cached_property
    def columns(self) -> dict[str, list[int]]:
        """How many columns each parameter has in the arrays of tensors, by the array's name."""
        each = [self.optimizer.tensor_arrays(shape) for shape in self.layout.shapes]
        return {name: [sizes[name][1] for sizes in each] for name in each[0]}

    @cached_property
    def scratch_bytes(self) -> int:
        """What a step takes while it lasts, beside gradients and updates."""
        if self.optimizer.coordinatewise:
            return 0
        return max(0, self.layout.coordinates * _SCRATCH_BYTES[kernel_name(self.optimizer.kind)] - _FREE_SCRATCH_BYTES)

    def initial(self) -> Arrays:
        """The arrays of h_0 = 0."""
        return {name: torch.zeros(size) for name, size in self.sizes.items()}

    def of(self, arrays: Arrays, selection: Selection) -> Arrays:
        """The arrays of the selected parameters alone, and of the session."""
        places = self._places(selection)
        return {name: array[:, places[name]] if name in places else array for name, array in arrays.items()}

    def replaced(self, arrays: Arrays, selected: Arrays, selection: Selection) -> Arrays:
        """The arrays with those of the selected parameters, and of the session, replaced."""
        places = self._places(selection)
        return {
            name: arrays[name].index_copy(1, places[name], array) if name in places else array
            for name, array in selected.items()
        }

    def _places(self, selection: Selection) -> dict[str, Tensor]:
        if not selection.skipped:
            return {}
        chosen = torch.tensor([parameter.name not in selection.skipped for parameter in self.layout.parameters])
        return {
            name: torch.repeat_interleave(chosen, torch.tensor(columns)).nonzero().flatten()
            for name, columns in self.columns.items()
        }


def step_whole(
    arrays_layout: ArrayLayout,
    phi: Phi,
    arena: Arena,
    page_numbers: Tensor,
    arrays: Arrays,
    observations: Observations,
    selection: Selection,
) -> tuple[Updates, Arrays]:
    """Step the selected parameters: replace their state in the pages, and return the updates and the following arrays.

    What coordinates have is `[pages, 256]` in `observations`, as in the updates, which are 0 for the others. Those take
    no part: their coordinates and arrays stand still, and nothing that is summed over the session counts them.
    """
    layout = selection.layout
    active = selection.active()
    places = slice(layout.coordinates) if active is None else active.flatten().nonzero().flatten()
    updates = torch.zeros(layout.pages * PAGE)
    if selection.parameters:
        coordinates = torch.empty(arena.features, layout.coordinates)
        arena.read_into(page_numbers, coordinates.numpy())
        chosen = coordinates if active is None else coordinates[:, places]
        before, seen = HiddenState(chosen, arrays_layout.of(arrays, selection)), _flat(observations, places, selection)
        updates[places], after = step_session(arrays_layout.optimizer, phi, seen, before)
        if after.coordinates is not coordinates:
            coordinates[:, places] = after.coordinates
        arena.write(page_numbers, coordinates.numpy())
        arrays = arrays_layout.replaced(arrays, after.arrays, selection)
    return updates.view(-1, PAGE), arrays


def _flat(observations: Observations, places: slice | Tensor, selection: Selection) -> Observations:
    clock, parameters = observations.clock, observations.parameters
    return Observations(
        gradients=observations.gradients.flatten()[places],
        clock=clock if clock.dim() == 1 else clock.flatten()[places],
        parameters=None if parameters is None else parameters.flatten()[places],
        loss=observations.loss,
        horizon=observations.horizon,
        shapes=tuple(parameter.shape for parameter in selection.parameters),
    )
