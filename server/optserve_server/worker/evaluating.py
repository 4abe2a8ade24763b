"""An evaluation in a worker: cell after cell, each persisted when it is finished."""

from collections.abc import Sequence

import torch
from sqlalchemy.orm import Session

from optserve.wire.evaluations import Curves, Rank
from optserve_server.evaluation import memory, plans
from optserve_server.evaluation.competitors import Entrant
from optserve_server.evaluation.evaluate import Progress, evaluate
from optserve_server.evaluation.plans import Plan
from optserve_server.registry import evaluations, leases, optimizers
from optserve_server.registry.leases import CANCELLED
from optserve_server.registry.models import Evaluation
from optserve_server.worker.devices import device_memory_bytes
from optserve_server.worker.holding import Holding
from optserve_server.worker.jobs import last_line


class Evaluating:
    """One attempt at an evaluation. The cell that it is at when it stops is begun anew by the next attempt."""

    def __init__(self, holding: Holding[Evaluation], device: torch.device) -> None:
        self._holding = holding
        self._device = device
        self._progress: Progress | None = None

    def carry_out(self) -> None:
        """Do the cells that are left."""
        plan, entrants, finished = self._holding.persist(_read)
        memory.require_room(plan, entrants, device_memory_bytes(self._device))
        running = evaluate(plan, entrants, finished, self._device, self._recall)
        while True:
            self._holding.require()
            if self._holding.cancel_requested:
                return self._holding.persist(_cancel)
            if self._holding.shutting_down:
                return self._holding.persist(leases.give_back)
            try:
                self._progress = next(running)
            except StopIteration as end:
                return self._succeed(end.value.ranking)
            if self._progress.curves is not None:
                self._keep(self._progress.curves, self._progress.fingerprint)

    def explain(self, error: BaseException) -> str:
        """The optimizer, the task and the inner step, and the last line of the traceback."""
        if self._progress is None:
            return last_line(error)
        at = self._progress
        return f"{at.optimizer} on {at.task}, after inner step {at.step}: {last_line(error)}"

    def _succeed(self, ranking: Sequence[Rank]) -> None:
        self._holding.persist(lambda db_session, held: evaluations.succeed(db_session, held, ranking))

    def _recall(self, fingerprint: str) -> Curves | None:
        return self._holding.persist(lambda db_session, _: evaluations.recall_curves(db_session, fingerprint))

    def _keep(self, curves: Curves, fingerprint: str) -> None:
        self._holding.persist(lambda db_session, held: evaluations.add_curves(db_session, held, curves, fingerprint))


def _read(db_session: Session, evaluation: Evaluation) -> tuple[Plan, list[Entrant], list[Curves]]:
    plan = plans.parse(evaluation.plan)
    entrants = [Entrant.read(name, optimizers.resolve(db_session, name).weights) for name in plan.optimizers]
    return plan, entrants, evaluations.list_curves(db_session, evaluation)


def _cancel(db_session: Session, evaluation: Evaluation) -> None:
    leases.finish(db_session, evaluation, CANCELLED)
