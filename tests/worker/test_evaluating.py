"""Evaluations in workers: carried out once, whatever happens to a worker."""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch

from optserve.wire.evaluations import Curves
from optserve_server.evaluation import competitors, plans
from optserve_server.evaluation.competitors import Entrant
from optserve_server.evaluation.evaluate import evaluate, to_end
from optserve_server.optimizers import build, weights
from optserve_server.registry import evaluations, leases, optimizers, weight_files
from optserve_server.registry.database import Database
from optserve_server.registry.models import Evaluation
from optserve_server.tasks.quadratic import Quadratic
from optserve_server.worker import evaluating

SMALL = {"family": "quadratic", "parameters": {"dimension": 2}}
PATIENCE = 60


class Asking:
    """A database's evaluations, as those see them who ask for them."""

    def __init__(self, database: Database, data: bytes) -> None:
        self.database = database
        self.data = data

    @staticmethod
    def plan(**changes: Any) -> plans.Plan:
        content = {"optimizers": ["mine@1"], "tasks": [SMALL], "steps": 4, "seeds": 2, "baselines": ["sgd", "adam"]}
        return plans.parse({**content, **changes})

    def add(self, **changes: Any) -> str:
        given: Any = {"owner": "ada", "idempotency_key": None, "fingerprint": "0" * 64}
        with self.database.session(write=True) as db_session:
            return evaluations.add_evaluation(db_session, self.plan(**changes), **given).id

    def read(self, evaluation_id: str) -> tuple[Evaluation, list[Curves]]:
        with self.database.session() as db_session:
            evaluation = evaluations.get_evaluation(db_session, evaluation_id)
            return evaluation, evaluations.list_curves(db_session, evaluation)

    def wait(self, evaluation_id: str, condition: Callable[[Evaluation], Any] | None = None) -> Evaluation:
        """Until it is over, or the condition holds."""
        deadline = time.monotonic() + PATIENCE
        while True:
            evaluation, _ = self.read(evaluation_id)
            if condition(evaluation) if condition else evaluation.status in leases.OVER:
                return evaluation
            assert time.monotonic() < deadline, (evaluation.status, evaluation.done, evaluation.error)
            time.sleep(0.02)

    def expected(self, **changes: Any) -> list[Curves]:
        """The curves of an undisturbed evaluation."""
        return to_end(evaluate(self.plan(**changes), [Entrant.read("mine@1", self.data)])).curves


@pytest.fixture
def asking(database: Database) -> Asking:
    optimizer = build({"kind": "rnnprop", "hidden_size": 3, "layers": 1})
    phi = optimizer.initial_phi(torch.Generator().manual_seed(0))
    file = weight_files.read(weights.encode(optimizer, phi))
    with database.session(write=True) as db_session:
        optimizers.add_version(db_session, "mine", file)
    return Asking(database, file.data)


def test_a_worker_carries_it_out_and_ranks(asking: Asking, working) -> None:
    evaluation_id = asking.add()
    with working():
        asking.wait(evaluation_id)
    evaluation, curves = asking.read(evaluation_id)
    assert (evaluation.status, evaluation.done, evaluation.error) == ("succeeded", 3, None)
    assert curves == asking.expected()
    assert {line["optimizer"] for line in evaluation.ranking or []} == {"mine@1", "sgd", "adam"}


def test_what_a_killed_worker_had_finished_is_not_done_again(
    asking: Asking, working, start_worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = {"tasks": [SMALL, {"family": "quadratic"}], "steps": 400}
    evaluation_id = asking.add(**long)
    worker = start_worker(asking.database)
    before = asking.wait(evaluation_id, lambda one: one.done >= 1)
    worker.kill()
    worker.wait()
    with asking.database.session(write=True) as db_session:
        left = evaluations.get_evaluation(db_session, evaluation_id, lock=True)
        left.lease_expires_at = leases.clock(db_session) - timedelta(seconds=1)
    carried_out = evaluating.evaluate
    kept: list[int] = []

    def recording(plan, entrants, finished, device, recall):
        kept.append(len(finished))
        return carried_out(plan, entrants, finished, device, recall)

    monkeypatch.setattr(evaluating, "evaluate", recording)
    with working():
        after = asking.wait(evaluation_id)
    assert (after.status, after.attempt, after.done) == ("succeeded", 2, 6)
    assert before.done <= kept[0] < 6
    assert asking.read(evaluation_id)[1] == asking.expected(**long)


def test_what_an_evaluation_has_found_is_not_computed_again(
    asking: Asking, working, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = asking.add()
    with working():
        asking.wait(first)
    before = asking.read(first)[1]
    monkeypatch.setattr(competitors.inner_loops, "run", None)  # nothing can be computed from here on
    again, anew = asking.add(), asking.add(cache=False)
    with working():
        assert asking.wait(again).status == leases.SUCCEEDED
        assert asking.wait(anew).status == leases.FAILED
    assert asking.read(again)[1] == before


def test_a_worker_that_stops_gives_it_back_and_one_that_is_asked_cancels(asking: Asking, working) -> None:
    evaluation_id = asking.add(steps=100_000)
    with working() as stop:
        asking.wait(evaluation_id, lambda one: one.status == leases.RUNNING)
        stop.set()
        given_back = asking.wait(evaluation_id, lambda one: one.status == leases.QUEUED)
    assert given_back.attempt == 2
    with working():
        asking.wait(evaluation_id, lambda one: one.status == leases.RUNNING)
        with asking.database.session(write=True) as db_session:
            evaluation = evaluations.get_evaluation(db_session, evaluation_id, lock=True)
            evaluations.cancel_evaluation(db_session, evaluation)
        assert asking.wait(evaluation_id).status == leases.CANCELLED


def test_a_family_that_raises_fails_the_evaluation_and_the_worker_lives_on(
    asking: Asking, working, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(*arguments: object) -> None:
        raise ZeroDivisionError("no such\nloss")

    first, second = asking.add(), asking.add(tasks=[{"family": "noisy-quadratic"}])
    monkeypatch.setattr(Quadratic, "loss", loss)
    with working():
        failed, done = asking.wait(first), asking.wait(second)
    assert failed.status == leases.FAILED
    assert failed.error == "mine@1 on quadratic:dimension=2, after inner step 0: ZeroDivisionError: no such loss"
    assert done.status == leases.SUCCEEDED


def test_evaluations_are_done_before_long_runs(asking: Asking, queue, working) -> None:
    run_id, evaluation_id = queue.add(outer_steps=5), asking.add()
    with working():
        queue.wait(run_id)
    evaluation, _ = asking.read(evaluation_id)
    assert evaluation.finished_at is not None
    assert evaluation.finished_at < queue.entry(run_id).run.started_at
