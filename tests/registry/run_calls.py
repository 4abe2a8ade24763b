"""What is done to runs in a database, in few words."""

from datetime import timedelta
from typing import Any

from optserve_server.metatraining.outer_loop import Progress
from optserve_server.registry import leases, runs
from optserve_server.registry.database import Database
from optserve_server.registry.leases import Lease
from optserve_server.registry.models import MetaTrainingRun


def recipe(outer_steps: int = 10) -> dict[str, Any]:
    return {
        "name": "tiny",
        "architecture": {"kind": "lstm"},
        "tasks": [{"family": "quadratic"}],
        "meta_optimizer": {"outer_steps": outer_steps, "kind": "adam"},
    }


def add(database: Database, **changes: Any) -> str:
    given = {"start_from": None, "owner": "ada", "idempotency_key": None, "fingerprint": "0" * 64}
    outer_steps = changes.pop("outer_steps", 10)
    with database.session(write=True) as db_session:
        return runs.add_run(db_session, recipe(outer_steps), **{**given, **changes}).id


def claim(database: Database, worker: str = "w1") -> tuple[str, Lease[MetaTrainingRun]] | None:
    with database.session(write=True) as db_session:
        run = leases.claim(db_session, MetaTrainingRun, worker=worker, device="cpu")
        return None if run is None else (run.id, leases.lease_of(run))


def expire(database: Database) -> None:
    """As if every worker had died a minute ago."""
    with database.session(write=True) as db_session:
        for entry in runs.list_entries(db_session, limit=100, status=leases.RUNNING):
            entry.run.lease_expires_at = leases.clock(db_session) - timedelta(minutes=1)


def progress(outer_step: int, **changes: Any) -> Progress:
    values = {"meta_loss": 1 / outer_step, "loss": 0.5, "meta_gradient_norm": 2.0, "step": 5, "horizon": 5}
    return Progress(outer_step, **{**values, **changes})


def made(database: Database, lease: Lease[MetaTrainingRun], steps: Any, checkpoint: int | None = None) -> None:
    """What a worker writes: rows, and a training checkpoint."""
    with database.session(write=True) as db_session:
        run = leases.hold(db_session, lease)
        runs.add_metrics(db_session, run, map(progress, steps))
        if checkpoint is not None:
            runs.save_training_checkpoint(db_session, run, checkpoint, b"state")


def finish(database: Database, lease: Lease[MetaTrainingRun], status: str, error: str | None = None) -> None:
    with database.session(write=True) as db_session:
        leases.finish(db_session, leases.hold(db_session, lease), status, error)


def entry(database: Database, run_id: str) -> runs.RunEntry:
    with database.session() as db_session:
        return runs.get_entry(db_session, run_id)


def curve(database: Database, run_id: str) -> list[int]:
    with database.session() as db_session:
        run = runs.get_run(db_session, run_id)
        return [row.outer_step for row in runs.list_metrics_after(db_session, run, 0, limit=1000)]


def resume(database: Database, run_id: str, outer_steps: int | None = None) -> None:
    with database.session(write=True) as db_session:
        runs.resume_run(db_session, runs.get_run(db_session, run_id, lock=True), outer_steps)
