import subprocess
import sys

import pytest

from optserve_server.optimizers import HAND_DESIGNED
from optserve_server.registry import aliases, bundled, optimizers
from optserve_server.registry.database import Database
from optserve_server.registry.errors import WeightsInvalid
from optserve_server.resources import recipes_directory


@pytest.fixture
def recipes(tmp_path, monkeypatch, weights_bytes):
    """A directory of bundled files with one `lstm` in it, in place of the package's own."""
    directory = tmp_path / "recipes"
    directory.mkdir()
    (directory / "lstm-quadratic.safetensors").write_bytes(weights_bytes(0, optimizer="lstm", description="The first."))
    (directory / "lstm-quadratic.toml").write_text('name = "lstm"\n')
    monkeypatch.setattr(bundled, "recipes_directory", lambda: directory)
    return directory


def _state(database):
    """Every optimizer's versions, aliases and number of moves."""
    with database.session() as db_session:
        return {
            entry.optimizer.name: (
                [version.number for version in optimizers.list_versions(db_session, entry.optimizer)],
                {found.alias: found.number for found in aliases.list_aliases(db_session, entry.optimizer)},
                len(aliases.list_moves(db_session, entry.optimizer)),
            )
            for entry in optimizers.list_entries(db_session, limit=100)
        }


def test_the_first_start_registers_all_and_the_second_nothing(database, recipes):
    bundled.register_bundled(database)
    first = _state(database)
    bundled.register_bundled(database)
    assert set(first) == {"lstm", *HAND_DESIGNED}
    assert first["lstm"] == ([1], {"champion": 1, "latest": 1}, 2)
    assert first["adam"] == ([1], {"latest": 1}, 1)
    assert _state(database) == first


def test_every_bundled_optimizer_has_a_description(database, recipes):
    bundled.register_bundled(database)
    with database.session() as db_session:
        assert all(entry.optimizer.description for entry in optimizers.list_entries(db_session, limit=100))


def test_a_changed_file_is_the_next_version_and_leaves_the_champion_alone(database, recipes, weights_bytes):
    bundled.register_bundled(database)
    (recipes / "lstm-quadratic.safetensors").write_bytes(weights_bytes(1, optimizer="lstm"))
    bundled.register_bundled(database)
    assert _state(database)["lstm"] == ([2, 1], {"champion": 1, "latest": 2}, 3)


def test_a_champion_that_a_person_removed_stays_removed(database, recipes):
    bundled.register_bundled(database)
    with database.session(write=True) as db_session:
        optimizer = optimizers.get_optimizer(db_session, "lstm", lock=True)
        aliases.remove_alias(db_session, optimizer, "champion", moved_by="ada")
    bundled.register_bundled(database)
    assert _state(database)["lstm"][1] == {"latest": 1}


def test_a_file_that_names_no_optimizer_is_called_after_itself(database, recipes, weights_bytes):
    (recipes / "small.safetensors").write_bytes(weights_bytes(1))
    bundled.register_bundled(database)
    assert _state(database)["small"][0] == [1]


def test_a_damaged_file_is_named(database, recipes):
    (recipes / "lstm-quadratic.safetensors").write_bytes(b"not weights")
    with pytest.raises(WeightsInvalid, match=r"lstm-quadratic\.safetensors is damaged; install optserve again"):
        bundled.register_bundled(database)


def test_the_package_s_own_files_register(database):
    bundled.register_bundled(database)
    assert len(_state(database)) >= len(HAND_DESIGNED) + len(list(recipes_directory().glob("*.safetensors")))


START = """
import sys
from optserve_server.registry.bundled import register_bundled
from optserve_server.registry.database import Database

database = Database(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
database.upgrade()
register_bundled(database)
database.close()
"""


def test_servers_that_start_at_the_same_time_register_once(database_url):
    """Processes of their own, which migrate and register an empty database together."""
    command = [sys.executable, "-W", "error", "-c", START, database_url]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.stdout.readline() for process in processes] == ["ready\n", "ready\n"]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [0, 0]
    database = Database(database_url)
    assert {tuple(versions) for versions, _, _ in _state(database).values()} == {(1,)}
    database.close()
