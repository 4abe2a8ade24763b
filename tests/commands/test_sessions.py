"""`optserve sessions verify`, as it is typed."""

import json

import pytest
from tests.sessions.storage.conftest import generation, record

from optserve import Client
from optserve_server.sessions.storage.directory import SessionDirectory

SESSION = "5e55"  # the one that the storage's records are of


@pytest.fixture
def run(typed):
    """Runs `optserve sessions …`."""
    return typed("sessions", columns=100)


@pytest.fixture
def journal(tmp_path):
    """The journal of a session with two steps; the directory is in a server's hands."""
    directory = SessionDirectory(tmp_path / "data" / "sessions")
    journal = directory.create(SESSION, {"id": SESSION}, generation())
    journal.append(record(0))
    journal.append(record(1))
    journal.close()
    yield journal.path
    directory.close()


def test_sound_sessions(run, journal):
    result = run("verify", "--data-dir", "data")
    assert (result.code, result.stderr) == (0, "")
    (row,) = [line.split() for line in result.stdout.splitlines() if line.startswith(SESSION)]
    assert row[1:5] == ["2", "0", "1", "0"]  # the next step, the oldest one, generations, checkpoints
    assert int(row[5]) > journal.stat().st_size
    assert row[6] == "sound"
    assert result.stdout.rstrip().endswith("0 of 1 sessions are damaged")
    for given in (SESSION, SESSION[:2]):
        (told,) = json.loads(run("verify", given, "--data-dir", "data", "--json").stdout)
        assert (told["session"], told["next_step"], told["damage"]) == (SESSION, 2, [])
    (journal.parent.parent / (SESSION[:2] + "0")).mkdir()
    assert "2 sessions at data/sessions begin with '5e'" in run("verify", SESSION[:2], "--data-dir", "data").stderr
    assert "an SQLite file" not in run("verify", "--help").stdout


def test_damage_is_told_with_what_to_do_and_exit_code_1(run, journal):
    octets = bytearray(journal.read_bytes())
    octets[-20] ^= 1
    journal.write_bytes(octets)
    result = run("verify", "--data-dir", "data")
    assert result.code == 1
    assert "DAMAGED" in result.stdout
    assert f"{SESSION}/00000001.journal: at byte " in result.stdout
    assert f'go back to step 1 or an earlier one: POST /v1/sessions/{SESSION}/restore {{"step": 1}}' in result.stdout
    assert "1 of 1 sessions is damaged" in result.stdout
    printed = run("verify", "--data-dir", "data", "--json")
    assert printed.code == 1
    assert [damage["file"] for damage in json.loads(printed.stdout)[0]["damage"]] == ["00000001.journal"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("verify", "5e56", "--data-dir", "data"), f"there is no session '5e56' (did you mean '{SESSION}'?)"),
        (("verify", "--data-dir", "dat"), "no sessions at dat/sessions"),
    ],
)
def test_errors_are_one_line(run, journal, tmp_path, arguments, words):
    result = run(*arguments)
    assert (result.code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert words in line
    assert not (tmp_path / "dat").exists()


def test_a_replay_of_what_a_server_is_at_work_on(run, server):
    with Client(server.url) as client, client.sessions.create("rnnprop", {"w": (3,)}) as session:
        for step in range(40):
            session.step({"w": [1.0, 0.5, step]})
        result = run("verify", session.id, "--replay", "--data-dir", str(server.data_dir), "--json")
        (told,) = json.loads(result.stdout)
        assert (result.code, told["next_step"], told["replayed_steps"], told["same_kernel"]) == (0, 40, 40, True)
        table = run("verify", session.id, "--replay", "--data-dir", str(server.data_dir)).stdout
        assert "replayed" in table
        elsewhere = run("verify", "--replay", "--data-dir", str(server.data_dir), "--database-url", "sqlite:///a.db")
        assert elsewhere.code == 1
        assert "is it the one the server uses?" in elsewhere.stderr
