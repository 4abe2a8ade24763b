"""How much memory a recipe needs, before it runs.

The recipe's own code takes a few steps on tensors that have shapes and no numbers (`FakeTensorMode`), and what these
would occupy is counted. So every architecture, family and estimator is covered, at any size, in a second.
"""

import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from optserve_server.metatraining import estimators
from optserve_server.metatraining.crew import crew_size
from optserve_server.metatraining.estimators import Window
from optserve_server.metatraining.imitation import Teacher
from optserve_server.metatraining.recipes import Recipe, RecipeError
from optserve_server.metatraining.tables import TaskShare, Validation, VariedShare
from optserve_server.metatraining.trajectories import draw_groups
from optserve_server.metatraining.validation import VALIDATION_TASKS, held_out_loss, held_out_meta_loss
from optserve_server.tasks.base import coordinates

PROCESS_BYTES = 300 * 2**20
"""Of a worker that has imported everything and computes nothing."""

FRAGMENTATION = 1.6
"""What a process holds for each byte of its tensors: the C library keeps freed pieces of all sizes for later."""

_CHECKPOINT_COPIES = 2
"""Of the trajectories under way, while the bytes of a training checkpoint are put together."""


class Size(NamedTuple):
    """Bytes of what lasts from window to window, and of everything at the peak of one window."""

    kept: int
    peak: int


def estimate_bytes(recipe: Recipe, processes: int = 1) -> int:
    """The memory of a worker at its peak, in bytes, to within a factor of two.

    That is the process, the trajectories under way, and the greatest of what one window of the estimator, a validation
    and a training checkpoint need; of several `processes` each has a window at a time. Of `choices` it is those that
    need most.

    Raises:
        RecipeError: naming the tasks on which a step fails, and how.
    """
    crew = crew_size(recipe, processes)
    shares = []
    for number, share in enumerate(recipe.tasks):
        with _naming_tasks(f"tasks.{number}", share.family):
            shares.append(_heaviest(share))
    recipe = recipe.model_copy(update={"tasks": tuple(shares)})
    sizes = []
    for number, count in enumerate(_counts(recipe)):
        with _naming_tasks(f"tasks.{number}", recipe.tasks[number].family):
            sizes.append(_group_size(recipe, number, count))
    kept = [size.kept for size in sizes]
    trajectories = recipe.unroll.trajectories
    all_kept = sum(kept) if trajectories == 1 else trajectories * max(kept)
    window = max(size.peak - size.kept for size in sizes)
    copies = _CHECKPOINT_COPIES * (1 if crew == 1 else 2)  # which the crew makes first, and then the worker
    working = max(crew * window, _validation_bytes(recipe), copies * all_kept)
    processes = 1 if crew == 1 else 1 + crew
    return processes * PROCESS_BYTES + math.ceil(FRAGMENTATION * (all_kept + working))


@contextmanager
def _naming_tasks(path: str, family: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        what = f"{type(error).__name__}: {error}".rstrip(".")
        message = (
            f"a step on tasks of the family {family!r} raises {what}; docs/tasks.md says what a family has to be like"
        )
        raise RecipeError(path, message) from error


def _counts(recipe: Recipe) -> list[int]:
    """Of each share, the most tasks that a trajectory is likely to have."""
    tasks = recipe.meta_optimizer.tasks_per_outer_step // recipe.unroll.advance
    if recipe.unroll.trajectories > 1:
        return [tasks] * len(recipe.tasks)
    whole = sum(share.weight for share in recipe.tasks)
    expected = [tasks * share.weight / whole for share in recipe.tasks]
    return [min(tasks, math.ceil(mean + 2 * math.sqrt(mean))) for mean in expected]


def _group_size(recipe: Recipe, number: int, count: int) -> Size:
    """Of `count` tasks of one share, on lines through small sizes: at any size it takes no more than a second or so."""
    if recipe.gradient.estimator == "backpropagation":
        return _extrapolated(lambda steps: _window_size(recipe, number, count, steps), recipe.unroll.window, (2, 4))

    def with_pairs(tasks: int, pairs: int) -> Size:
        gradient = recipe.gradient.model_copy(update={"pairs": pairs})
        return _window_size(recipe.model_copy(update={"gradient": gradient}), number, tasks, 2)

    def with_tasks(tasks: int) -> Size:
        return _extrapolated(lambda pairs: with_pairs(tasks, pairs), recipe.gradient.pairs, (1, 2))

    return _extrapolated(with_tasks, count, (1, 2))


def _extrapolated(size: Callable[[int], Size], wanted: int, at: tuple[int, int]) -> Size:
    """The size at `wanted`, on the line through those at two small numbers."""
    first, second = at
    if wanted <= first:
        return size(wanted)
    low, high = size(first), size(second)
    share = (wanted - first) / (second - first)
    return Size(*(math.ceil(a + max(0, b - a) * share) for a, b in zip(low, high, strict=True)))


def _window_size(recipe: Recipe, number: int, count: int, steps: int) -> Size:
    counts = [count if share == number else 0 for share in range(len(recipe.tasks))]

    def run(meter: Meter) -> None:
        optimizer, generator = recipe.optimizer(), torch.Generator()
        phi = optimizer.initial_phi(generator)
        (drawn,) = draw_groups(recipe.tasks, counts, optimizer, generator, "train")
        estimator = estimators.build(recipe)
        group = estimator.begin(drawn, optimizer, phi, generator)
        del drawn
        if recipe.imitation is not None:
            group.teacher = Teacher.of(group.state.coordinates, recipe.imitation.learning_rate)
        meter.kept = meter.now
        estimator.estimate(optimizer, phi, group, Window(0, steps, recipe.unroll.longest), generator)

    meter = measure(run)
    return Size(meter.kept, meter.peak)


def _heaviest(share: VariedShare) -> TaskShare:
    """The share with the choice of each parameter of which a task and a step have most numbers, the others the first.

    The numbers in θ, in a task and in what a step sees of it are counted: measuring f and ∇f of every choice would take
    half a minute where there are a hundred.
    """

    def numbers(name: str, value: Any) -> int:
        alone = share.with_choices({name: value})
        _warm_caches(alone)
        family, generator = alone.build(), torch.Generator()
        data = family.sample(generator, 1, "train")
        seen = family.batch(generator, data, 1)
        return coordinates(family) + sum(tensor.numel() for tensor in (*data.values(), *seen.values()))

    _warm_caches(share)
    varied = {name: values for name, values in share.choices.items() if len(values) > 1}
    return share.with_choices({name: max(values, key=partial(numbers, name)) for name, values in varied.items()})


def _validation_bytes(recipe: Recipe) -> int:
    optimizer, settings = recipe.optimizer(), recipe.validation
    phi = optimizer.initial_phi(torch.Generator())

    def of_own_tasks(_: Meter) -> None:
        held_out_meta_loss(recipe, optimizer, phi, 2, VALIDATION_TASKS)

    def of_others(share: TaskShare, settings: Validation, _: Meter) -> None:
        alone = settings.model_copy(update={"tasks": (share,), "horizons": (2,)})
        held_out_loss(recipe.model_copy(update={"validation": alone}), optimizer, phi)

    peak = 0
    if settings is None or recipe.curriculum is not None:
        peak = measure(of_own_tasks).peak
    if settings is None:
        return peak
    for number, share in enumerate(settings.tasks):
        with _naming_tasks(f"validation.tasks.{number}", share.family):
            _warm_caches(share)
            peak = max(peak, measure(partial(of_others, share, settings)).peak)
    return peak


def _warm_caches(share: TaskShare) -> None:
    """Let the family load its data while tensors are real: what it keeps for later must have numbers."""
    family, generator = share.build(), torch.Generator()
    for split in ("train", "held-out"):
        family.batch(generator, family.sample(generator, 1, split), 1)


def measure(run: Callable[["Meter"], None]) -> "Meter":
    """Count what `run` allocates, on tensors that have shapes and no numbers."""
    meter = Meter()
    with FakeTensorMode(allow_non_fake_inputs=True), meter, torch.enable_grad():
        run(meter)
    return meter


class Meter(TorchDispatchMode):
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
