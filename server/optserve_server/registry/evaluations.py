"""Every query on evaluations and their cells, which are the curves of one optimizer on one task.

Each function takes the SQLAlchemy session of a transaction; those that write need `Database.session(write=True)`, and
an evaluation that was read with `lock=True` or held by its lease (`leases.hold`).

A worker writes each cell when it is finished, so that the next worker does only those that are missing.
"""

from collections.abc import Sequence
from dataclasses import asdict

from pydantic import TypeAdapter
from sqlalchemy import select
from sqlalchemy.orm import Session

from optserve.wire.evaluations import Curves, Rank
from optserve_server.evaluation import plans
from optserve_server.evaluation.plans import Plan
from optserve_server.naming import is_name
from optserve_server.registry import leases
from optserve_server.registry.errors import EvaluationConflict, EvaluationNotFound
from optserve_server.registry.models import Evaluation, EvaluationCell

_CURVES = TypeAdapter(Curves)

# --- reading ----------------------------------------------------------------------------------------------------------


def list_evaluations(
    db_session: Session, *, limit: int, below: int | None = None, status: str | None = None
) -> Sequence[Evaluation]:
    """At most `limit` evaluations, the newest first: those with a number `below` the given one, in this `status`."""
    query = select(Evaluation).order_by(Evaluation.number.desc()).limit(limit)
    if below is not None:
        query = query.where(Evaluation.number < below)
    if status is not None:
        query = query.where(Evaluation.status == status)
    return db_session.scalars(query).all()


def get_evaluation(db_session: Session, evaluation_id: str, *, lock: bool = False) -> Evaluation:
    """One evaluation; with `lock`, nobody else writes to it until the transaction ends.

    Raises:
        EvaluationNotFound: there is none of that id.
    """
    if not is_name(evaluation_id):  # nor can every database search for it
        raise EvaluationNotFound(evaluation_id)
    query = select(Evaluation).where(Evaluation.id == evaluation_id)
    evaluation = db_session.scalar(query.with_for_update() if lock else query)
    if evaluation is None:
        raise EvaluationNotFound(evaluation_id)
    return evaluation


def list_curves(db_session: Session, evaluation: Evaluation) -> list[Curves]:
    """The curves of all finished cells, in the order of the tasks, and of the competitors in the plan."""
    query = select(EvaluationCell).where(EvaluationCell.evaluation_number == evaluation.number)
    names = plans.competitors(evaluation.plan)
    cells = sorted(db_session.scalars(query), key=lambda cell: (cell.task, names.index(cell.optimizer)))
    return [_CURVES.validate_python(cell.curves) for cell in cells]


def recall_curves(db_session: Session, fingerprint: str) -> Curves | None:
    """What any evaluation has found of that fingerprint."""
    query = select(EvaluationCell).where(EvaluationCell.fingerprint == fingerprint).limit(1)
    cell = db_session.scalar(query)
    return None if cell is None else _CURVES.validate_python(cell.curves)


def why_not_beaten(db_session: Session, evaluation_id: str, *, winner: str, loser: str) -> str | None:
    """Why an evaluation does not show that the version `winner`, NAME@N, beats `loser`; None where it does.

    Raises:
        EvaluationNotFound: there is none of that id.
    """
    evaluation = get_evaluation(db_session, evaluation_id)
    if evaluation.ranking is None:
        return f"evaluation {evaluation_id} has no ranking: it is {evaluation.status}"
    scores = {line["optimizer"]: line["score"] for line in evaluation.ranking}
    missing = [version for version in (winner, loser) if version not in scores]
    if missing:
        return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not in evaluation {evaluation_id}"
    if scores[winner] < scores[loser]:
        return None
    return (
        f"{winner} did not beat it in evaluation {evaluation_id}: "
        f"its score is {scores[winner]:.4g}, that of {loser} {scores[loser]:.4g}; lower is better"
    )


# --- writing ----------------------------------------------------------------------------------------------------------


def add_evaluation(
    db_session: Session, plan: Plan, *, owner: str, idempotency_key: str | None, fingerprint: str
) -> Evaluation:
    """Queue an evaluation of versions; one that was asked for under the same key at the same time comes instead."""
    evaluation = Evaluation(
        plan=plan.model_dump(mode="json"),
        cells=plan.cells,
        owner=owner,
        idempotency_key=idempotency_key,
        fingerprint=fingerprint,
    )
    return leases.queue(db_session, evaluation)


def cancel_evaluation(db_session: Session, evaluation: Evaluation) -> None:
    """Cancel an evaluation: at once where no worker has it, else its worker does so within a second or two.

    Raises:
        EvaluationConflict: it has succeeded or failed.
    """
    if evaluation.status == leases.CANCELLED:
        return
    if evaluation.status in leases.OVER:
        raise EvaluationConflict(evaluation.id, evaluation.status)
    leases.request_cancel(db_session, evaluation)


def add_curves(db_session: Session, evaluation: Evaluation, curves: Curves, fingerprint: str) -> None:
    """Keep a finished cell, which shows that the evaluation comes on. One that is kept already stays as it is."""
    key = {"evaluation_number": evaluation.number, "task": curves.task, "optimizer": curves.optimizer}
    if db_session.get(EvaluationCell, key) is not None:
        return
    db_session.add(EvaluationCell(**key, curves=asdict(curves), fingerprint=fingerprint))
    evaluation.done += 1
    evaluation.deaths = 0
    db_session.flush()


def succeed(db_session: Session, evaluation: Evaluation, ranking: Sequence[Rank]) -> None:
    """End an evaluation whose cells are all there."""
    evaluation.ranking = [asdict(line) for line in ranking]
    leases.finish(db_session, evaluation, leases.SUCCEEDED)
