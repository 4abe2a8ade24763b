"""An evaluation: every optimizer and every baseline on every task, one cell after another."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace

import torch

from optserve.wire.evaluations import Curves, EvaluatedTask, EvaluationResult
from optserve_server.evaluation import competitors, inner_loops, plans
from optserve_server.evaluation.comparisons import compare
from optserve_server.evaluation.competitors import Competitor, Entrant
from optserve_server.evaluation.plans import Plan
from optserve_server.evaluation.summaries import rank


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an evaluation is: `cells` are the pairs of a task at one T and an optimizer, and `done` of them finished.

    The present inner loop is at step `step`. `curves` are there when a cell has just been finished, and `fingerprint`
    tells what of.
    """

    done: int
    cells: int
    task: str
    optimizer: str
    step: int
    curves: Curves | None = None
    fingerprint: str = ""


def evaluate(
    plan: Plan,
    entrants: Sequence[Entrant],
    finished: Sequence[Curves] = (),
    device: torch.device = inner_loops.CPU,
    recall: Callable[[str], Curves | None] = lambda fingerprint: None,
) -> Generator[Progress, None, EvaluationResult]:
    """Carry a plan out; `entrants` are its optimizers.

    Cells in `finished`, of an earlier attempt, are not done again, nor, unless the plan says so, are those whose
    fingerprint `recall` knows. Each optimizer is computed on each task by itself, from the plan's seed alone, so that
    an interrupted evaluation ends as it would have done uninterrupted.
    """
    known = {(curves.task, curves.optimizer): curves for curves in finished}
    everyone: list[Competitor] = [*entrants, *competitors.of(plan)]
    tasks = plans.described(plan.model_dump(mode="json"))
    for number, task in enumerate(plan.tasks):
        first = number * len(plan.horizons)
        places = range(first, first + len(plan.horizons))
        for competitor in everyone:
            name = competitor.name
            if all((place, name) in known for place in places):
                continue
            begun = Progress(len(known), plan.cells, tasks[first].label, name, step=0)
            yield begun
            prints = competitor.fingerprints(plan, task, device)
            curves = _recalled(prints, recall) if plan.cache else None
            if curves is None:
                curves = yield from _told(competitor.curves(plan, task, device), begun)
            for place, one, fingerprint in zip(places, curves, prints, strict=True):
                if (place, name) not in known:
                    known[place, name] = own = replace(one, task=place, optimizer=name)
                    yield replace(begun, done=len(known), step=plan.steps, curves=own, fingerprint=fingerprint)
    curves_by_task = sorted(known.values(), key=lambda curves: curves.task)
    return result(plan.steps, plan.seeds, tasks, curves_by_task)


def result(steps: int, seeds: int, tasks: Sequence[EvaluatedTask], curves: Sequence[Curves]) -> EvaluationResult:
    """What all curves of an evaluation amount to."""
    return EvaluationResult(steps, seeds, list(tasks), list(curves), rank(tasks, curves), compare(tasks, curves))


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


def _told(running: Generator[int, None, list[Curves]], begun: Progress) -> Generator[Progress, None, list[Curves]]:
    while True:
        try:
            yield replace(begun, step=next(running))
        except StopIteration as end:
            curves: list[Curves] = end.value
            return curves


def _recalled(prints: Sequence[str], recall: Callable[[str], Curves | None]) -> list[Curves] | None:
    """All of them, or none where one is missing."""
    curves = [one for one in map(recall, prints) if one is not None]
    return curves if len(curves) == len(prints) else None
