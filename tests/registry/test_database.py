import threading
import time

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError

from optserve_server.registry import optimizers
from optserve_server.registry.database import UNREACHABLE, Database
from optserve_server.registry.models import Alias, Optimizer


def test_a_block_that_raises_leaves_nothing_behind(database):
    with pytest.raises(RuntimeError), database.session(write=True) as db_session:
        optimizers.claim_name(db_session, "lstm")
        raise RuntimeError
    with database.session() as db_session:
        assert optimizers.list_entries(db_session, limit=10) == []


def test_foreign_keys_are_enforced(database):
    with database.session(write=True) as db_session:
        optimizer = Optimizer(name="lstm", description="")
        db_session.add(optimizer)
    with pytest.raises(IntegrityError), database.session(write=True) as db_session:
        db_session.add(Alias(optimizer_id=optimizer.id, alias="champion", number=1))


@pytest.mark.parametrize("name", ["", "x" * 65, "LSTM"])
def test_the_schema_refuses_names_of_other_forms(database, name):
    with pytest.raises(DBAPIError), database.session(write=True) as db_session:
        db_session.add(Optimizer(name=name, description=""))


def test_a_reader_cannot_write_to_sqlite_by_mistake(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'registry.db'}")
    database.upgrade()
    with pytest.raises(DBAPIError, match="readonly"), database.session() as db_session:
        db_session.execute(text("DELETE FROM aliases"))
    database.close()


def test_a_writer_waits_for_another_and_a_reader_does_not(database):
    """Both writers read before they write: without BEGIN IMMEDIATE, SQLite would fail the second."""
    order = []
    entered = threading.Event()

    def first() -> None:
        with database.session(write=True) as db_session:
            optimizers.claim_name(db_session, "lstm")
            entered.set()
            time.sleep(0.3)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    entered.wait(10)
    with database.session() as db_session:
        assert optimizers.list_entries(db_session, limit=10) == []
        order.append("reader")
    with database.session(write=True) as db_session:
        optimizers.claim_name(db_session, "lstm")
        order.append("second")
    thread.join()
    assert order == ["reader", "first", "second"]


def test_moments_come_back_in_utc(database):
    with database.session(write=True) as db_session:
        written = optimizers.claim_name(db_session, "lstm").created_at
    with database.session() as db_session:
        read = optimizers.get_optimizer(db_session, "lstm").created_at
    assert read == written
    assert read.utcoffset().total_seconds() == 0


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://localhost/optserve", "SQLite or PostgreSQL, not 'mysql'"),
        ("registry.db", "cannot be read"),
        ("sqlite://", "write sqlite:///PATH"),
        ("sqlite:///:memory:", "write sqlite:///PATH"),
    ],
)
def test_a_database_url_that_cannot_be_used_is_refused_with_one_that_can(url, message):
    with pytest.raises(ValueError, match=message):
        Database(url)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_spelling_of_postgresql_is_psycopg(scheme):
    database = Database(f"{scheme}://someone:secret@localhost/optserve")
    assert database.url.drivername == "postgresql+psycopg"
    assert database.url.password == "secret"  # pragma: allowlist secret
    database.close()


def test_an_sqlite_file_that_is_gone_is_not_begun_anew(tmp_path):
    file = tmp_path / "optserve.db"
    database = Database(f"sqlite:///{file}")
    database.upgrade()
    database.close()
    file.unlink()
    with pytest.raises(UNREACHABLE), database.session() as db_session:
        db_session.execute(text("SELECT 1"))
    assert not file.exists()
