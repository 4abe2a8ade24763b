"""Runs in SQL: who may take one up, who may write to it, and what is kept."""

import math
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from tests.registry.run_calls import add, claim, curve, entry, expire, finish, made, progress, resume

from optserve_server.registry import leases, optimizers, runs
from optserve_server.registry.database import Database
from optserve_server.registry.errors import OuterStepsInvalid, RunConflict, RunNotFound
from optserve_server.registry.leases import LeaseLost

# --- cancel and resume ------------------------------------------------------------------------------------------------


def cancel(database: Database, run_id: str) -> None:
    with database.session(write=True) as db_session:
        runs.cancel_run(db_session, runs.get_run(db_session, run_id, lock=True))


def test_a_queued_run_is_cancelled_at_once_and_a_running_one_by_its_worker(database: Database) -> None:
    queued = add(database)
    cancel(database, queued)
    assert entry(database, queued).run.status == "cancelled"
    assert claim(database) is None
    running = add(database)
    _, lease = claim(database)  # type: ignore[misc]
    cancel(database, running)
    run = entry(database, running).run
    assert (run.status, run.cancel_requested) == ("running", True)
    finish(database, lease, leases.CANCELLED)
    for _ in range(2):  # asked for once more, it stays what it is
        run = entry(database, running).run
        assert (run.status, run.cancel_requested) == ("cancelled", True)
        cancel(database, running)


def test_a_run_whose_worker_is_dead_is_cancelled_at_once(database: Database) -> None:
    run_id = add(database)
    _, lease = claim(database)  # type: ignore[misc]
    expire(database)
    cancel(database, run_id)
    assert entry(database, run_id).run.status == "cancelled"
    with pytest.raises(LeaseLost):
        made(database, lease, [1])


def test_a_run_given_back_while_somebody_cancels_it_is_cancelled(database: Database) -> None:
    run_id = add(database)
    _, lease = claim(database)  # type: ignore[misc]
    cancel(database, run_id)
    with database.session(write=True) as db_session:
        leases.give_back(db_session, leases.hold(db_session, lease))
    assert entry(database, run_id).run.status == "cancelled"


@pytest.mark.parametrize(
    ("status", "outer_steps"), [("failed", None), ("cancelled", None), ("cancelled", 20), ("succeeded", 20)]
)
def test_a_run_that_is_over_is_resumed_from_its_checkpoint(
    database: Database, status: str, outer_steps: int | None
) -> None:
    run_id = add(database)
    _, lease = claim(database)  # type: ignore[misc]
    made(database, lease, range(1, 11), checkpoint=8)
    finish(database, lease, status, "because" if status == "failed" else None)
    resume(database, run_id, outer_steps)
    found = entry(database, run_id).run
    assert (found.status, found.attempt, found.error, found.finished_at) == ("queued", 2, None, None)
    assert found.outer_steps == found.recipe["meta_optimizer"]["outer_steps"] == (outer_steps or 10)
    assert found.recipe["meta_optimizer"]["kind"] == "adam"
    assert curve(database, run_id) == list(range(1, 9))
    with pytest.raises(LeaseLost):
        made(database, lease, [9])
    _, second = claim(database)  # type: ignore[misc]
    assert second.attempt == 2


def test_what_cannot_be_cancelled_or_resumed_says_why(database: Database) -> None:
    run_id = add(database)
    with pytest.raises(RunConflict, match="is queued; only a run that is over"):
        resume(database, run_id)
    _, lease = claim(database)  # type: ignore[misc]
    made(database, lease, range(1, 11))
    finish(database, lease, leases.SUCCEEDED)
    with pytest.raises(RunConflict, match="has succeeded already"):
        cancel(database, run_id)
    for outer_steps in (None, 10):
        with pytest.raises(RunConflict, match="all its 10 outer steps; resume it with more"):
            resume(database, run_id, outer_steps)
    with pytest.raises(OuterStepsInvalid, match="outer_steps is 9, but the run has 10"):
        resume(database, run_id, 9)
    assert entry(database, run_id).run.status == "succeeded"
    for unknown in ("none", "\0", "x" * 1000, "\ud800"):
        with pytest.raises(RunNotFound, match="GET /v1/meta-training-runs"):
            entry(database, unknown)


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_outer_steps_made_again_leave_neither_gap_nor_repetition(database: Database) -> None:
    run_id = add(database)
    _, first = claim(database)  # type: ignore[misc]
    made(database, first, [1, 2, 3, 4, 5], checkpoint=2)
    expire(database)
    _, second = claim(database)  # type: ignore[misc]
    made(database, second, [3, 4])
    made(database, second, [5, 6])
    assert curve(database, run_id) == [1, 2, 3, 4, 5, 6]
    assert entry(database, run_id).meta_loss == 1 / 6


def test_measurements_come_back_bit_for_bit_and_what_is_not_finite_as_null(database: Database) -> None:
    run_id = add(database)
    _, lease = claim(database)  # type: ignore[misc]
    with database.session(write=True) as db_session:
        run = leases.hold(db_session, lease)
        rows = [
            progress(1, meta_loss=0.1 + 0.2, meta_loss_held_out=1e-300),
            progress(2, meta_loss=math.inf, loss=math.nan),
        ]
        runs.add_metrics(db_session, run, rows)
    with database.session() as db_session:
        one, two = runs.list_metrics_after(db_session, runs.get_run(db_session, run_id), 0, limit=10)
    assert (one.meta_loss, one.meta_loss_held_out) == (0.1 + 0.2, 1e-300)
    assert one.details.items() >= {"loss": 0.5, "meta_gradient_norm": 2.0, "step": 5, "horizon": 5}.items()
    assert (two.meta_loss, two.meta_loss_held_out, two.details["loss"]) == (None, None, None)
    assert entry(database, run_id).meta_loss_held_out == 1e-300


@pytest.mark.parametrize(("rows", "at_most"), [(10, 4), (10, 10), (9, 10), (101, 100), (7, 1)])
def test_a_long_curve_is_thinned_evenly_and_keeps_its_end(database: Database, rows: int, at_most: int) -> None:
    run_id = add(database, outer_steps=200)
    _, lease = claim(database)  # type: ignore[misc]
    made(database, lease, range(1, rows + 1))
    with database.session() as db_session:
        run = runs.get_run(db_session, run_id)
        kept = [row.outer_step for row in runs.list_thinned_metrics(db_session, run, at_most=at_most)]
    assert len(kept) <= at_most
    assert kept[-1] == rows
    assert len({after - before for before, after in pairwise(kept)}) <= 1
    assert kept == sorted(kept)
    if rows <= at_most:
        assert kept == list(range(1, rows + 1))


def test_only_the_newest_training_checkpoint_is_kept(database: Database) -> None:
    run_id = add(database)
    _, lease = claim(database)  # type: ignore[misc]
    for step in (1, 2):
        made(database, lease, [step], checkpoint=step)
    with database.session() as db_session:
        kept = runs.find_training_checkpoint(db_session, runs.get_run(db_session, run_id))
        assert kept is not None
        assert (kept.outer_step, kept.data) == (2, b"state")
        assert db_session.scalar(text("SELECT count(*) FROM training_checkpoints")) == 1


def test_the_list_goes_page_by_page_the_newest_first(database: Database) -> None:
    ids = [add(database) for _ in range(5)]
    claim(database)
    with database.session() as db_session:
        first = runs.list_entries(db_session, limit=2)
        second = runs.list_entries(db_session, limit=10, below=first[-1].run.number)
        running = runs.list_entries(db_session, limit=10, status="running")
    assert [one.run.id for one in first + second] == ids[::-1]
    assert [one.run.id for one in running] == [ids[0]]


def test_one_idempotency_key_of_an_owner_is_one_run(database: Database) -> None:
    first = add(database, idempotency_key="once")
    assert add(database, idempotency_key="once") == first
    assert add(database, idempotency_key="once", owner="grace") != first
    assert add(database) != add(database)
    with database.session() as db_session:
        found = runs.find_run_by_key(db_session, "ada", "once")
    assert found is not None
    assert found.id == first


def test_a_run_writes_one_version_an_outer_step_and_is_told_of_them(database: Database, weights_file: Any) -> None:
    run_id = add(database)
    with database.session(write=True) as db_session:
        for step in (4, 8):
            optimizers.add_version(db_session, "tiny", weights_file(step), run=run_id, outer_step=step)
        newest = optimizers.find_newest_version_of_run(db_session, run_id)
        assert newest is not None
        assert newest.number == 2
    assert entry(database, run_id).versions == [1, 2]
    with pytest.raises(IntegrityError), database.session(write=True) as db_session:
        optimizers.add_version(db_session, "tiny", weights_file(9), run=run_id, outer_step=8)
