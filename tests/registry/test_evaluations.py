"""Evaluations in SQL: finished cells outlive their worker, and who beat whom."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from optserve.wire.evaluations import Curves, Rank, TriedLearningRate
from optserve_server.evaluation import plans
from optserve_server.evaluation.evaluate import evaluate
from optserve_server.registry import evaluations, leases
from optserve_server.registry.database import Database
from optserve_server.registry.errors import EvaluationConflict, EvaluationNotFound
from optserve_server.registry.leases import Lease, LeaseLost
from optserve_server.registry.models import Evaluation

PLAN = plans.parse(
    {"optimizers": ["a@1", "a@2"], "tasks": [{"family": "quadratic"}], "baselines": ["sgd"], "steps": 3, "seeds": 2}
)


def add(database: Database, **changes: Any) -> str:
    given = {"owner": "ada", "idempotency_key": None, "fingerprint": "0" * 64, **changes}
    with database.session(write=True) as db_session:
        return evaluations.add_evaluation(db_session, PLAN, **given).id


def claim(database: Database) -> Lease[Evaluation]:
    with database.session(write=True) as db_session:
        evaluation = leases.claim(db_session, Evaluation, worker="w1", device="cpu")
        assert evaluation is not None
        return leases.lease_of(evaluation)


def curves(optimizer: str, final: float | None = 0.5) -> Curves:
    tried = [TriedLearningRate(0.1, final, 0.0)] if optimizer == "sgd" else []
    rate = 0.1 if tried else None
    ends = [1.0, final]
    return Curves(0, optimizer, bool(tried), rate, tried, [0, 3], [ends, ends], ends, ends, ends, 0.0)


def keep(database: Database, lease: Lease[Evaluation], *finished: Curves) -> None:
    with database.session(write=True) as db_session:
        evaluation = leases.hold(db_session, lease)
        for one in finished:
            evaluations.add_curves(db_session, evaluation, one, "f" * 64)


def read(database: Database, evaluation_id: str) -> tuple[Evaluation, list[Curves]]:
    with database.session() as db_session:
        evaluation = evaluations.get_evaluation(db_session, evaluation_id)
        return evaluation, evaluations.list_curves(db_session, evaluation)


def succeeded(database: Database, scores: dict[str, float]) -> str:
    evaluation_id = add(database)
    lease = claim(database)
    keep(database, lease, curves("a@1"), curves("a@2"), curves("sgd"))
    ranking = [Rank(name, False, score, 0, 0.0) for name, score in scores.items()]
    with database.session(write=True) as db_session:
        evaluations.succeed(db_session, leases.hold(db_session, lease), ranking)
    return evaluation_id


def test_finished_cells_outlive_their_worker_and_are_not_done_again(database: Database) -> None:
    evaluation_id = add(database)
    lost = claim(database)
    keep(database, lost, curves("sgd", None))
    with database.session(write=True) as db_session:
        leases.hold(db_session, lost).lease_expires_at = leases.clock(db_session) - timedelta(minutes=1)
    lease = claim(database)
    with pytest.raises(LeaseLost):
        keep(database, lost, curves("a@1"))
    keep(database, lease, curves("a@2"), curves("a@1"))
    evaluation, kept = read(database, evaluation_id)
    assert (evaluation.done, evaluation.cells, evaluation.deaths) == (3, 3, 0)
    assert kept == [curves("a@1"), curves("a@2"), curves("sgd", None)]  # in the order of the plan, as they were
    assert list(_rest(evaluation, kept)) == []


def _rest(evaluation: Evaluation, kept: list[Curves]) -> Iterator[Any]:
    yield from evaluate(plans.parse(evaluation.plan), [], kept)


def test_a_cell_is_kept_once(database: Database) -> None:
    """A worker that did not hear of its commit writes again."""
    evaluation_id = add(database)
    lease = claim(database)
    for _ in range(2):
        keep(database, lease, curves("sgd"))
    evaluation, kept = read(database, evaluation_id)
    assert (evaluation.done, kept) == (1, [curves("sgd")])


def test_it_has_not_succeeded_before_all_cells_are_there(database: Database) -> None:
    add(database)
    lease = claim(database)
    keep(database, lease, curves("sgd"))
    with pytest.raises(IntegrityError), database.session(write=True) as db_session:
        evaluations.succeed(db_session, leases.hold(db_session, lease), [])


def test_who_beat_whom(database: Database) -> None:
    evaluation_id = succeeded(database, {"a@2": 0.5, "a@1": 0.9})
    level = succeeded(database, {"a@2": 0.5, "a@1": 0.5})
    waiting = add(database)
    with database.session() as db_session:
        assert evaluations.why_not_beaten(db_session, evaluation_id, winner="a@2", loser="a@1") is None
        assert "a@1 did not beat it" in evaluations.why_not_beaten(db_session, evaluation_id, winner="a@1", loser="a@2")
        assert "a@3 is not in evaluation" in evaluations.why_not_beaten(
            db_session, evaluation_id, winner="a@2", loser="a@3"
        )
        assert "a@3 is not in evaluation" in evaluations.why_not_beaten(
            db_session, evaluation_id, winner="a@3", loser="a@1"
        )
        assert "lower is better" in evaluations.why_not_beaten(db_session, level, winner="a@2", loser="a@1")
        assert "has no ranking: it is queued" in evaluations.why_not_beaten(
            db_session, waiting, winner="a@2", loser="a@1"
        )
        for unknown in ("nothing", "x\0y"):
            with pytest.raises(EvaluationNotFound):
                evaluations.why_not_beaten(db_session, unknown, winner="a@2", loser="a@1")


def test_the_newest_is_listed_first(database: Database) -> None:
    ids = [add(database) for _ in range(4)]
    claim(database)
    with database.session() as db_session:
        first = evaluations.list_evaluations(db_session, limit=3)
        rest = evaluations.list_evaluations(db_session, limit=3, below=first[-1].number)
        running = evaluations.list_evaluations(db_session, limit=3, status=leases.RUNNING)
        assert [one.id for one in [*first, *rest]] == ids[::-1]
        assert [one.id for one in running] == ids[:1]
        assert plans.parse(first[0].plan) == PLAN


def test_an_idempotency_key_of_an_owner_is_one_evaluation(database: Database) -> None:
    first = add(database, idempotency_key="once")
    assert add(database, idempotency_key="once") == first
    assert add(database, idempotency_key="once", owner="grace") != first


def test_an_evaluation_is_cancelled_once_and_not_when_it_is_over(database: Database) -> None:
    done = succeeded(database, {})
    waiting = add(database)
    with database.session(write=True) as db_session:
        evaluation = evaluations.get_evaluation(db_session, waiting, lock=True)
        for _ in range(2):
            evaluations.cancel_evaluation(db_session, evaluation)
            assert evaluation.status == leases.CANCELLED
        over = evaluations.get_evaluation(db_session, done, lock=True)
        with pytest.raises(EvaluationConflict, match="has succeeded already"):
            evaluations.cancel_evaluation(db_session, over)
