"""An evaluation: every optimizer and every baseline on every task, one cell after another."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch

from optserve.wire.evaluations import Curves, EvaluationResult
from optserve_server.evaluation import baselines, inner_loops, plans
from optserve_server.evaluation.plans import Plan, PlanError
from optserve_server.evaluation.summaries import Losses, divergence, quantile, rank, to_json
from optserve_server.optimizers import Optimizer, Phi, weights


@dataclass(frozen=True, slots=True)
class Entrant:
    """A learned optimizer that is evaluated, under the name that the plan has for it."""

    name: str
    optimizer: Optimizer
    phi: Phi

    @classmethod
    def read(cls, name: str, data: bytes) -> Self:
        """From the bytes of a weights file.

        Raises:
            PlanError: of an optimizer designed by hand, or no weights file.
        """
        try:
            optimizer, phi, _ = weights.decode(data)
        except ValueError as error:
            raise PlanError("optimizers", f"{name} is no weights file: {error}") from error
        if not optimizer.learned:
            raise PlanError("optimizers", f"{name} is designed by hand; name it in `baselines`, where it is tuned")
        return cls(name, optimizer, phi)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an evaluation is: `cells` are the pairs of a task and an optimizer, and `done` of them are finished.

    The present one is at inner step `step`, of the plan's `steps`. `curves` is there when it has just been finished.
    """

    done: int
    cells: int
    task: str
    optimizer: str
    step: int
    curves: Curves | None = None


def evaluate(
    plan: Plan,
    entrants: Sequence[Entrant],
    finished: Sequence[Curves] = (),
    device: torch.device = inner_loops.CPU,
) -> Generator[Progress, None, EvaluationResult]:
    """Carry a plan out; `entrants` are its optimizers. Cells in `finished`, of an earlier attempt, are not done again.

    Each cell is computed by itself, from the plan's seed alone, so that an interrupted evaluation ends as it would have
    done uninterrupted.
    """
    known = {(curves.task, curves.optimizer): curves for curves in finished}
    competitors = {entrant.name: entrant for entrant in entrants} | dict.fromkeys(plan.baselines)
    tasks = plans.described(plan.model_dump(mode="json")["tasks"])
    for number, task in enumerate(tasks):
        for name, entrant in competitors.items():
            if (number, name) in known:
                continue
            begun = Progress(len(known), plan.cells, task.label, name, step=0)
            yield begun
            known[number, name] = curves = yield from _told(_cell(plan, number, name, entrant, device), begun)
            yield Progress(len(known), plan.cells, task.label, name, plan.steps, curves)
    curves_by_task = sorted(known.values(), key=lambda curves: curves.task)
    return EvaluationResult(plan.steps, plan.seeds, tasks, curves_by_task, rank(tasks, curves_by_task))


def to_end(
    running: Generator[Progress, None, EvaluationResult], tell: Callable[[Progress], object] = lambda _: None
) -> EvaluationResult:
    """Let an evaluation run until its end; `tell` is called with all progress on the way."""
    while True:
        try:
            tell(next(running))
        except StopIteration as end:
            found: EvaluationResult = end.value
            return found


def _told(cell: Generator[int, None, Curves], begun: Progress) -> Generator[Progress, None, Curves]:
    while True:
        try:
            yield replace(begun, step=next(cell))
        except StopIteration as end:
            curves: Curves = end.value
            return curves


def _cell(
    plan: Plan, number: int, name: str, entrant: Entrant | None, device: torch.device
) -> Generator[int, None, Curves]:
    """The curves of an entrant, or of the baseline of that name."""
    task = plan.tasks[number]
    if entrant is not None:
        phi = {name: weight.to(device) for name, weight in entrant.phi.items()}
        losses = yield from inner_loops.run(task, entrant.optimizer, phi, plan, device=device)
        return _curves(number, name, losses[0], plan.steps)
    tuned = yield from baselines.tune(task, name, plan, device)
    return _curves(number, name, tuned.losses, plan.steps, tuned)


def _curves(number: int, name: str, losses: Losses, steps: int, tuned: baselines.Tuned | None = None) -> Curves:
    """`losses` are `[seeds, points]`."""
    return Curves(
        task=number,
        optimizer=name,
        baseline=tuned is not None,
        learning_rate=tuned.learning_rate if tuned else None,
        learning_rates=tuned.tried if tuned else [],
        steps=inner_loops.points(steps).tolist(),
        losses=[to_json(seed) for seed in losses],
        median=to_json(quantile(losses, 0.5)),
        lower_quartile=to_json(quantile(losses, 0.25)),
        upper_quartile=to_json(quantile(losses, 0.75)),
        divergence=divergence(losses[:, 0], losses[:, -1]),
    )
