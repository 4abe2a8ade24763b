"""How much memory a plan needs, before it is carried out.

A guess that is far too high tells at once that there is room enough for usual plans. Else of each family the largest
task is rehearsed: the first steps of its inner loops, on tensors that have shapes and no numbers. What these would
occupy is counted (`metatraining.memory`), at any size in a second or so.
"""

import math
from collections.abc import Iterator, Sequence

import torch

from optserve_server.evaluation import inner_loops
from optserve_server.evaluation.baselines import FIRST_RATES
from optserve_server.evaluation.competitors import Entrant
from optserve_server.evaluation.inner_loops import MAX_POINTS
from optserve_server.evaluation.plans import Plan, PlanError, PlannedTask, label
from optserve_server.evaluation.rules import BASELINES, Rule
from optserve_server.metatraining.memory import FRAGMENTATION, PROCESS_BYTES, measure
from optserve_server.tasks.base import coordinates

_GIB = 2**30
_LOSS_BYTES = 24  # of one loss of one loop at one step, in all its copies, until the curve is thinned
_POINT_BYTES = 32  # of each point of a curve that is kept
_GUESSED_BYTES = 400  # for each weight of each loop, and for each of a thousand numbers a row of a minibatch


def require_room(plan: Plan, entrants: Sequence[Entrant], there: int) -> None:
    """Check that `there` bytes of memory are enough.

    Raises:
        PlanError: they are not; names the task that needs the most. Or a family's step fails.
    """
    if PROCESS_BYTES + max(_guess(plan, task) for task in plan.tasks) <= there:
        return
    needed, number = max((_task_bytes(plan, number, entrants), number) for number in _largest(plan))
    if needed > there:
        task = plan.tasks[number]
        raise PlanError(
            f"tasks.{number}",
            f"{plan.seeds} seeds of {label(task.family, task.parameters)} at {plan.steps} steps need about "
            f"{needed / _GIB:.1f} GiB of memory, and there are {there / _GIB:.1f}; take fewer seeds, fewer steps or a "
            "smaller task",
        )


def _guess(plan: Plan, task: PlannedTask) -> int:
    """More than a task needs."""
    family = task.build()
    numbers = FIRST_RATES * coordinates(family) + 1000 * getattr(family, "batch_size", 1)
    losses = FIRST_RATES * _LOSS_BYTES * plan.steps + _POINT_BYTES * (MAX_POINTS + 1) * plan.cells
    return plan.seeds * (_GUESSED_BYTES * numbers + losses)


def _largest(plan: Plan) -> Iterator[int]:
    """Of each family the place of the task with the most weights times rows."""
    sizes: dict[str, tuple[int, int]] = {}
    for number, task in enumerate(plan.tasks):
        family = task.build()
        size = coordinates(family) * getattr(family, "batch_size", 1)
        sizes[task.family] = max(sizes.get(task.family, (0, 0)), (size, number))
    return (number for _, number in sizes.values())


def _task_bytes(plan: Plan, number: int, entrants: Sequence[Entrant]) -> int:
    """At the peak of the process, for the hungriest learned optimizer and the hungriest baseline."""
    task = plan.tasks[number]
    rules = [(Rule(one.optimizer, one.phi), 1) for one in entrants]
    rules += [(BASELINES[name], FIRST_RATES) for name in plan.baselines]
    hungriest = {rates: rule for rule, rates in sorted(rules, key=lambda pair: len(pair[0].optimizer.features))}
    working = max(_peak(plan, task, rule, rates) for rates, rule in hungriest.items())
    losses = _LOSS_BYTES * plan.steps * plan.seeds * max(hungriest)
    points = min(plan.steps, MAX_POINTS) + 1
    kept = _POINT_BYTES * points * plan.seeds * plan.cells
    return PROCESS_BYTES + math.ceil(FRAGMENTATION * (working + losses)) + kept


def _peak(plan: Plan, task: PlannedTask, rule: Rule, rates: int) -> int:
    family, generator = task.build(), torch.Generator()
    for split in ("train", "held-out"):  # what a family keeps of its data has to have numbers
        family.batch(generator, family.sample(generator, 1, split), 1)
    try:
        return measure(lambda _: inner_loops.rehearse(task, rule, plan, [1.0] * rates)).peak
    except Exception as error:
        what = f"{type(error).__name__}: {error}".rstrip(".")
        message = f"a step on {label(task.family, task.parameters)} raises {what}; docs/tasks.md says what a family"
        raise PlanError(f"tasks.{plan.tasks.index(task)}", f"{message} has to be like") from error
