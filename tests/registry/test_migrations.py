import logging
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import DatabaseError

from optserve_server.registry import optimizers
from optserve_server.registry.database import Database
from optserve_server.registry.models import Base

CHECKOUT = Path(__file__).parents[2]


def test_the_migrations_give_exactly_the_models(database):
    with database.session() as db_session:
        context = MigrationContext.configure(db_session.connection(), opts={"compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


def test_the_migrations_give_the_models_checks_and_keys(database, request, tmp_path):
    """What Alembic's comparison leaves out."""
    url = f"sqlite:///{tmp_path / 'models.db'}" if database.is_sqlite else request.getfixturevalue("postgresql")()
    created = Database(url)
    created.create_file()
    with created.session(write=True) as db_session:
        Base.metadata.create_all(db_session.connection())
        expected = _constraints(db_session.connection())
    created.close()
    with database.session() as db_session:
        assert _constraints(db_session.connection()) == expected


def _constraints(connection: Connection) -> dict[str, Any]:
    inspector = inspect(connection)

    def described(table: str) -> dict[str, Any]:
        return {
            "checks": sorted((check["name"], check["sqltext"]) for check in inspector.get_check_constraints(table)),
            "primary": inspector.get_pk_constraint(table),
            "foreign": sorted(map(str, inspector.get_foreign_keys(table))),
            "unique": sorted(map(str, inspector.get_unique_constraints(table))),
        }

    return {table: described(table) for table in Base.metadata.tables}


def test_upgrade_is_done_once_and_current_says_where_it_stands(database_url):
    database = Database(database_url)
    assert database.current() is None
    database.upgrade()
    first = database.current()
    database.upgrade()
    newest = max(file.name for file in (CHECKOUT / "alembic" / "versions").glob("*.py"))[:4]
    assert first == database.current() == newest
    database.close()


def test_a_developer_migrates_with_alembics_command_line(database_url):
    _alembic(database_url, "upgrade", "head")
    _alembic(database_url, "check")  # nothing of the models is missing
    _alembic(database_url, "downgrade", "base")
    database = Database(database_url)
    with database.session() as db_session:
        assert inspect(db_session.connection()).get_table_names() == ["alembic_version"]
    database.upgrade()
    assert database.current() is not None
    database.close()


def _alembic(url: str, *arguments: str) -> None:
    completed = subprocess.run(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=CHECKOUT,
        env={**os.environ, "OPTSERVE_DATABASE_URL": url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr


def test_the_sqlite_file_has_a_write_ahead_log(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'missing' / 'registry.db'}")
    database.upgrade()
    database.close()
    with sqlite3.connect(tmp_path / "missing" / "registry.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_upgrade_leaves_logging_alone(database_url, caplog):
    root = logging.getLogger()
    before = (root.level, list(root.handlers), logging.getLogger("uvicorn").disabled)
    database = Database(database_url)
    database.upgrade()
    database.close()
    assert (root.level, list(root.handlers), logging.getLogger("uvicorn").disabled) == before


@pytest.mark.parametrize("statement", ["UPDATE {} SET number = 2", "DELETE FROM {}"])
@pytest.mark.parametrize("table", ["versions", "alias_moves"])
def test_the_schema_itself_refuses_changes(database, weights_file, table, statement):
    with database.session(write=True) as db_session:
        optimizers.add_version(db_session, "lstm", weights_file())
    change = text(statement.format(table))
    with (
        pytest.raises(DatabaseError, match=f"rows of {table} are never changed"),
        database.session(write=True) as db_session,
    ):
        db_session.execute(change)
