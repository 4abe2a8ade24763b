"""How much memory a recipe needs, before it runs.

The recipe's own code takes a few steps on tensors that have shapes and no numbers (`FakeTensorMode`), and what these
would occupy is counted. So every architecture, family and estimator is covered, at any size, in a second.
"""

import math
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from optserve_server.metatraining.estimators.backpropagation import backpropagation
from optserve_server.metatraining.estimators.base import Window
from optserve_server.metatraining.recipes import Recipe
from optserve_server.metatraining.trajectories import draw_groups
from optserve_server.metatraining.validation import VALIDATION_TASKS, held_out_meta_loss

PROCESS_BYTES = 300 * 2**20
"""Of a worker that has imported everything and computes nothing."""

_FRAGMENTATION = 1.6
"""What a process holds for each byte of its tensors: the C library keeps freed pieces of all sizes for later."""

_SHORT, _LONG = 2, 4  # steps of the windows that are measured: memory grows by the same amount with every step


def estimate_bytes(recipe: Recipe) -> int:
    """The memory of a worker at its peak, in bytes, to within a factor of two.

    That is the process, the tasks with their inner loops, and the greater of what one window of the estimator and what
    a validation need.
    """
    tasks = recipe.meta_optimizer.tasks_per_outer_step
    whole = sum(share.weight for share in recipe.tasks)
    for number in range(len(recipe.tasks)):
        _warm_caches(recipe, number)
    kept, working = 0, _validation_bytes(recipe)
    for number, share in enumerate(recipe.tasks):
        expected = tasks * share.weight / whole
        count = min(
            tasks, math.ceil(expected + 2 * math.sqrt(expected))
        )  # of a random number of tasks, nearly the most
        group, window = _group_bytes(recipe, number, count)
        kept += group
        working = max(working, window)
    return PROCESS_BYTES + math.ceil(_FRAGMENTATION * (kept + working))


def _group_bytes(recipe: Recipe, number: int, count: int) -> tuple[int, int]:
    """What `count` tasks of one share occupy, and what one window of them needs beside that."""
    short, long = _one_window(recipe, number, count, _SHORT), _one_window(recipe, number, count, _LONG)
    growth = (long.peak - short.peak) / (_LONG - _SHORT)
    peak = short.peak + max(0.0, growth) * max(0, recipe.unroll.window - _SHORT)
    return short.kept, math.ceil(peak) - short.kept


def _one_window(recipe: Recipe, number: int, count: int, steps: int) -> "_Meter":
    counts = [count if share == number else 0 for share in range(len(recipe.tasks))]

    def run(meter: _Meter) -> None:
        optimizer, generator = recipe.optimizer(), torch.Generator()
        phi = optimizer.initial_phi(generator)
        (group,) = draw_groups(recipe.tasks, counts, optimizer, generator, "train")
        meter.kept = meter.now
        window = Window(0, steps, recipe.unroll.longest)
        backpropagation(recipe, optimizer, phi, group, window, generator)

    return _measure(run)


def _validation_bytes(recipe: Recipe) -> int:
    def run(_: _Meter) -> None:
        optimizer = recipe.optimizer()
        held_out_meta_loss(recipe, optimizer, optimizer.initial_phi(torch.Generator()), _SHORT, VALIDATION_TASKS)

    return _measure(run).peak


def _warm_caches(recipe: Recipe, number: int) -> None:
    """Let the family load its data while tensors are real: what it keeps for later must have numbers."""
    family, generator = recipe.tasks[number].build(), torch.Generator()
    for split in ("train", "held-out"):
        family.batch(generator, family.sample(generator, 1, split), 1)


def _measure(run: Callable[["_Meter"], None]) -> "_Meter":
    meter = _Meter()
    with FakeTensorMode(allow_non_fake_inputs=True), meter, torch.enable_grad():
        run(meter)
    return meter


class _Meter(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive: `now`, and at the `peak`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.kept = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0  # a decision on a number, and there are none: the way of a run in which all is finite
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def forget(_: weakref.ref[torch.UntypedStorage]) -> None:
            del self._alive[key]
            self.now -= size

        self._alive[key] = weakref.ref(storage, forget)
        self.now += size
        self.peak = max(self.peak, self.now)
