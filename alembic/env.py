"""Alembic's entry: `Database.upgrade` hands it a connection; the command line names a database in the environment."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from alembic import context
from sqlalchemy import Connection

from optserve_server.registry.database import Database
from optserve_server.registry.models import Base


@contextmanager
def connection() -> Iterator[Connection]:
    given = context.config.attributes.get("connection")
    if given is not None:
        yield given
        return
    database = Database(os.environ["OPTSERVE_DATABASE_URL"])
    database.create_file()
    with database.session(write=True) as db_session:
        yield db_session.connection()
    database.close()


with connection() as open_connection:
    context.configure(connection=open_connection, target_metadata=Base.metadata)
    with context.begin_transaction():
        context.run_migrations()
