"""One database, SQLite or PostgreSQL: opened, migrated, and handed out a transaction at a time."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from optserve_server.registry import acts, audit
from optserve_server.resources import migrations_directory

PATIENCE_SECONDS = 30.0
"""How long to wait for a database that another process has locked, or that does not answer."""

UNREACHABLE = (OperationalError, InterfaceError, PoolTimeoutError)
"""What is raised while a database restarts, is away or locked: the same a moment later may succeed."""

_WAL_RETRY_SECONDS = 0.05
_MIGRATION_LOCK = 0x6F70747365727665  # "optserve": PostgreSQL's advisory lock round a migration
_POSTGRESQL = frozenset({"postgres", "postgresql", "postgresql+psycopg"})


class DatabaseUnusable(ValueError):
    """The database cannot be used; the message says why, in one line."""


def reason(error: Exception) -> str:
    """Why a database cannot be used, in one line."""
    return str(getattr(error, "orig", None) or error).partition("\n")[0]


class Database:
    """A SQLAlchemy engine with this project's rules of transactions.

    SQLite runs with a write-ahead log and foreign keys enforced. Its writers begin with BEGIN IMMEDIATE, so that they
    queue for the lock at once rather than fail half-way; its readers are never blocked, and cannot write.
    """

    def __init__(self, url: str, *, patience: float = PATIENCE_SECONDS) -> None:
        """Open `url`; nothing is connected to until it is needed.

        Whatever cannot be had within `patience` seconds, a connection or SQLite's lock, is UNREACHABLE.

        Raises:
            ValueError: not the URL of a database that optserve can use; the message says what to write instead.
        """
        self.url = _parse(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        open_engine = _sqlite_engine if self.is_sqlite else _postgresql_engine
        self._engine = open_engine(self.url, patience)
        self._writing = self._engine.execution_options(optserve_write=True)

    @property
    def shown(self) -> str:
        """The URL as people may see it: without a password."""
        return self.url.difference_update_query(["password", "sslpassword"]).render_as_string(hide_password=True)

    @contextmanager
    def session(self, *, write: bool = False) -> Iterator[Session]:
        """One transaction: committed at the end of the block, rolled back where the block raises.

        With `write`, it takes the row of the act that goes on with it, if there is one (`acts`).
        """
        act = acts.current() if write else None
        with (
            Session(self._writing if write else self._engine, expire_on_commit=False) as db_session,
            db_session.begin(),
        ):
            yield db_session
            if act is not None:
                audit.add(db_session, act, acts.DONE)
        if act is not None:
            act.is_written = True

    def upgrade(self) -> None:
        """Bring the schema to the newest revision; processes that do so at once take turns.

        Raises:
            DatabaseUnusable: it cannot be reached, is no database, or was migrated by a newer optserve.
        """
        with _reasons():
            if self.is_sqlite:
                self._enter_wal()
            with self._writing.begin() as connection:
                if not self.is_sqlite:
                    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
                command.upgrade(migration_config(connection), "head")

    def create_file(self) -> None:
        """Make the SQLite file where there is none yet; nothing else does, so that one that is lost is missed."""
        if self.is_sqlite:
            Path(str(self.url.database)).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            Path(str(self.url.database)).touch()

    def current(self) -> str | None:
        """The schema's revision, or None where there is no database yet, or one that has never been migrated.

        Raises:
            DatabaseUnusable: it cannot be reached, or is no database.
        """
        if self.is_sqlite and not Path(str(self.url.database)).exists():
            return None
        with _reasons(), self._engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()

    def close(self) -> None:
        """Close every pooled connection."""
        self._engine.dispose()

    def _enter_wal(self) -> None:
        # A mode of the file, not of the connection, and one that cannot be entered inside a transaction. SQLite does
        # not wait for the lock here: where two processes come at once, one of them is told that it is taken.
        self.create_file()
        deadline = time.monotonic() + PATIENCE_SECONDS
        with self._engine.connect() as connection:
            while not _is_wal(connection):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{self.url.database} stays locked; stop the process that holds it")
                time.sleep(_WAL_RETRY_SECONDS)


def migration_config(connection: Connection) -> Config:
    """What Alembic needs to migrate over `connection`, without a configuration file."""
    config = Config()
    config.set_main_option("script_location", str(migrations_directory()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


@contextmanager
def _reasons() -> Iterator[None]:
    try:
        yield
    except CommandError as error:
        raise DatabaseUnusable(f"it was migrated by a newer optserve; install that ({error})") from error
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise DatabaseUnusable(reason(error)) from error


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ValueError(f"the database URL cannot be read: {error}") from error
    if parsed.drivername in _POSTGRESQL:
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() != "sqlite":
        raise ValueError(
            f"optserve keeps its data in SQLite or PostgreSQL, not {parsed.drivername!r}; "
            "write sqlite:///PATH or postgresql://USER:PASSWORD@HOST/DATABASE"
        )
    if parsed.database in (None, "", ":memory:"):
        raise ValueError("an SQLite database in memory is lost with its connection; write sqlite:///PATH")
    return parsed


def _sqlite_engine(url: URL, patience: float) -> Engine:
    engine = create_engine(url, connect_args={"timeout": patience}, pool_timeout=patience)
    event.listen(engine, "do_connect", _require_file)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _postgresql_engine(url: URL, patience: float) -> Engine:
    # The last is for a connection that was open when the other machine went away: TCP itself waits for 15 minutes.
    waits = {"connect_timeout": round(patience), "tcp_user_timeout": round(1000 * patience)}
    try:
        return create_engine(url, pool_pre_ping=True, connect_args=waits, pool_timeout=patience)
    except ModuleNotFoundError as error:
        raise ValueError("PostgreSQL needs psycopg; run: pip install 'optserve[postgres]'") from error


def _require_file(_dialect: Any, _record: Any, arguments: list[Any], options: dict[str, Any]) -> None:
    # Where the file is gone, SQLite would begin an empty one in its place, without a table.
    arguments[0] = f"{Path(arguments[0]).absolute().as_uri()}?mode=rw"
    options["uri"] = True


def _prepare_sqlite(dbapi_connection: Any, _record: Any) -> None:
    # Python's sqlite3 would begin transactions by itself, late and deferred; `_begin_sqlite` does it instead.
    dbapi_connection.isolation_level = None
    dbapi_connection.execute("PRAGMA foreign_keys = ON")


def _is_wal(connection: Connection) -> bool:
    try:
        connection.connection.cursor().execute("PRAGMA journal_mode = WAL")
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise
        return False
    return True


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get("optserve_write", False)
    connection.exec_driver_sql(f"PRAGMA query_only = {'OFF' if write else 'ON'}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
