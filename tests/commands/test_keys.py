"""`optserve keys`, as it is typed."""

import getpass
import json

import pytest

from optserve_server.registry import audit
from optserve_server.registry.api_keys import digest
from optserve_server.registry.database import Database


@pytest.fixture
def run(typed):
    """Runs `optserve keys …`."""
    return typed("keys", columns=200)


def ok(result):
    assert result.code == 0, result.stderr
    return result.stdout


def test_a_key_is_made_listed_and_revoked(run):
    printed = run("create", "--scope", "admin", "--name", "ada", "--expires-in", "30")
    key = ok(printed).strip()  # alone on the standard output, for scripts
    assert "not shown again" in printed.stderr
    made = json.loads(ok(run("create", "--scope", "client", "--name", "grace", "--json")))
    assert made["key"].startswith(made["prefix"])
    listed = json.loads(ok(run("list", "--json")))
    assert [(one["name"], one["scope"], one["id"]) for one in listed] == [("ada", "admin", 1), ("grace", "client", 2)]
    assert listed[0]["expires_at"] > listed[0]["created_at"]
    assert listed[1] == {name: value for name, value in made.items() if name != "key"}
    assert "'ada'" in ok(run("revoke", "ada"))
    last = ok(run("revoke", "2"))
    assert "'grace'" in last
    assert "last key" in last
    assert "'grace' is revoked already" in run("revoke", "grace").stderr
    assert "is revoked already" in ok(run("revoke", "2"))
    assert all(one["revoked_at"] for one in json.loads(ok(run("list", "--json"))))
    table = ok(run("list"))
    for word in ("ada", "grace", "revoked", listed[0]["expires_at"][:10]):
        assert word in table
    for text in (table, json.dumps(listed)):
        assert key not in text
        assert digest(key) not in text


def test_each_command_says_which_database_it_used(run, tmp_path):
    database = f"sqlite:///{tmp_path / 'optserve-data' / 'optserve.db'}"
    told = [
        run(*arguments).stderr.splitlines()[0]
        for arguments in (
            ("create", "--scope", "client", "--name", "ci"),
            ("create", "--scope", "client", "--name", "cd", "--json"),
            ("list",),
            ("revoke", "ci"),
        )
    ]
    assert told == [f"made a new database at {database}", *[f"in {database}"] * 3]


def test_a_database_is_named_without_its_password():
    hidden = "s3cret"
    for url in (f"postgresql://ada:{hidden}@db/optserve", f"postgresql://ada@db/optserve?password={hidden}"):
        database = Database(url)
        assert "ada" in database.shown
        assert "db/optserve" in database.shown
        assert hidden not in database.shown
        database.close()


def test_what_is_done_to_keys_is_on_record(run, tmp_path):
    ok(run("create", "--scope", "client", "--name", "ci"))
    ok(run("revoke", "ci"))
    ok(run("list"))
    database = Database(f"sqlite:///{tmp_path / 'optserve-data' / 'optserve.db'}")
    with database.session() as db_session:
        revoked, made = audit.list_entries(db_session, limit=9)
    database.close()
    assert (made.actor, made.address) == (getpass.getuser(), "command line")
    assert (made.action, made.target, made.outcome) == ("create_api_key", "ci", "done")
    assert made.details == {"name": "ci", "scope": "client"}
    assert (revoked.action, revoked.target) == ("revoke_api_key", "ci")


def test_a_key_is_given_limits_of_its_own(run):
    ok(run("create", "--scope", "client", "--name", "ci", "--max-sessions", "3", "--max-requests-per-second", "0.5"))
    (listed,) = json.loads(ok(run("list", "--json")))
    assert listed["limits"] == {
        "sessions": 3,
        "coordinates": None,
        "bytes_in_flight": None,
        "requests_per_second": 0.5,
        "runs": None,
    }
    assert "sessions 3, requests per second 0.5" in ok(run("list"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("revoke", "gracce"), "did you mean 'grace'"),
        (("create", "--scope", "admn", "--name", "ada"), "did you mean 'admin'"),
        (("create", "--scope", "admin", "--name", "grace"), "'grace' already"),
        (("create", "--scope", "admin", "--name", "7"), "add a letter"),
        (("create", "--scope", "admin", "--name", "ada", "--expires-in", "0"), "cannot expire in 0 days"),
        (("create", "--scope", "client", "--name", "ci", "--max-runs", "-1"), "runs cannot be -1"),
        (("list", "--data-dir", "elsewhere"), "there is no database"),
        (("create", "--scope", "client", "--name", "ci", "--data-dir", __file__), f"exists: {__file__!r}"),
    ],
)
def test_errors_are_one_line_and_change_nothing(run, tmp_path, arguments, words):
    ok(run("create", "--scope", "client", "--name", "grace"))
    result = run(*arguments)
    assert (result.code, result.stdout) == (1, "")
    *where, line = result.stderr.splitlines()
    assert words in line
    assert where in ([], [f"in sqlite:///{tmp_path / 'optserve-data' / 'optserve.db'}"])
    assert len(json.loads(ok(run("list", "--json")))) == 1
    assert not (tmp_path / "elsewhere").exists()
