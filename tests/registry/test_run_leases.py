"""Claims and leases of runs: who carries one out, and what happens when workers die."""

import threading
from collections import Counter
from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from tests.registry.run_calls import add, claim, curve, entry, expire, finish, made, resume

from optserve_server.registry import leases, runs
from optserve_server.registry.database import Database
from optserve_server.registry.leases import LeaseLost
from optserve_server.registry.models import Evaluation, MetaTrainingRun


def test_runs_are_begun_in_the_order_in_which_they_were_asked_for(database: Database) -> None:
    ids = [add(database) for _ in range(3)]
    assert [claim(database)[0] for _ in ids] == ids  # type: ignore[index]
    assert claim(database) is None
    run = entry(database, ids[0]).run
    assert (run.status, run.worker, run.device, run.attempt) == ("running", "w1", "cpu", 1)
    assert run.started_at is not None


def test_many_workers_never_claim_the_same_run(database: Database) -> None:
    ids = [add(database) for _ in range(12)]
    claimed: list[str] = []
    begin = threading.Barrier(6)

    def work(worker: str) -> None:
        begin.wait()
        while (found := claim(database, worker)) is not None:
            claimed.append(found[0])

    threads = [threading.Thread(target=work, args=(f"w{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(claimed) == Counter(ids)


def test_a_claim_does_not_wait_for_one_under_way(postgresql: Callable[[], str]) -> None:
    """SQLite's writers take turns; PostgreSQL's pass over what another has locked."""
    database = Database(postgresql())
    database.upgrade()
    ids = [add(database) for _ in range(2)]
    with database.session(write=True) as db_session:
        first = leases.claim(db_session, MetaTrainingRun, worker="slow", device="cpu")
        assert first is not None
        assert claim(database)[0] == ids[1]  # type: ignore[index]
    assert first.id == ids[0]
    database.close()


def test_a_run_whose_lease_has_run_out_is_taken_up_and_its_worker_can_write_nothing_more(database: Database) -> None:
    run_id = add(database)
    _, first = claim(database, "w1")  # type: ignore[misc]
    made(database, first, [1, 2])
    assert claim(database, "w2") is None
    expire(database)
    again, second = claim(database, "w2")  # type: ignore[misc]
    assert (again, second.attempt) == (run_id, 2)
    for write in (
        lambda: made(database, first, [3]),
        lambda: made(database, first, [3], checkpoint=3),
        lambda: finish(database, first, leases.SUCCEEDED),
    ):
        with pytest.raises(LeaseLost):
            write()
    assert curve(database, run_id) == [1, 2]
    assert entry(database, run_id).run.worker == "w2"
    made(database, second, [3])
    assert curve(database, run_id) == [1, 2, 3]


def age(database: Database, seconds: float) -> None:
    """As if no lease had been renewed for so long."""
    with database.session(write=True) as db_session:
        for entry in runs.list_entries(db_session, limit=100, status=leases.RUNNING):
            left = leases.LEASE_SECONDS - seconds
            entry.run.lease_expires_at = leases.clock(db_session) + timedelta(seconds=left)


def chosen(database: Database) -> list[type]:
    with database.session() as db_session:
        found = [leases.choose(db_session, tables) for tables in ([MetaTrainingRun], [Evaluation, MetaTrainingRun])]
        assert found[0] is found[1]
    return [] if found[0] is None else [found[0]]


def test_who_takes_a_dead_workers_place_goes_on_with_its_work_before_any_other(database: Database) -> None:
    resumed, killed, queued = [add(database) for _ in range(3)]
    _, lease = claim(database)  # type: ignore[misc]
    assert chosen(database) == [MetaTrainingRun]  # its worker lives, and others take what is queued
    finish(database, lease, leases.CANCELLED)
    claim(database)
    resume(database, resumed)
    age(database, 1.0)
    assert chosen(database) == [MetaTrainingRun]
    for seconds in (3.0, 14.0):
        age(database, seconds)
        assert chosen(database) == []
    age(database, 15.1)
    assert chosen(database) == [MetaTrainingRun]
    assert [claim(database)[0] for _ in range(3)] == [killed, resumed, queued]  # type: ignore[index]


def test_what_workers_die_of_is_not_waited_for(database: Database) -> None:
    poison = add(database)
    claim(database)
    expire(database)
    claim(database)
    sound = add(database)
    age(database, 3.0)
    assert chosen(database) == [MetaTrainingRun]
    assert claim(database)[0] == sound  # type: ignore[index]
    assert entry(database, poison).run.deaths == 1


def test_a_lease_that_nobody_took_over_can_be_renewed(database: Database) -> None:
    run_id = add(database)
    _, lease = claim(database)  # type: ignore[misc]
    expire(database)
    with database.session(write=True) as db_session:
        leases.renew(db_session, leases.hold(db_session, lease))
    assert claim(database) is None
    assert entry(database, run_id).run.attempt == 1


def test_a_run_given_back_is_claimed_at_once_by_another_attempt(database: Database) -> None:
    run_id = add(database)
    _, lease = claim(database, "w1")  # type: ignore[misc]
    with database.session(write=True) as db_session:
        leases.give_back(db_session, leases.hold(db_session, lease))
    with pytest.raises(LeaseLost):
        made(database, lease, [1])
    again, second = claim(database, "w2")  # type: ignore[misc]
    assert (again, second.attempt, entry(database, run_id).run.deaths) == (run_id, 2, 0)


def test_what_workers_die_of_comes_last_and_fails_in_the_end(database: Database) -> None:
    poison = add(database)
    for death in range(leases.MAX_DEATHS):
        assert claim(database)[0] == poison  # type: ignore[index]
        assert entry(database, poison).run.deaths == death
        if death == 1:
            expire(database)
            sound = add(database)
            run_id, lease = claim(database)  # type: ignore[misc]
            assert run_id == sound
            finish(database, lease, leases.CANCELLED)
        expire(database)
    assert claim(database) is None
    run = entry(database, poison).run
    assert run.status == "failed"
    assert f"{leases.MAX_DEATHS} workers in a row died of it" in str(run.error)
    assert "w1 on cpu" in str(run.error)


def test_a_run_that_comes_on_outlives_any_number_of_workers(database: Database) -> None:
    run_id = add(database, outer_steps=100)
    for step in range(1, 2 * leases.MAX_DEATHS):
        _, lease = claim(database)  # type: ignore[misc]
        made(database, lease, [step], checkpoint=step)
        expire(database)
    run = entry(database, run_id).run
    assert (run.status, run.deaths, run.attempt) == ("running", 0, 2 * leases.MAX_DEATHS - 1)


@pytest.mark.parametrize(
    "change",
    [
        "status = 'paused'",
        "status = 'running'",
        "status = 'failed', finished_at = created_at",
        "status = 'cancelled'",
        "status = 'succeeded', finished_at = created_at",
        "error = 'but it is queued'",
        "lease_expires_at = created_at",
        "cancel_requested = true",
        "attempt = 0",
        "outer_step = 11",
    ],
)
def test_the_schema_itself_refuses_what_no_run_can_be(database: Database, change: str) -> None:
    add(database)
    with pytest.raises(IntegrityError), database.session(write=True) as db_session:
        db_session.execute(text(f"UPDATE meta_training_runs SET {change}"))
