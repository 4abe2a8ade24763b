"""Every query on meta-training runs, what they measured, and their training checkpoints.

Each function takes the SQLAlchemy session of a transaction; those that write need `Database.session(write=True)`, and a
run that was read with `lock=True` or held by its lease (`leases.hold`). Where `owners` are given, those of
others are not there.

A run's rows of metrics are those of the outer steps 1 to `outer_step`, without a gap. A worker that goes on from a
training checkpoint makes some outer steps again; they come out the same, and those that have a row keep it.
"""

import math
from collections.abc import Iterable, Sequence, Set
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Select, delete, func, select
from sqlalchemy.orm import Session

from optserve_server.metatraining import recipes
from optserve_server.metatraining.outer_loop import Progress
from optserve_server.naming import is_name
from optserve_server.registry import leases, optimizers
from optserve_server.registry.errors import OuterStepsInvalid, QuotaExceeded, RunConflict, RunNotFound
from optserve_server.registry.models import ApiKey, MetaTrainingMetrics, MetaTrainingRun, TrainingCheckpoint, Version


@dataclass(frozen=True, slots=True)
class RunEntry:
    """A run, with the newest of what it measured and the numbers of the versions that it wrote."""

    run: MetaTrainingRun
    meta_loss: float | None
    meta_loss_held_out: float | None
    versions: list[int]


# --- reading ----------------------------------------------------------------------------------------------------------


def list_entries(
    db_session: Session,
    *,
    limit: int,
    below: int | None = None,
    status: str | None = None,
    owners: Set[str] | None = None,
) -> list[RunEntry]:
    """At most `limit` runs, the newest first: those with a number `below` the given one, in this `status`."""
    query = _owned(_entries(), owners).order_by(MetaTrainingRun.number.desc()).limit(limit)
    if below is not None:
        query = query.where(MetaTrainingRun.number < below)
    if status is not None:
        query = query.where(MetaTrainingRun.status == status)
    return _with_versions(db_session, query)


def get_entry(db_session: Session, run_id: str, owners: Set[str] | None = None) -> RunEntry:
    """One run, as a list tells of it.

    Raises:
        RunNotFound: there is none of that id.
    """
    _require_id(run_id)
    found = _with_versions(db_session, _owned(_entries(), owners).where(MetaTrainingRun.id == run_id))
    if not found:
        raise RunNotFound(run_id)
    return found[0]


def get_run(db_session: Session, run_id: str, owners: Set[str] | None = None, *, lock: bool = False) -> MetaTrainingRun:
    """One run; with `lock`, nobody else writes to it until the transaction ends.

    Raises:
        RunNotFound: there is none of that id.
    """
    _require_id(run_id)
    query = _owned(select(MetaTrainingRun), owners).where(MetaTrainingRun.id == run_id)
    run: MetaTrainingRun | None = db_session.scalar(query.with_for_update() if lock else query)
    if run is None:
        raise RunNotFound(run_id)
    return run


def find_run_by_key(db_session: Session, owner: str, idempotency_key: str) -> MetaTrainingRun | None:
    """The run that this owner asked for under an idempotency key, if there is one."""
    return leases.find_by_key(db_session, MetaTrainingRun, owner, idempotency_key)


def list_thinned_metrics(db_session: Session, run: MetaTrainingRun, *, at_most: int) -> Sequence[MetaTrainingMetrics]:
    """At most so many rows, evenly spaced, in the order of their outer steps, and always with the last."""
    stride = max(1, math.ceil(run.outer_step / at_most))
    outer_step = MetaTrainingMetrics.outer_step
    query = _metrics(run).where(outer_step <= run.outer_step, (run.outer_step - outer_step) % stride == 0)
    return db_session.scalars(query).all()


def list_metrics_after(
    db_session: Session, run: MetaTrainingRun, outer_step: int, *, limit: int
) -> Sequence[MetaTrainingMetrics]:
    """At most `limit` rows behind an outer step, in their order."""
    return db_session.scalars(_metrics(run).where(MetaTrainingMetrics.outer_step > outer_step).limit(limit)).all()


def find_training_checkpoint(db_session: Session, run: MetaTrainingRun) -> TrainingCheckpoint | None:
    """What the run goes on from, if it has come so far."""
    return db_session.get(TrainingCheckpoint, run.number)


def get_metrics(db_session: Session, run: MetaTrainingRun, outer_step: int) -> MetaTrainingMetrics:
    """The row of one outer step, which has been made."""
    return db_session.get_one(MetaTrainingMetrics, (run.number, outer_step))


def count_unfinished(db_session: Session, owner: str) -> int:
    """How many of an owner's runs are not over."""
    query = select(func.count()).where(MetaTrainingRun.owner == owner, MetaTrainingRun.status.not_in(leases.OVER))
    return db_session.scalar(query) or 0


def find_start(db_session: Session, run: MetaTrainingRun) -> Version | None:
    """The version whose weights are the run's φ_0, where it starts from one."""
    return None if run.start_from_id is None else db_session.get_one(Version, run.start_from_id)


# --- writing: those who ask for runs ----------------------------------------------------------------------------------


def add_run(
    db_session: Session,
    recipe: dict[str, Any],
    *,
    start_from: Version | None,
    owner: str,
    idempotency_key: str | None,
    fingerprint: str,
    at_most: int | None = None,
) -> MetaTrainingRun:
    """Queue a run of a complete recipe. A run that was asked for under the same key at the same time comes instead.

    Raises:
        QuotaExceeded: the owner has `at_most` runs already that are not over.
    """
    _require_room(db_session, owner, at_most)
    run = MetaTrainingRun(
        name=recipe["name"],
        recipe=recipe,
        start_from_id=None if start_from is None else start_from.id,
        outer_steps=recipe["meta_optimizer"]["outer_steps"],
        owner=owner,
        idempotency_key=idempotency_key,
        fingerprint=fingerprint,
    )
    return leases.queue(db_session, run)


def cancel_run(db_session: Session, run: MetaTrainingRun) -> None:
    """Cancel a run: at once where no worker has it, else its worker does so at its next outer step.

    Raises:
        RunConflict: it has succeeded or failed.
    """
    if run.status == leases.CANCELLED:
        return
    if run.status in leases.OVER:
        raise RunConflict(f"Run {run.id} has {run.status} already, so there is nothing to cancel.", run.status)
    leases.request_cancel(db_session, run)


def resume_run(
    db_session: Session, run: MetaTrainingRun, outer_steps: int | None, *, at_most: int | None = None
) -> None:
    """Queue a run that is over once more, to go on from its training checkpoint, up to `outer_steps` where given.

    Outer steps behind the checkpoint are forgotten: with more of them to come, they may come out otherwise.

    Raises:
        RunConflict: it is not over, or has succeeded and shall make no more outer steps.
        OuterStepsInvalid: fewer outer steps than its recipe has.
        RecipeError: more outer steps than a recipe can have.
        QuotaExceeded: the owner has `at_most` runs already that are not over.
    """
    if run.status not in leases.OVER:
        raise RunConflict(f"Run {run.id} is {run.status}; only a run that is over can be resumed.", run.status)
    asked = run.recipe["meta_optimizer"]["outer_steps"]  # more than it has, where its patience has ended it
    if outer_steps is not None and outer_steps < asked:
        raise OuterStepsInvalid(outer_steps, asked)
    if run.status == leases.SUCCEEDED and outer_steps in (None, asked):
        made = "made all its" if run.outer_step == asked else f"succeeded after {run.outer_step} of"
        message = f"Run {run.id} has {made} {asked} outer steps; resume it with more `outer_steps`."
        raise RunConflict(message, run.status)
    _require_room(db_session, run.owner, at_most)
    kept = _checkpointed_outer_step(db_session, run)
    behind = (MetaTrainingMetrics.run_number == run.number) & (MetaTrainingMetrics.outer_step > kept)
    db_session.execute(delete(MetaTrainingMetrics).where(behind))
    run.outer_step = kept
    if outer_steps is not None:
        longer = {**run.recipe["meta_optimizer"], "outer_steps": outer_steps}
        run.recipe = recipes.parse({**run.recipe, "meta_optimizer": longer}).model_dump(mode="json")
        run.outer_steps = outer_steps
    leases.requeue(db_session, run)


# --- writing: workers -------------------------------------------------------------------------------------------------


def add_metrics(db_session: Session, run: MetaTrainingRun, progress: Iterable[Progress]) -> None:
    """Write the rows of the outer steps that have none yet; `progress` is consecutive, and leaves no gap."""
    for one in progress:
        if one.outer_step <= run.outer_step:
            continue
        details = {name: _finite(value) for name, value in asdict(one).items()}
        db_session.add(
            MetaTrainingMetrics(
                run_number=run.number,
                outer_step=details.pop("outer_step"),
                meta_loss=details.pop("meta_loss"),
                meta_loss_held_out=details.pop("meta_loss_held_out"),
                details=details,
            )
        )
        run.outer_step = one.outer_step
    db_session.flush()


def save_training_checkpoint(db_session: Session, run: MetaTrainingRun, outer_step: int, data: bytes) -> None:
    """Keep a training checkpoint instead of the one before. One that is further on shows that the run comes on."""
    if outer_step > _checkpointed_outer_step(db_session, run):
        run.deaths = 0
    db_session.execute(delete(TrainingCheckpoint).where(TrainingCheckpoint.run_number == run.number))
    db_session.add(
        TrainingCheckpoint(run_number=run.number, outer_step=outer_step, data=data, created_at=leases.clock(db_session))
    )
    db_session.flush()


# --- parts ------------------------------------------------------------------------------------------------------------


def _entries() -> Select[Any]:
    last = (MetaTrainingMetrics.run_number == MetaTrainingRun.number) & (
        MetaTrainingMetrics.outer_step == MetaTrainingRun.outer_step
    )
    held_out = (
        select(MetaTrainingMetrics.meta_loss_held_out)
        .where(
            MetaTrainingMetrics.run_number == MetaTrainingRun.number,
            MetaTrainingMetrics.meta_loss_held_out.is_not(None),
        )
        .order_by(MetaTrainingMetrics.outer_step.desc())
        .limit(1)
        .correlate(MetaTrainingRun)
        .scalar_subquery()
    )
    return select(MetaTrainingRun, MetaTrainingMetrics.meta_loss, held_out).outerjoin(MetaTrainingMetrics, last)


def _require_room(db_session: Session, owner: str, at_most: int | None) -> None:
    if at_most is None:
        return
    # PostgreSQL lets others write beside this; the key's row keeps them from counting the same runs meanwhile.
    key = select(ApiKey.id).where(ApiKey.name == owner, ApiKey.revoked_at.is_(None))
    db_session.execute(key.with_for_update())
    used = count_unfinished(db_session, owner)
    if used >= at_most:
        raise QuotaExceeded(owner, at_most, used)


def _owned(query: Select[Any], owners: Set[str] | None) -> Select[Any]:
    return query if owners is None else query.where(MetaTrainingRun.owner.in_(sorted(owners)))


def _with_versions(db_session: Session, query: Select[Any]) -> list[RunEntry]:
    rows = db_session.execute(query).all()
    versions = optimizers.list_versions_of_runs(db_session, [run.id for run, _, _ in rows])
    return [RunEntry(run, meta_loss, held_out, versions.get(run.id, [])) for run, meta_loss, held_out in rows]


def _require_id(run_id: str) -> None:
    if not is_name(run_id):  # nor can every database search for it
        raise RunNotFound(run_id)


def _metrics(run: MetaTrainingRun) -> Select[MetaTrainingMetrics]:
    return (
        select(MetaTrainingMetrics)
        .where(MetaTrainingMetrics.run_number == run.number)
        .order_by(MetaTrainingMetrics.outer_step)
    )


def _checkpointed_outer_step(db_session: Session, run: MetaTrainingRun) -> int:
    query = select(func.max(TrainingCheckpoint.outer_step)).where(TrainingCheckpoint.run_number == run.number)
    return db_session.scalar(query) or 0


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
