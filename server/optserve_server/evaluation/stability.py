"""How many inner loops diverged: in all, and under each condition that makes it likely."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from optserve.wire.evaluations import EvaluatedTask, EvaluationResult
from optserve_server.evaluation.distortions import Distortion


@dataclass(frozen=True, slots=True)
class Tally:
    """Of `runs` inner loops, so many diverged."""

    runs: int
    diverged: int

    def __str__(self) -> str:
        return f"{self.diverged:,} of {self.runs:,}"


def tallies(result: EvaluationResult, optimizer: str) -> dict[str, Tally]:
    """By condition; a run under several counts with each of them."""
    found: dict[str, Tally] = {}
    for curves in result.curves:
        if curves.optimizer != optimizer:
            continue
        runs = len(curves.losses)
        for condition in conditions(result.tasks[curves.task]):
            before = found.get(condition, Tally(0, 0))
            found[condition] = Tally(before.runs + runs, before.diverged + round(curves.divergence * runs))
    return found


def total(result: EvaluationResult, optimizer: str) -> Tally:
    """Of all runs."""
    own = [curves for curves in result.curves if curves.optimizer == optimizer]
    diverged = sum(round(curves.divergence * len(curves.losses)) for curves in own)
    return Tally(sum(len(curves.losses) for curves in own), diverged)


def by_condition(result: EvaluationResult, optimizers: Sequence[str]) -> Iterator[list[str]]:
    """The rows of a table: a condition, and behind it what became of each optimizer; the last row is of all runs."""
    found = [{**tallies(result, name), "all": total(result, name)} for name in optimizers]
    for condition in found[0]:
        yield [condition, *(str(one[condition]) for one in found)]


def conditions(task: EvaluatedTask) -> list[str]:
    """What makes a task hard to survive, for people."""
    return [*_conditions(task)] or ["nothing special"]


def _conditions(task: EvaluatedTask) -> Iterator[str]:
    if task.parameters.get("batch_size") == 1:
        yield "batch size 1"
    if noise := task.parameters.get("label_noise"):
        yield f"label noise {noise:.0%}"
    yield from Distortion(**task.distortion).conditions()
