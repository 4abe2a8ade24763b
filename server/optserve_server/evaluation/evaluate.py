"""An evaluation: every optimizer and every baseline on every task, one cell after another."""

import hashlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch

from optserve.wire.evaluations import Curves, EvaluatedTask, EvaluationResult, Loss
from optserve_server.evaluation import baselines, fingerprints, inner_loops, plans
from optserve_server.evaluation.baselines import Tuned
from optserve_server.evaluation.comparisons import compare
from optserve_server.evaluation.inner_loops import Measured
from optserve_server.evaluation.plans import Plan, PlanError
from optserve_server.evaluation.rules import Rule
from optserve_server.evaluation.summaries import Losses, divergence, quantile, rank, to_json
from optserve_server.metatraining.tables import TaskShare
from optserve_server.optimizers import Optimizer, Phi, weights


@dataclass(frozen=True, slots=True)
class Entrant:
    """A learned optimizer that is evaluated, under the name that the plan has for it."""

    name: str
    optimizer: Optimizer
    phi: Phi
    sha256: str
    """Of the weights file."""

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
        return cls(name, optimizer, phi, hashlib.sha256(data).hexdigest())


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
    competitors = {entrant.name: entrant for entrant in entrants} | dict.fromkeys(plan.baselines)
    tasks = plans.described(plan.model_dump(mode="json"))
    for number, task in enumerate(plan.tasks):
        first = number * len(plan.horizons)
        places = range(first, first + len(plan.horizons))
        for name, entrant in competitors.items():
            if all((place, name) in known for place in places):
                continue
            begun = Progress(len(known), plan.cells, tasks[first].label, name, step=0)
            yield begun
            prints = _fingerprints(plan, task, name, entrant, device)
            curves = _recalled(prints, recall) if plan.cache else None
            if curves is None:
                curves = yield from _told(_curves(plan, task, name, entrant, device), begun)
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


def _fingerprints(plan: Plan, task: TaskShare, name: str, entrant: Entrant | None, device: torch.device) -> list[str]:
    if entrant is None:
        return fingerprints.of_baseline(plan, task, name, device)
    return fingerprints.of_weights(plan, task, entrant.optimizer, entrant.sha256, device)


def _recalled(prints: Sequence[str], recall: Callable[[str], Curves | None]) -> list[Curves] | None:
    """All of them, or none where one is missing."""
    curves = [one for one in map(recall, prints) if one is not None]
    return curves if len(curves) == len(prints) else None


def _curves(
    plan: Plan, task: TaskShare, name: str, entrant: Entrant | None, device: torch.device
) -> Generator[int, None, list[Curves]]:
    """The curves of an entrant, or of the baseline of that name, at each T of the plan."""
    if entrant is None:
        tuned = yield from baselines.tune(task, name, plan, device)
        return [_of_baseline(name, one, horizon) for one, horizon in zip(tuned, plan.horizons, strict=True)]
    phi = {name: weight.to(device) for name, weight in entrant.phi.items()}
    rule = Rule(entrant.optimizer, phi)
    measured: list[Measured] = []
    for horizons in [(one,) for one in plan.horizons] if rule.knows_horizon else [plan.horizons]:
        measured += yield from inner_loops.run(task, rule, plan, horizons, device=device)
    return [
        _summarised(name, horizon, one.losses[0], None if one.held_out is None else one.held_out[0])
        for one, horizon in zip(measured, plan.horizons, strict=True)
    ]


def _of_baseline(name: str, tuned: Tuned, horizon: int) -> Curves:
    return replace(
        _summarised(name, horizon, tuned.losses, tuned.held_out),
        baseline=True,
        learning_rate=tuned.learning_rate,
        learning_rates=tuned.tried,
        held_out_learning_rate=tuned.held_out_rate,
        best_held_out=_list(tuned.best_held_out),
    )


def _summarised(name: str, horizon: int, losses: Losses, held_out: Losses | None) -> Curves:
    """`losses` are `[seeds, points]`, `held_out` are `[seeds]`. Which task they are of is for the caller to say."""
    return Curves(
        task=0,
        optimizer=name,
        baseline=False,
        learning_rate=None,
        learning_rates=[],
        steps=inner_loops.points(horizon).tolist(),
        losses=[to_json(seed) for seed in losses],
        median=to_json(quantile(losses, 0.5)),
        lower_quartile=to_json(quantile(losses, 0.25)),
        upper_quartile=to_json(quantile(losses, 0.75)),
        divergence=divergence(losses[:, 0], losses[:, -1]),
        held_out=_list(held_out),
    )


def _list(losses: Losses | None) -> list[Loss]:
    return [] if losses is None else to_json(losses)
