import pytest
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError

from optserve_server.registry import acts, api_keys, audit
from optserve_server.registry.acts import Act
from optserve_server.registry.errors import ApiKeyExists


def entries(database):
    with database.session() as db_session:
        return [(one.actor, one.action, one.outcome) for one in audit.list_entries(db_session, limit=100)]


def add_key(database, name="ci"):
    with acts.acting(Act("ada", "here", "create_api_key", name)), database.session(write=True) as db_session:
        api_keys.add_key(db_session, name, "client")


def test_an_act_and_its_row_are_one_transaction(database):
    add_key(database)
    with pytest.raises(ApiKeyExists):
        add_key(database)
    assert entries(database) == [("ada", "create_api_key", "done")]


def test_an_act_is_written_once_and_ends_with_its_block(database):
    with acts.acting(Act("ada", "here", "do", "it")):
        for _ in range(2):
            with database.session(write=True):
                pass
        with database.session():
            pass
    with database.session(write=True):
        pass
    assert entries(database) == [("ada", "do", "done")]


@pytest.mark.parametrize("change", ["UPDATE audit SET actor = 'eve'", "DELETE FROM audit"])
def test_nobody_changes_what_is_on_record(database, change):
    add_key(database)
    with (
        pytest.raises(DatabaseError, match="rows of audit are never changed"),
        database.session(write=True) as db_session,
    ):
        db_session.execute(text(change))
    assert len(entries(database)) == 1
