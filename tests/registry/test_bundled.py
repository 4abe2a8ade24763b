import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier

import pytest

from optserve_server.optimizers import HAND_DESIGNED
from optserve_server.registry import aliases, bundled, optimizers
from optserve_server.registry.database import Database
from optserve_server.registry.errors import WeightsInvalid
from optserve_server.resources import recipes_directory

PROCESSES = 2


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


def test_servers_that_start_at_the_same_time_register_once(database_url):
    """Processes of their own: they migrate and register an empty database together."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(PROCESSES)
    with ProcessPoolExecutor(PROCESSES, context, initializer=_share, initargs=(barrier,)) as pool:
        states = [future.result(60) for future in [pool.submit(_start, database_url) for _ in range(PROCESSES)]]
    database = Database(database_url)
    assert states == [_state(database)] * PROCESSES
    assert all(versions == [1] for versions, _, _ in states[0].values())
    database.close()


_barrier: Barrier


def _share(barrier: Barrier) -> None:
    global _barrier  # noqa: PLW0603
    _barrier = barrier


def _start(url: str) -> dict[str, object]:
    database = Database(url)
    _barrier.wait(60)
    database.upgrade()
    bundled.register_bundled(database)
    state = _state(database)
    database.close()
    return state
