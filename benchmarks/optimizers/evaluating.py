"""The evaluations that the tables are made of: computed task by task on all cores, once, and then from the cache."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch

from optserve.wire.evaluations import EvaluationResult
from optserve_server.evaluation import plans
from optserve_server.evaluation.cache import Cache
from optserve_server.evaluation.competitors import Entrant
from optserve_server.evaluation.evaluate import Progress, evaluate, to_end


@dataclass(frozen=True)
class Evaluation:
    """A plan without its optimizers, and the weights files of those by name."""

    plan: Mapping[str, Any]
    weights: Mapping[str, bytes]

    @property
    def tasks(self) -> int:
        """How many there are."""
        return len(self._parsed().tasks)

    def of_task(self, number: int) -> "Evaluation":
        """The same on one of its tasks."""
        task = self._parsed().tasks[number].model_dump(mode="json")
        return Evaluation({**self.plan, "tasks": [task]}, self.weights)

    def distorted(self, distortion: Mapping[str, Any]) -> "Evaluation":
        """The same without baselines, every task distorted."""
        tasks = [{**task.model_dump(mode="json"), "distortion": distortion} for task in self._parsed().tasks]
        return Evaluation({**self.plan, "tasks": tasks, "baselines": [], "untuned": []}, self.weights)

    def carry_out(self) -> EvaluationResult:
        """On one core; what the cache of this user knows is not computed."""
        torch.set_num_threads(1)
        cache = Cache.of_user()

        def keep(progress: Progress) -> None:
            if progress.curves is not None:
                cache.keep(progress.fingerprint, progress.curves)

        entrants = [Entrant.read(name, data) for name, data in self.weights.items()]
        return to_end(evaluate(self._parsed(), entrants, recall=cache.recall), keep)

    def _parsed(self) -> plans.Plan:
        return plans.parse({**self.plan, "optimizers": list(self.weights)})


def carry_out(evaluations: Sequence[Evaluation], processes: int) -> list[EvaluationResult]:
    """All of them, on so many cores."""
    parts = [one.of_task(number) for one in evaluations for number in range(one.tasks)]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        under_way = {pool.submit(_compute, part): part for part in parts}
        for done, future in enumerate(as_completed(under_way), start=1):
            print(f"{done} of {len(parts)}: {future.result()}", flush=True)
    return [one.carry_out() for one in evaluations]


def _compute(part: Evaluation) -> str:
    return part.carry_out().tasks[0].label
