import hashlib
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from optserve_server.registry import api_keys
from optserve_server.registry.errors import ApiKeyExists, ApiKeyInvalid, ApiKeyNotFound


def add(database, name, scope="client", **options):
    with database.session(write=True) as db_session:
        return api_keys.add_key(db_session, name, scope, **options)


def get(database, id_or_name):
    with database.session() as db_session:
        return api_keys.get_key(db_session, str(id_or_name))


def revoke(database, id_or_name):
    with database.session(write=True) as db_session:
        api_keys.revoke_key(db_session, api_keys.get_key(db_session, str(id_or_name)))


def has_keys(database):
    with database.session() as db_session:
        return api_keys.has_keys(db_session)


def test_of_a_key_only_its_digest_and_its_beginning_are_kept(database):
    _, key = add(database, "ada", "admin")
    with database.session() as db_session:
        (stored,) = db_session.execute(text("SELECT * FROM api_keys")).mappings().all()
    assert stored["sha256"] == hashlib.sha256(key.encode()).hexdigest()
    assert key.startswith(stored["prefix"])
    assert len(key) - len(stored["prefix"]) > 40  # hexadecimal digits that nobody can guess
    assert not [value for value in stored.values() if isinstance(value, str) and key in value]
    assert add(database, "grace")[1] != key


def test_a_key_is_found_by_its_id_and_by_its_name(database):
    ada, grace = add(database, "Ada's laptop")[0], add(database, "grace", "admin")[0]
    assert get(database, ada.id).name == get(database, "Ada's laptop").name == "Ada's laptop"
    assert get(database, grace.id).scope == "admin"
    for unknown in ("garce", "99", "9" * 40, "gra\0ce", ""):
        with pytest.raises(ApiKeyNotFound):
            get(database, unknown)
    with pytest.raises(ApiKeyNotFound, match="did you mean 'grace'"):
        get(database, "garce")


def test_a_name_is_one_keys_until_that_is_revoked(database):
    first, _ = add(database, "ci")
    with pytest.raises(ApiKeyExists, match="'ci' already"):
        add(database, "ci", "admin")
    revoke(database, "ci")
    second, _ = add(database, "ci", "admin")
    assert get(database, "ci").id == second.id != first.id
    assert get(database, first.id).revoked_at is not None


def test_revoked_is_for_ever_and_since_the_first_time(database):
    row, _ = add(database, "ci")
    revoke(database, row.id)
    since = get(database, row.id).revoked_at
    revoke(database, row.id)
    assert get(database, row.id).revoked_at == since
    with pytest.raises(ApiKeyNotFound):
        get(database, "ci")


def test_an_expired_key_still_counts_a_revoked_one_does_not(database):
    assert not has_keys(database)
    add(database, "short", expires_in_days=1e-9)
    assert has_keys(database)
    revoke(database, "short")
    assert not has_keys(database)


def test_a_key_expires_when_it_was_said(database):
    row, _ = add(database, "ci", expires_in_days=1.5)
    assert get(database, "ci").expires_at - row.created_at == timedelta(hours=36)
    assert get(database, add(database, "for ever")[0].id).expires_at is None


@pytest.mark.parametrize("name", ["", " ci", "ci ", "a\nb", "a\0b", "\ud800", "x" * 65, "42", "anonymous", "server"])
def test_some_names_no_key_can_have(database, name):
    with pytest.raises(ApiKeyInvalid, match="cannot be called"):
        add(database, name)


@pytest.mark.parametrize("days", [0, -1, float("nan"), float("inf"), 1e6])
def test_some_times_no_key_can_last(database, days):
    with pytest.raises(ApiKeyInvalid, match="cannot expire in"):
        add(database, "ci", expires_in_days=days)


def test_a_scope_that_is_none_names_the_nearest(database):
    with pytest.raises(ApiKeyInvalid, match="did you mean 'admin'"):
        add(database, "ci", "amdin")


def test_the_last_use_only_moves_on(database):
    ids = [add(database, name)[0].id for name in ("ada", "grace")]
    noon = datetime(2030, 1, 1, 12, tzinfo=UTC)
    for moment, expected in ((noon, noon), (noon - timedelta(hours=1), noon), (noon + timedelta(hours=1), None)):
        with database.session(write=True) as db_session:
            api_keys.write_last_uses(db_session, dict.fromkeys(ids, moment))
        assert [get(database, key).last_used_at for key in ids] == [expected or moment] * 2


@pytest.mark.parametrize(
    "change", ["scope = 'root'", "sha256 = 'short'", "name = ''", "expires_at = created_at", "revoked_at = NULL"]
)
def test_the_schema_itself_refuses_what_cannot_be(database, change):
    add(database, "ci")
    revoke(database, "ci")
    add(database, "ci")
    with pytest.raises(DBAPIError), database.session(write=True) as db_session:
        db_session.execute(text(f"UPDATE api_keys SET {change}"))


def test_lists_go_on_where_the_last_page_ended(database):
    names = [f"key-{number}" for number in range(5)]
    for name in names:
        add(database, name)
    found, after = [], 0
    with database.session() as db_session:
        while page := api_keys.list_keys(db_session, limit=2, after=after):
            found += page
            after = page[-1].id
    assert [key.name for key in found] == names
